"""Messages between processes: pixels go as descriptors where they can, as bytes where not."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from visiongate.engine import pipe as pipes
from visiongate.engine.pipe import MessagePipe, Sender, num_shared, share
from visiongate.engine.types import Image

needs_files = pytest.mark.skipif(not pipes.CAN_SHARE, reason="memory files are Linux's")


@pytest.fixture
def ends() -> Iterator[tuple[MessagePipe, MessagePipe]]:
    mine, theirs = socket.socketpair()
    found = MessagePipe(mine), MessagePipe(theirs)
    yield found
    for end in found:
        end.close()


def picture(seed: int, side: int = 512) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def num_open_files() -> int:
    """Descriptors of memory files that this process holds."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            found += "visiongate-pixels" in os.readlink(link)
    return found


def across(ends: tuple[MessagePipe, MessagePipe], message: object) -> Any:
    """A message sent from a thread, as large ones wait for their reader."""
    sender = threading.Thread(target=ends[0].send, args=(message,))
    sender.start()
    found = ends[1].receive()
    sender.join()
    return found


@needs_files
def test_shared_pixels_arrive_equal_and_outside_the_message(
    ends: tuple[MessagePipe, MessagePipe],
) -> None:
    images = [Image(share(picture(seed)), b"d", "PNG", 512, 512) for seed in range(3)]
    assert len(pipes._pack(images).rest) < 2000
    found = across(ends, images)
    for image, arrived in zip(images, found, strict=True):
        assert np.array_equal(image.pixels, arrived.pixels)
        assert arrived.pixels.flags.writeable  # torch warns of arrays that are not
        arrived.pixels[0] = 0
    assert np.array_equal(images[0].pixels, picture(0))  # what a worker writes stays there


@needs_files
def test_a_picture_that_is_sent_again_needs_no_new_file(
    ends: tuple[MessagePipe, MessagePipe],
) -> None:
    before = num_shared()
    pixels = share(picture(1))
    for _ in range(3):
        assert np.array_equal(across(ends, [pixels])[0], pixels)
    assert num_shared() == before + 1


@needs_files
def test_files_are_closed_with_their_pictures(ends: tuple[MessagePipe, MessagePipe]) -> None:
    gc.collect()
    before = num_open_files()
    kept = across(ends, share(picture(0)))
    assert num_open_files() > before
    for seed in range(20):
        across(ends, share(picture(seed)))
    del kept
    gc.collect()
    assert num_open_files() == before


def test_messages_without_pictures_and_small_pictures_travel_whole(
    ends: tuple[MessagePipe, MessagePipe],
) -> None:
    original = picture(1, side=32)
    original.flags.writeable = False  # as Pillow's are
    before = num_shared()
    small = share(original)
    assert num_shared() == before
    found = across(ends, {"text": "你好", "numbers": list(range(1000)), "pixels": small})
    assert found["text"] == "你好"
    assert np.array_equal(found["pixels"], original)
    assert found["pixels"].flags.writeable
    assert across(ends, np.zeros(3_000_000, np.uint8)).nbytes == 3_000_000


def test_where_there_are_no_memory_files_pixels_travel_in_the_message(
    ends: tuple[MessagePipe, MessagePipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipes, "CAN_SHARE", False)
    pixels = picture(2)
    assert share(pixels) is pixels
    assert np.array_equal(across(ends, pixels), pixels)


@needs_files
def test_no_more_files_are_opened_than_the_limit_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "_max_shared", lambda: num_shared() + 1)
    first = share(picture(1))
    monkeypatch.setattr(pipes, "_max_shared", num_shared)
    pixels = picture(2)
    assert share(pixels) is pixels
    assert not np.shares_memory(first, picture(1))

    def full(name: str, flags: int) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.undo()
    monkeypatch.setattr(os, "memfd_create", full)
    assert share(pixels) is pixels


@needs_files
def test_files_that_the_kernel_refuses_to_carry_are_sent_as_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ETOOMANYREFS: too many descriptors are under way between the processes of this user."""

    class Refusing(socket.socket):
        def sendmsg(self, *_: Any) -> int:
            raise OSError(errno.ETOOMANYREFS, "too many references")

    mine, theirs = socket.socketpair()
    sender, receiver = MessagePipe(Refusing(fileno=mine.detach())), MessagePipe(theirs)
    pixels = [share(picture(seed)) for seed in (1, 2)]
    found = across((sender, receiver), pixels)
    assert all(np.array_equal(a, b) for a, b in zip(pixels, found, strict=True))
    assert found[0].flags.writeable
    assert across((sender, receiver), "and the next message is in step") == (
        "and the next message is in step"
    )
    sender.close()
    receiver.close()


def test_an_end_that_is_gone_is_an_end_of_file(ends: tuple[MessagePipe, MessagePipe]) -> None:
    ends[0].close()
    with pytest.raises((EOFError, OSError)):
        ends[1].receive()


def test_what_was_sent_before_the_end_arrives_before_it(
    ends: tuple[MessagePipe, MessagePipe],
) -> None:
    ends[0].send("the reason")
    ends[0].close()
    assert ends[1].receive_ready() == ["the reason"]
    with pytest.raises(EOFError):
        ends[1].receive_ready()


def test_half_a_message_is_waited_for_by_a_worker_and_never_by_the_gateway() -> None:
    mine, theirs = socket.socketpair()
    receiver = MessagePipe(theirs)
    whole = bytes(pipes._pack("first").rest) + bytes(pipes._pack(["second"]).rest)
    mine.sendall(whole[:-3])
    assert receiver.receive_ready() == ["first"]
    assert receiver.receive_ready() == []
    later = threading.Timer(0.05, mine.sendall, args=(whole[-3:],))
    later.start()
    assert receiver.receive_begun(0.0) == [["second"]]
    assert receiver.receive_begun(0.0) == []
    later.join()
    mine.close()
    receiver.close()


@needs_files
def test_messages_that_arrive_together_keep_their_own_files(
    ends: tuple[MessagePipe, MessagePipe],
) -> None:
    sent: list[Any] = [share(picture(1)), "text", [share(picture(2)), share(picture(3))], "end"]
    for message in sent:
        ends[0].send(message)
    found = ends[1].receive_begun(1.0)
    assert len(found) == 4
    assert np.array_equal(found[0], sent[0])
    assert found[1::2] == ["text", "end"]
    assert all(np.array_equal(a, b) for a, b in zip(found[2], sent[2], strict=True))


@pytest.mark.parametrize("is_blocking", [True, False])
def test_a_sender_never_waits_and_keeps_the_order(
    ends: tuple[MessagePipe, MessagePipe], is_blocking: bool
) -> None:
    """Under uvloop pictures of 200 to 500 KB were lost: it makes what it watches non-blocking."""
    for end in ends:
        end._socket.setblocking(is_blocking)
    sender = Sender(ends[0])
    large = np.arange(1_000_000, dtype=np.uint8)
    sent = [0, large, 1, share(picture(4)), 2, large, *range(3, 100)]
    for message in sent:
        sender.send(message)  # nobody reads yet: a thread keeps what the pipe does not take
    for message in sent:
        assert np.array_equal(ends[1].receive(), message)
    sender.send("at once again")
    assert ends[1].receive() == "at once again"
    sender.close()


def test_a_message_to_an_end_that_is_gone_is_dropped(
    ends: tuple[MessagePipe, MessagePipe],
) -> None:
    sender = Sender(ends[0])
    ends[1].close()
    sender.send("one")
    sender.send(np.zeros(1_000_000, np.uint8))
    sender.close()
