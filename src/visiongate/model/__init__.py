"""Floor 1: Qwen3-VL, tensors in, tensors out; no request, no clock, no thread."""
