"""The C library's heap: what was freed goes back to the system."""

from __future__ import annotations

import ctypes
import sys


def trim_heap() -> None:
    """Gives freed memory back that the C library keeps for later; glibc alone has the call."""
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(ctypes.c_size_t(0))
