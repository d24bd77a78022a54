"""Memory of processes, read from /proc."""

from __future__ import annotations

import os

from visiongate.engine.processes import process_peak_bytes, process_rss_bytes

MIB = 1024 * 1024


def test_resident_memory_is_known_of_living_processes_only() -> None:
    assert process_rss_bytes() > 10 * MIB
    assert process_rss_bytes(os.getppid()) > 0
    assert process_rss_bytes(2**22) == 0


def test_a_peak_stays_when_its_memory_is_free_again() -> None:
    """The kernel counts pages for each processor apart: up to a few MiB are told late."""
    before = process_rss_bytes()
    buffer = bytearray(os.urandom(64)) * (2 * MIB)  # 128 MiB
    assert len(buffer) == 128 * MIB
    del buffer
    assert process_rss_bytes() < before + 60 * MIB
    assert process_peak_bytes() > before + 120 * MIB
