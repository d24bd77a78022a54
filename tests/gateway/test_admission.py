"""Places, the queue, deadlines and callers who leave."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.gateway.serving import (
    Server,
    base64_of,
    endless,
    events,
    example,
    question,
    wait_for,
)
from visiongate.errors import Busy
from visiongate.gateway.admission import Admission

TOTAL = "What is the total?"


@contextlib.contextmanager
def occupied(server: Server, number: int) -> Iterator[list[requests.Response]]:
    """`number` endless streams that run until the end of the block."""
    with ThreadPoolExecutor(number) as threads:
        opened = list(
            threads.map(
                lambda _: server.post(
                    "/v1/chat/completions", endless(stream=True, n=4), stream=True
                ),
                range(number),
            )
        )
    try:
        yield opened
    finally:
        for response in opened:
            response.close()
        wait_for(lambda: queue(server)["running"] == 0)


def queue(server: Server) -> dict[str, int]:
    found: dict[str, int] = server.get("/api/status").json()["queue"]
    return found


def test_three_run_and_the_fourth_sees_its_place(server: Server) -> None:
    """A52, A39."""
    with occupied(server, 3):
        wait_for(lambda: queue(server)["running"] == 3)
        body = {"image": base64_of(example()), "prompt": TOTAL, "stream": True}
        with server.post("/api/chat", body, stream=True) as fourth:
            lines = fourth.iter_lines()
            first, second = (next(line for line in lines if line) for _ in range(2))
        assert first == b"event: queue"
        assert second == b'data: {"position":1}'


def test_openai_clients_see_no_queue_events_unless_they_ask(server: Server) -> None:
    with occupied(server, 3):
        body = question(example(), TOTAL, stream=True)
        headers = {"X-VisionGate-Events": "queue"}
        for extra, is_seen in (({}, False), (headers, True)):
            with server.post("/v1/chat/completions", body, stream=True, headers=extra) as waiting:
                lines = waiting.iter_lines()
                start = time.monotonic()
                seen = [next(line for line in lines if line) for _ in range(2 if is_seen else 1)]
                assert time.monotonic() - start < 5
            assert (b"event: queue" in seen) == is_seen


def test_a_full_queue_says_when_to_come_back(tight_server: Server) -> None:
    with occupied(tight_server, 1):
        body = question(example(), TOTAL, stream=True)
        with tight_server.post("/v1/chat/completions", body, stream=True):
            wait_for(lambda: queue(tight_server)["waiting"] == 1)
            refused = tight_server.post("/v1/chat/completions", question(example(), TOTAL))
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_caller_who_leaves_frees_its_place_at_once(
    tight_server: Server, is_streamed: bool
) -> None:
    tight_server.post(
        "/v1/chat/completions", question(example(), TOTAL)
    )  # its picture is known now
    body = endless(stream=is_streamed)
    with (
        contextlib.suppress(requests.Timeout, requests.ConnectionError),
        requests.post(
            f"{tight_server.url}/v1/chat/completions", json=body, stream=True, timeout=1.0
        ) as response,
    ):
        next(response.iter_content(10))
    start = time.monotonic()
    answer = tight_server.post("/v1/chat/completions", question(example(), TOTAL))
    assert answer.json()["choices"][0]["message"]["content"] == "$20.47"
    assert time.monotonic() - start < 4
    assert queue(tight_server)["running"] == 0


def test_a_caller_who_leaves_while_the_picture_is_encoded_frees_its_place(
    tight_server: Server,
) -> None:
    from PIL import Image

    from tests.pictures import to_bytes

    noise = Image.effect_noise((1000, 1000), 90).convert("RGB")
    body = question(to_bytes(noise, "JPEG"), "What is this?", max_tokens=500)
    with contextlib.suppress(requests.Timeout):
        requests.post(f"{tight_server.url}/v1/chat/completions", json=body, timeout=0.15)
    wait_for(lambda: queue(tight_server)["running"] == 0, seconds=5)


def test_a_deadline_is_504_or_a_marked_partial_answer(server: Server) -> None:
    whole = server.post("/v1/chat/completions", endless(deadline_ms=300))
    assert whole.status_code == 504
    assert whole.json()["error"]["code"] == "deadline_exceeded"
    streamed = events(
        server.post("/v1/chat/completions", endless(deadline_ms=800, stream=True), stream=True)
    )
    assert streamed[-2][1]["choices"][0]["finish_reason"] == "deadline"


def test_a_deadline_passes_while_waiting(tight_server: Server) -> None:
    with occupied(tight_server, 1):
        body = question(example(), TOTAL, deadline_ms=300)
        start = time.monotonic()
        assert tight_server.post("/v1/chat/completions", body).status_code == 504
        assert time.monotonic() - start < 3


def test_a_looping_answer_is_stopped_and_says_so(server: Server) -> None:
    body = endless(repetition_guard=True)
    choice = server.post("/v1/chat/completions", body).json()["choices"][0]
    assert choice["finish_reason"] in {"repetition", "length", "stop"}


def test_a_modest_key_overtakes_a_greedy_one() -> None:
    admission = Admission(1, 100)
    holder = admission.join("greedy")
    greedy = [admission.join("greedy") for _ in range(10)]
    modest = admission.join("modest")
    assert modest.position == 1
    assert [ticket.position for ticket in greedy] == list(range(2, 12))
    admission.leave(holder)
    assert modest.is_admitted


def test_a_greedy_key_leaves_the_last_place_to_a_key_that_was_here_lately() -> None:
    admission = Admission(3, 100)
    admission.leave(admission.join("modest"))
    greedy = [admission.join("greedy") for _ in range(5)]
    assert [ticket.is_admitted for ticket in greedy] == [True, True, False, False, False]
    modest = admission.join("modest")
    assert modest.is_admitted
    admission.leave(greedy[0])  # the modest key has a place now: none is kept
    assert greedy[2].is_admitted
    admission.leave(modest)
    assert not greedy[3].is_admitted


def test_alone_a_key_has_every_place() -> None:
    admission = Admission(3, 100)
    assert all(admission.join("greedy").is_admitted for _ in range(3))
    single = Admission(1, 100)
    single.leave(single.join("modest"))
    assert single.join("greedy").is_admitted


def test_a_kept_place_is_free_for_all_once_the_other_key_stays_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody leaves and nobody joins: the waiting request itself looks again."""
    monkeypatch.setattr("visiongate.gateway.admission.LATELY_SECONDS", 0.05)
    admission = Admission(2, 100)
    admission.leave(admission.join("modest"))
    running, waiting = admission.join("greedy"), admission.join("greedy")
    assert running.is_admitted
    assert not waiting.is_admitted

    async def wait() -> list[int]:
        return [position async for position in admission.positions(waiting)]

    assert asyncio.run(asyncio.wait_for(wait(), 30)) == [1]
    assert waiting.is_admitted


