"""Memory of processes, read from /proc."""

from __future__ import annotations

import os

import pytest

from visiongate.engine.processes import process_peak_bytes, process_rss_bytes, reset_peak

MIB = 1024 * 1024


def test_resident_memory_is_known_of_living_processes_only() -> None:
    assert process_rss_bytes() > 10 * MIB
    assert process_rss_bytes(os.getppid()) > 0
    assert process_rss_bytes(2**22) == 0


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="no /proc to write")
def test_a_peak_stays_until_it_is_reset() -> None:
    """The kernel counts pages for each processor apart: up to a few MiB are told late."""
    before = process_rss_bytes()
    buffer = bytearray(os.urandom(64)) * (2 * MIB)  # 128 MiB
    assert len(buffer) == 128 * MIB
    del buffer
    assert process_peak_bytes() > before + 120 * MIB
    reset_peak()
    assert process_peak_bytes() < before + 60 * MIB
