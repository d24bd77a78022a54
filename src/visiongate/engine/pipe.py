"""The pipe between gateway and worker: pickled messages, with pictures' pixels beside them.

A picture of a megapixel is three megabytes, and takes 5 to 6 ms through a socket. `share` puts its
pixels into a memory file once; `MessagePipe.send` passes the file's descriptor, and the other side
maps the same pages. Where there are no memory files (they are Linux's), or too many are open,
pixels travel in the message.

    message --pickle, protocol 5--> its size, the number of its files | the message
                                    `---- the files go with these bytes
"""

from __future__ import annotations

import array
import contextlib
import io
import mmap
import os
import pickle
import queue
import select
import socket
import struct
import threading
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

CAN_SHARE: Final = hasattr(os, "memfd_create")
MIN_SHARED_BYTES: Final = 512 * 1024
"""Smaller pictures travel in the message, which takes less time than making a file."""

MAX_FILES: Final = 64
"""Files of one message; further pictures travel in it."""

_HEAD: Final = struct.Struct("<QB")
_READ_BYTES: Final = 64 * 1024
_FILE_BYTES: Final = array.array("i").itemsize
_ROOM: Final = socket.CMSG_SPACE(MAX_FILES * _FILE_BYTES)
_descriptors: dict[int, int] = {}
"""By an array's id: the memory file that holds it. An entry goes with its array."""


