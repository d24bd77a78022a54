"""What a worker sends, and when."""

from __future__ import annotations

import numpy as np

from visiongate.engine.types import Prompt, Request, SamplingParams, TokenEvent
from visiongate.engine.worker import HeldEvents

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


def test_of_an_unwatched_answer_the_first_news_goes_out_and_then_all_the_rest() -> None:
    held = HeldEvents()
    held.begin(request("a", is_streamed=False))
    first, second, last = news("a", "T"), news("a", "o"), news("a", "t", is_last=True)
    assert held.release([first]) == [first]
    assert held.release([second]) == []
    other = news("b", "x")  # somebody watches this one
    assert held.release([other, last]) == [other, second, last]


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
