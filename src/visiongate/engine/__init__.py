"""Floor 2: requests, time and memory. One engine thread turns prompts into tokens."""
