"""What a process holds of the machine's memory, as /proc tells; 0 where there is no /proc."""

from __future__ import annotations

import os
from pathlib import Path


def process_rss_bytes(pid: int | str = "self") -> int:
    """Resident bytes of a process, 0 when it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def process_peak_bytes() -> int:
    """The most that this process was resident with since its start."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    found = next((line for line in lines if line.startswith("VmHWM:")), "VmHWM: 0 kB")
    return int(found.split()[1]) * 1024
