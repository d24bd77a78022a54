"""Pictures live in memory only: the file system is watched while they are uploaded."""

from __future__ import annotations

import ctypes
import os
import struct
import threading
import time
from pathlib import Path

import pytest

from tests.gateway.serving import base64_of, example, question, serve

IN_CREATE, IN_MODIFY, IN_MOVED_TO = 0x100, 0x2, 0x80
NONBLOCK = 0x800


class Watch:
    """Names of files that were made or written in some folders, by the kernel's inotify."""

    def __init__(self, *folders: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._file = self._libc.inotify_init1(NONBLOCK)
        mask = IN_CREATE | IN_MODIFY | IN_MOVED_TO
        for folder in folders:
            assert self._libc.inotify_add_watch(self._file, str(folder).encode(), mask) > 0

    def names(self) -> set[str]:
        found: set[str] = set()
        try:
            data = os.read(self._file, 1 << 20)
        except BlockingIOError:
            return found
        while data:
            length = struct.unpack("iIII", data[:16])[3]
            found.add(data[16 : 16 + length].rstrip(b"\0").decode())
            data = data[16 + length :]
        return found

    def close(self) -> None:
        os.close(self._file)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")
def test_no_upload_touches_the_disk(tmp_path: Path) -> None:
    """A65, B40, B66: multipart over a megabyte is where frameworks spool to a temporary file."""
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temporary.mkdir()
    with serve(home, TMPDIR=str(temporary)) as own:
        watch = Watch(home, temporary, Path("/dev/shm"), Path("/var/tmp"))
        before = set(temporary.iterdir())
        deleted: set[str] = set()
        is_over = threading.Event()

        def look_for_deleted_files() -> None:
            while not is_over.is_set():
                for link in Path(f"/proc/{own.process.pid}/fd").iterdir():
                    try:
                        target = os.readlink(link)
                    except OSError:
                        continue
                    is_memory = target.startswith("/memfd:")  # has no disk and no name elsewhere
                    if "(deleted)" in target and not is_memory:
                        deleted.add(target)
                time.sleep(0.002)

        looker = threading.Thread(target=look_for_deleted_files)
        looker.start()
        picture = example() + b"\0" * 5_000_000
        files = {"image": ("a.png", picture), "prompt": (None, "What is the total?")}
        assert own.post("/v1/chat/completions", files=files).status_code == 200
        body = {"image": base64_of(picture), "prompt": "What is the total?"}
        assert own.post("/api/chat", body).status_code == 200
        own.post("/v1/chat/completions", question(picture, "What is the total?"))
        own.post("/v1/chat/completions", files={"image": ("a.png", picture)})
        is_over.set()
        looker.join()
        names = watch.names()
        watch.close()
        assert set(temporary.iterdir()) == before
    assert names == set()
    assert deleted == set()