def test_a_full_queue_makes_room_for_a_light_key() -> None:
    admission = Admission(1, 4)
    admission.join("greedy")
    greedy = [admission.join("greedy") for _ in range(4)]
    modest = admission.join("modest")
    assert greedy[-1].is_refused
    assert modest.position == 1
    with pytest.raises(Busy):
        admission.join("greedy")


def test_a_keys_own_bound_does_not_block_others() -> None:
    admission = Admission(3, 10)
    first = admission.join("bound", max_running=1)
    second = admission.join("bound", max_running=1)
    other = admission.join("free")
    assert first.is_admitted
    assert not second.is_admitted
    assert other.is_admitted
    admission.leave(first)
    assert second.is_admitted


def test_batch_work_leaves_a_place_and_goes_last() -> None:
    admission = Admission(3, 10)
    batch = [admission.join("a", priority=1) for _ in range(3)]
    assert [ticket.is_admitted for ticket in batch] == [True, True, False]
    now = admission.join("b")
    assert now.is_admitted
    later = admission.join("b")
    admission.leave(batch[0])
    assert later.is_admitted
    assert not batch[2].is_admitted


def test_leaving_frees_whatever_was_held() -> None:
    admission = Admission(1, 5)
    running, waiting = admission.join("a"), admission.join("b")
    admission.leave(waiting)
    admission.leave(running)
    assert (admission.num_running, admission.num_waiting) == (0, 0)
