"""How much a card computes at once and keeps; `engine.budget` counts it as memory."""

from __future__ import annotations

from typing import Final

CHUNK_TOKENS: Final = 640
"""Tokens of a prompt that are computed at once, at most."""

NUM_POSITION_TABLES: Final = 16
"""Grids of pictures whose positions are kept."""

NUM_PICTURE_STATES: Final = 8
"""Sizes of pictures whose streams and graphs are kept."""
