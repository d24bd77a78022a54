"""Keeps large files, private keys and registry addresses out of the tree; part of `make check`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
MAX_BYTES = 600_000
LARGE_ALLOWED = {"src/visiongate/mini/weights/model.safetensors": 40_000_000}
KEY = re.compile(rb"-----BEGIN (?:RSA |EC |OPENSSH |)PRIVATE KEY-----")
RESOLVED = re.compile(rb'"resolved":\s*"https?://')


def main() -> int:
    """Prints every offence; 1 when there is one."""
    listing = subprocess.run(
        ["git", "ls-files", "-z"],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    offences = []
    for name in filter(None, listing.decode().split("\0")):
        path = ROOT / name
        if not path.is_file():
            continue
        size = path.stat().st_size
        if size > LARGE_ALLOWED.get(name, MAX_BYTES):
            offences.append(f"{name}: {size} bytes; the limit is {MAX_BYTES}")
            continue
        content = path.read_bytes() if name not in LARGE_ALLOWED else b""
        if KEY.search(content):
            offences.append(f"{name}: holds a private key")
        if name.endswith("lock.json") and RESOLVED.search(content):
            offences.append(f"{name}: names a registry host")
    for offence in offences:
        print(offence)
    return 1 if offences else 0


if __name__ == "__main__":
    sys.exit(main())
