"""Random ids without digits: searching the access log for a status code never finds one."""

from __future__ import annotations

import secrets
import string

NUM_LETTERS = 20


def new_id(prefix: str) -> str:
    """An id of 94 random bits behind a prefix."""
    return prefix + "".join(secrets.choice(string.ascii_lowercase) for _ in range(NUM_LETTERS))
