"""How much memory there is, and a guard that refuses a picture instead of dying of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from visiongate.errors import OutOfMemory, TooLarge

BYTES_PER_PIXEL: Final = 8
"""Peak while decoding: the file's pixels (up to 4 bytes) beside their RGB copy."""

MIB: Final = 1024 * 1024
SMALL_BYTES: Final = 32 * MIB
"""Less than this is given without looking."""

_CGROUP: Final = Path("/sys/fs/cgroup")


class MemoryGuard:
    """Lets pictures be decoded only while memory for them is left.

    Args:
        limit_bytes: what the service may use; 0 follows the container or the machine.
    """

    def __init__(self, limit_bytes: int = 0) -> None:
        self.limit_bytes = limit_bytes or memory_limit()
        self._reserved_bytes = 0
        self._lock = threading.Lock()  # pictures are decoded in threads

    @contextmanager
    def reserve(self, num_pixels: int) -> Iterator[None]:
        """Holds memory for a picture; raises TooLarge when it can never fit, OutOfMemory now."""
        needed = num_pixels * BYTES_PER_PIXEL
        if needed > self.limit_bytes // 2:
            raise TooLarge(
                f"the image needs {needed // MIB} MB to decode; this server can spare "
                f"{self.limit_bytes // 2 // MIB} MB: send a smaller one"
            )
        with self._lock:
            if needed > SMALL_BYTES:
                self._check(needed)
            self._reserved_bytes += needed
        try:
            yield
        finally:
            with self._lock:
                self._reserved_bytes -= needed

    def _check(self, needed: int) -> None:
        free = self.limit_bytes - memory_used() - self._reserved_bytes
        if needed > free:
            raise OutOfMemory(
                f"the image needs {needed // MIB} MB and {max(0, free) // MIB} MB of "
                f"{self.limit_bytes // MIB} MB are free; try again later",
                retry_after_seconds=5.0,
            )


def memory_limit() -> int:
    """Bytes that this process and its children may use: the container's limit, or the machine's."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        number = _read_number(_CGROUP / name)
        if number:
            limits.append(number)
    return min(limits)


def memory_used() -> int:
    """Bytes in use as the limit counts them, without file pages that can be dropped."""
    current = _read_number(_CGROUP / "memory.current")
    container_limit = _read_number(_CGROUP / "memory.max")
    if current and container_limit:
        return max(0, current - _inactive_file_bytes())
    meminfo = _meminfo()
    return meminfo.get("MemTotal", 0) - meminfo.get("MemAvailable", 0)


def _inactive_file_bytes() -> int:
    try:
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(v) for k, v in (x.split() for x in lines) if k == "inactive_file"), 0)


def _meminfo() -> dict[str, int]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(":") for line in lines if ":" in line)
    return {key: int(value.split()[0]) * 1024 for key, value in pairs}


def _read_number(path: Path) -> int:
    try:
        text = path.read_text().strip()
    except OSError:
        return 0
    return int(text) if text.isdigit() else 0
