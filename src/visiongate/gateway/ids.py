"""Random ids without digits: searching the access log for a status code never finds one."""

from __future__ import annotations

import secrets
import string

NUM_LETTERS = 20


def new_id(prefix: str) -> str:
    """An id of 94 random bits behind a prefix."""
    number, letters = secrets.randbelow(26**NUM_LETTERS), []
    for _ in range(NUM_LETTERS):
        number, place = divmod(number, 26)
        letters.append(string.ascii_lowercase[place])
    return prefix + "".join(letters)
