"""Floor 3: the embedded model, made here."""
