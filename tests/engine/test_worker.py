"""What a worker sends, and when."""

from __future__ import annotations

import pickle

import numpy as np

from visiongate.engine.types import (
    Grammar,
    Image,
    ImageSpan,
    Prompt,
    Request,
    SamplingParams,
    TokenEvent,
    TokenLogprob,
    Usage,
)
from visiongate.engine.worker import Add, Events, HeldEvents

PROMPT = Prompt([1, 2], np.zeros((3, 2), np.int32), 0)


def request(name: str, *, is_streamed: bool) -> Request:
    return Request(name, PROMPT, SamplingParams(), is_streamed=is_streamed)


def news(name: str, text: str, *, is_last: bool = False) -> TokenEvent:
    return TokenEvent(name, text, 1, finish_reason="stop" if is_last else None)


def test_a_watched_answer_is_told_token_by_token() -> None:
    held = HeldEvents()
    held.begin(request("a", is_streamed=True))
    for event in (news("a", "T"), news("a", "o"), news("a", "t", is_last=True)):
        assert held.release([event]) == [event]


def test_the_news_of_an_unwatched_answer_goes_out_with_its_last() -> None:
    held = HeldEvents()
    held.begin(request("a", is_streamed=False))
    first, second, last = news("a", "T"), news("a", "o"), news("a", "t", is_last=True)
    assert held.release([first]) == []
    other = news("b", "x")  # somebody watches this one
    assert held.release([second, other]) == [other]
    assert held.release([last]) == [first, second, last]


def test_an_unwatched_answer_of_one_event_is_sent_at_once() -> None:
    held = HeldEvents()
    held.begin(request("a", is_streamed=False))
    only = news("a", "yes", is_last=True)
    assert held.release([only]) == [only]


def test_a_request_that_was_aborted_leaves_nothing_behind() -> None:
    held = HeldEvents()
    held.begin(request("a", is_streamed=False))
    held.release([news("a", "T")])
    held.release([news("a", "o")])
    held.forget("a")
    held.begin(request("a", is_streamed=False))
    again = news("a", "yes", is_last=True)
    assert held.release([again]) == [again]


def test_what_crosses_the_border_is_the_same_on_the_other_side() -> None:
    image = Image(np.ones((32, 32, 3), np.uint8), b"d" * 32, "PNG", 30, 31, warnings=("small",))
    prompt = Prompt([5, 6, 7], np.ones((3, 3), np.int32), 4, (ImageSpan(1, image),))
    params = SamplingParams(max_tokens=3, stop=("a", "b"), grammar=Grammar("json_object"))
    sent = Add(Request("r", prompt, params, b"salt", 1.5, 1, is_streamed=False))
    got = pickle.loads(pickle.dumps(sent, 5)).request
    assert got.prompt.token_ids == [5, 6, 7]
    assert got.prompt.spans[0].image.warnings == ("small",)
    assert np.array_equal(got.prompt.spans[0].image.pixels, image.pixels)
    for name in ("request_id", "params", "cache_salt", "deadline_seconds", "priority"):
        assert getattr(got, name) == getattr(sent.request, name)
    assert got.is_streamed is False
    logprob = TokenLogprob(3, "x", -0.5, ((4, "y", -1.0),))
    event = TokenEvent("r", "x", 1, (logprob,), "stop", Usage(7, 8, feature_hits=(True,)))
    assert pickle.loads(pickle.dumps(Events([event]), 5)) == Events([event])