def share(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The same pixels in a memory file, or in memory where that is not possible or worth it.

    They are writable: an array that is not arrives so, and torch warns of it.
    """
    if not CAN_SHARE or pixels.nbytes < MIN_SHARED_BYTES or len(_descriptors) >= _max_shared():
        return np.require(pixels, requirements="W")
    try:
        descriptor = os.memfd_create("visiongate-pixels", os.MFD_CLOEXEC)
    except OSError:
        return np.require(pixels, requirements="W")
    try:
        rest = np.ascontiguousarray(pixels).data.cast("B")
        while rest:  # written, not copied into a mapping: that would fault on every page
            rest = rest[os.write(descriptor, rest) :]
        buffer = mmap.mmap(descriptor, 0)
    except OSError:
        os.close(descriptor)
        return np.require(pixels, requirements="W")
    shared = np.frombuffer(buffer, np.uint8).reshape(pixels.shape)
    _descriptors[id(shared)] = descriptor
    weakref.finalize(shared, _forget, id(shared)).atexit = False
    return shared


def num_shared() -> int:
    """Memory files that are open in this process."""
    return len(_descriptors)


def _forget(key: int) -> None:
    os.close(_descriptors.pop(key))


def _max_shared() -> int:
    """An eighth of the files that this process may open; an array takes two of them."""
    import resource  # not there on Windows

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 8192 if soft == resource.RLIM_INFINITY else min(8192, soft // 8)


@dataclass(slots=True)
class _Frame:
    """A message on its way: the bytes that are still to be sent, and the files to go with them."""

    message: object  # keeps its pixels, and with them their files, until they are sent
    rest: memoryview
    files: list[int]


class MessagePipe:
    """One end of a pair of sockets; one thread may send while another receives.

    An event loop that watches the end may make it non-blocking (uvloop does), so nothing here
    counts on the socket to wait.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._readable, self._writable = select.poll(), select.poll()
        self._readable.register(end, select.POLLIN)
        self._writable.register(end, select.POLLOUT)
        self._arrived = bytearray()
        self._files: deque[int] = deque()

    def fileno(self) -> int:
        """The descriptor that is readable when a message arrives."""
        return self._socket.fileno()

    def send(self, message: object) -> None:
        """Pickles a message and hands it over; raises OSError when the other side is gone."""
        self._send_frame(_pack(message))

    def _send_frame(self, frame: _Frame) -> None:
        while not self._send_ready(frame):
            self._writable.poll()

    def receive(self) -> Any:
        """The next message; waits for it. Raises EOFError or OSError once the other side ended."""
        while (found := self._next()) is None:
            self._readable.poll()
            self._read()
        return found[0]

    def receive_begun(self, wait_seconds: float) -> list[Any]:
        """All messages that have begun to arrive; waits so long for the first.

        Raises as `receive` does.
        """
        messages = []
        while self._arrived or self._readable.poll(wait_seconds * 1000):
            messages.append(self.receive())
            wait_seconds = 0.0
        return messages

    def receive_ready(self) -> list[Any]:
        """The messages that have arrived whole; never waits. Raises as `receive` does."""
        if self._readable.poll(0):
            self._read()
        messages = []
        while (found := self._next()) is not None:
            messages.append(found[0])
        return messages

    def close(self) -> None:
        """Closes this end."""
        self._socket.close()
        while self._files:
            os.close(self._files.popleft())

    def _send_ready(self, frame: _Frame) -> bool:
        """Sends what the pipe has room for; whether that was all that was left of the frame."""
        try:
            while frame.rest:
                if frame.files:
                    sent = self._send_with_files(frame)
                else:
                    sent = self._socket.send(frame.rest, socket.MSG_DONTWAIT)
                frame.rest = frame.rest[sent:]
        except BlockingIOError:
            return False
        return True

    def _send_with_files(self, frame: _Frame) -> int:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", frame.files))
        try:
            sent = self._socket.sendmsg([frame.rest], [rights], socket.MSG_DONTWAIT)
        except (BlockingIOError, BrokenPipeError):
            raise
        except OSError:  # the kernel bounds the files that are under way
            frame.rest, sent = _pack(frame.message, max_files=0).rest, 0
        frame.files = []
        return sent

    def _read(self) -> None:
        """Takes what has arrived; raises EOFError at the end."""
        data, ancillary, _, _ = self._socket.recvmsg(_READ_BYTES, _ROOM)
        for level, kind, found in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self._files.extend(
                    array.array("i", found[: len(found) // _FILE_BYTES * _FILE_BYTES])
                )
        if not data:
            raise EOFError("the other side has ended")
        self._arrived += data

    def _next(self) -> tuple[Any] | None:
        """The next message, if all of it has arrived."""
        if len(self._arrived) < _HEAD.size:
            return None
        num_bytes, num_files = _HEAD.unpack_from(self._arrived)
        end = _HEAD.size + num_bytes
        if len(self._arrived) < end:
            return None
        with memoryview(self._arrived) as arrived:
            whole = bytes(arrived[_HEAD.size : end])
        del self._arrived[:end]
        if len(self._files) < num_files:
            raise EOFError("this process has no room for the files of a message")
        buffers = [self._map(self._files.popleft()) for _ in range(num_files)]
        return (pickle.loads(whole, buffers=buffers),)  # noqa: S301  # our own other process

    @staticmethod
    def _map(file: int) -> mmap.mmap:
        """The file's pages, privately: what the reader writes, nobody else sees."""
        try:
            return mmap.mmap(file, 0, access=mmap.ACCESS_COPY)
        finally:
            os.close(file)


class Sender:
    """Sends without ever waiting: at once where the pipe has room, else from a thread, in order."""

    def __init__(self, pipe: MessagePipe) -> None:
        self._pipe = pipe
        self._queue: queue.SimpleQueue[_Frame | None] = queue.SimpleQueue()
        self._num_queued = 0
        self._num_sent = 0
        threading.Thread(target=self._run, daemon=True).start()

    def send(self, message: object) -> None:
        """Hands a message over; for one thread. One to a process that has ended is dropped."""
        frame = _pack(message)
        if self._num_sent == self._num_queued:  # nothing is before it
            try:
                if self._pipe._send_ready(frame):
                    return  # else a long message, or a worker in a long step
            except (OSError, ValueError):
                return
        self._num_queued += 1
        self._queue.put(frame)

    def close(self) -> None:
        """Ends the thread."""
        self._queue.put(None)

    def _run(self) -> None:
        while (frame := self._queue.get()) is not None:
            with contextlib.suppress(OSError, ValueError):
                self._pipe._send_frame(frame)
            self._num_sent += 1


def _pack(message: object, max_files: int = MAX_FILES) -> _Frame:
    """A message as it goes over the pipe, with the files of its pixels."""
    files: list[int] = []

    def travels_inside(buffer: pickle.PickleBuffer) -> bool:
        descriptor = _descriptors.get(id(memoryview(buffer).obj))
        if descriptor is None or len(files) >= max_files:
            return True
        files.append(descriptor)
        return False

    stream = io.BytesIO()
    stream.write(bytes(_HEAD.size))
    pickle.Pickler(stream, 5, buffer_callback=travels_inside).dump(message)
    whole = stream.getbuffer()
    _HEAD.pack_into(whole, 0, len(whole) - _HEAD.size, len(files))
    return _Frame(message, whole, files)
