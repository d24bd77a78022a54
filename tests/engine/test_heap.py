"""Memory that was freed goes back to the system."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from visiongate.engine.heap import trim_heap


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library keeps no such heap")
def test_what_was_freed_below_what_is_held_goes_back() -> None:
    blocks = [bytes(4000) for _ in range(16000)]  # 64 MB by malloc
    held = blocks[-1]
    before = resident_bytes()
    del blocks
    trim_heap()
    assert resident_bytes() < before - 48_000_000
    assert len(held) == 4000


def test_trimming_needs_nothing_of_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    trim_heap()


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")
