"""Two keys on one engine: whose prompts and pictures go first."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.engine.conftest import Desk
from visiongate.engine.shares import CREDIT_SECONDS, Shares
from visiongate.engine.types import Image

MakeDesk = Callable[..., Desk]

TOTAL = "What is the total?"
READ = "Read all the text."


def test_a_newcomers_picture_goes_before_those_of_a_key_that_flooded(
    make_desk: MakeDesk, receipts: list[Image]
) -> None:
    """The greedy key's three pictures came first; the modest key's answer ends first."""
    desk = make_desk(max_num_seqs=4, slice_seconds=0.0)
    desk.ask(READ, receipts[3], salt=b"greedy")
    greedy = [desk.add(TOTAL, image, salt=b"greedy") for image in receipts[:3]]
    desk.step()
    assert desk.engine.encoder.jobs
    modest = desk.add(TOTAL, receipts[3], salt=b"modest")
    while not desk.answers[modest].finals:
        desk.step()
    assert not any(desk.answers[key].num_tokens for key in greedy)
    desk.run()


def test_a_flooding_keys_pictures_wait_while_a_newcomer_streams(
    make_desk: MakeDesk, receipts: list[Image]
) -> None:
    desk = make_desk(slice_seconds=0.0, drafts=False)
    desk.ask(READ, receipts[0], salt=b"modest")
    desk.ask(READ, receipts[3], salt=b"greedy")
    desk.engine.scheduler.shares.charge(100.0, {b"greedy": 1})
    desk.add(TOTAL, receipts[1], salt=b"greedy")
    desk.step()
    encoder = desk.engine.encoder
    modest = desk.add(READ, receipts[0], salt=b"modest", max_tokens=8)  # its picture is known
    desk.step()
    before = encoder.seconds
    while not desk.answers[modest].finals:
        desk.step()
    assert encoder.seconds == before
    desk.run()


def test_a_long_stream_of_one_key_does_not_hold_up_another_for_ever(
    make_desk: MakeDesk, receipts: list[Image]
) -> None:
    """What a key computes counts: once it had as much, the other's picture is encoded."""
    desk = make_desk(drafts=False)
    desk.ask(READ, receipts[3], salt=b"b")
    desk.engine.scheduler.shares.charge(0.05, {b"b": 1})
    stream = desk.add(READ, receipts[0], salt=b"a", ignore_eos=True, guard=False, max_tokens=2000)
    desk.step()
    late = desk.add(TOTAL, receipts[1], salt=b"b")
    while not desk.answers[late].finals:
        desk.step()
    assert not desk.answers[stream].finals
    desk.engine.abort(stream)


def test_answers_are_the_same_whoever_goes_first(
    make_desk: MakeDesk, receipts: list[Image]
) -> None:
    alone = [make_desk().ask(READ, image).text for image in receipts]
    desk = make_desk(max_num_seqs=4, max_prefills=2, slice_seconds=0.01)
    keys = [desk.add(READ, image, salt=bytes([i % 2])) for i, image in enumerate(receipts)]
    desk.run()
    assert [desk.answers[key].text for key in keys] == alone


def test_random_traffic_of_three_keys_in_short_memory_ends(
    make_desk: MakeDesk, receipts: list[Image]
) -> None:
    """Holding back never makes sequences wait for each other."""
    rng = random.Random(11)
    desk = make_desk(cache_tokens=768, max_num_seqs=4, max_prefills=2, slice_seconds=0.01)
    for _ in range(16):
        images = [rng.choice(receipts)] if rng.random() < 0.7 else []
        salt = rng.choice((b"a", b"a", b"b", b"c"))
        desk.add(TOTAL, *images, salt=salt, max_tokens=rng.randint(1, 12))
        for _ in range(rng.randint(0, 5)):
            desk.step()
    desk.run()


def test_a_pause_earns_no_more_than_the_credit() -> None:
    shares = Shares()
    assert shares.enter(b"a", ()) == 0.0
    shares.charge(10.0, {b"a": 1})
    assert shares.enter(b"b", {b"a"}) == 10.0 - CREDIT_SECONDS
    shares.charge(4.0, {b"a": 3, b"b": 1})
    assert (shares.of(b"a"), shares.of(b"b")) == (13.0, 10.0 - CREDIT_SECONDS + 1.0)
    assert shares.enter(b"a", {b"b"}) == 13.0
