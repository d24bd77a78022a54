"""The pipe between gateway and worker: pickled messages, with pictures' pixels beside them.

A picture of a megapixel is three megabytes, and takes 5 to 6 ms through a socket. `share` puts its
pixels into a memory file once; `MessagePipe.send` passes the file's descriptor, and the other side
maps the same pages. Where there are no memory files (they are Linux's), or too many are open,
pixels travel in the message.

    message --pickle, protocol 5--> 1 byte: number of files, the message | 1 byte with the files
                                                                        or: the pixels themselves
"""

from __future__ import annotations

import array
import io
import mmap
import os
import pickle
import socket
import weakref
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, Final

import numpy as np
import numpy.typing as npt

CAN_SHARE: Final = hasattr(os, "memfd_create") and hasattr(socket.socket, "sendmsg")
MIN_SHARED_BYTES: Final = 512 * 1024
"""Smaller pictures travel in the message, which takes less time than making a file."""

MAX_FILES: Final = 64
"""Files of one message; further pictures travel in it."""

_BY_FILES: Final = b"f"
_BY_BYTES: Final = b"b"
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


class MessagePipe:
    """One end of a connection; one thread may send while another receives."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._socket: socket.socket | None = None
        if CAN_SHARE:  # a duplex pipe is a pair of sockets there
            self._socket = socket.socket(fileno=os.dup(connection.fileno()))

    def send(self, message: object) -> None:
        """Pickles a message and hands it over; raises OSError when the other side is gone."""
        files: list[int] = []
        buffers: list[pickle.PickleBuffer] = []

        def travels_inside(buffer: pickle.PickleBuffer) -> bool:
            descriptor = _descriptors.get(id(memoryview(buffer).obj))
            if descriptor is None or len(files) == MAX_FILES or self._socket is None:
                return True
            files.append(descriptor)
            buffers.append(buffer)
            return False

        stream = io.BytesIO()
        stream.write(b"\0")
        pickle.Pickler(stream, 5, buffer_callback=travels_inside).dump(message)
        whole = stream.getbuffer()
        whole[0] = len(files)
        self._connection.send_bytes(whole)
        if files:
            self._send_files(files, buffers)

    def receive(self) -> Any:
        """The next message; waits for it. Raises EOFError or OSError once the other side ended."""
        whole = memoryview(self._connection.recv_bytes())
        num_files = whole[0]
        buffers = self._receive_files(num_files) if num_files else []
        return pickle.loads(whole[1:], buffers=buffers)  # noqa: S301  # our own other process

    def close(self) -> None:
        """Closes this end."""
        if self._socket is not None:
            self._socket.close()
        self._connection.close()

    def _send_files(self, files: Sequence[int], buffers: Sequence[pickle.PickleBuffer]) -> None:
        assert self._socket is not None
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))
        try:
            self._socket.sendmsg([_BY_FILES], [rights])
        except BrokenPipeError:
            raise
        except OSError:  # the kernel bounds the files that are under way
            self._socket.sendall(_BY_BYTES)
            for buffer in buffers:
                self._connection.send_bytes(buffer.raw())

    def _receive_files(self, num_files: int) -> list[Any]:
        assert self._socket is not None
        room = socket.CMSG_LEN(num_files * array.array("i").itemsize)
        how, ancillary, _, _ = self._socket.recvmsg(1, room)
        if how == _BY_BYTES:
            return [bytearray(self._connection.recv_bytes()) for _ in range(num_files)]
        files = array.array("i")
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                files.frombytes(data[: len(data) - len(data) % files.itemsize])
        try:
            if len(files) != num_files:
                raise EOFError("the other side has ended")
            # Private pages: what the reader writes, nobody else sees.
            return [mmap.mmap(file, 0, access=mmap.ACCESS_COPY) for file in files]
        finally:
            for file in files:
                os.close(file)
