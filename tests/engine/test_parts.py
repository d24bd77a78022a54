"""The engine's parts one by one: blocks, detokenizer, sampler, guard, guesses."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visiongate.engine.cache import BlockPool, FeatureCache
from visiongate.engine.drafts import MAX_DRAFT, propose
from visiongate.engine.guard import RepetitionGuard
from visiongate.engine.sampler import Sampler, token_logprob
from visiongate.engine.tokenizer import Detokenizer, Tokenizer
from visiongate.engine.types import SamplingParams
from visiongate.model.inputs import VisionFeatures

# ---- blocks


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=200), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_blocks_are_free_or_held_and_names_find_their_content(ops: list[int], size: int) -> None:
    """Random allocation, sharing and release against a plain model of what each block holds."""
    pool = BlockPool(size, 16)
    held: list[list[int]] = []
    content: dict[int, bytes] = {}
    for op in ops:
        rng = random.Random(op)
        match rng.randrange(4):
            case 0:
                block = pool.allocate()
                assert (block is None) == (
                    sum(1 for b in range(size) if any(b in h for h in held)) == size
                )
                if block is not None:
                    assert not any(block in blocks for blocks in held)
                    name = bytes([rng.randrange(20)])
                    content[block] = name
                    held.append([block])
                    pool.publish(block, name)
            case 1 if held:
                pool.release(held.pop(rng.randrange(len(held))))
            case 2:
                found = pool.match([bytes([rng.randrange(20)])])
                pool.hold(found)
                held.append(found)
            case _:
                name = bytes([rng.randrange(20)])
                for block in pool.match([name]):
                    assert content[block] == name
        distinct = {block for blocks in held for block in blocks}
        assert pool.num_held == len(distinct)
        assert pool.num_free + pool.num_held == size
    for blocks in held:
        pool.release(blocks)
    assert pool.num_free == size


def test_the_least_recently_freed_block_is_forgotten_first() -> None:
    pool = BlockPool(3, 16)
    blocks = [pool.allocate() for _ in range(3)]
    for index, block in enumerate(blocks):
        assert block is not None
        pool.publish(block, bytes([index]))
    pool.release([blocks[1]])  # type: ignore[list-item]
    pool.release([blocks[0]])  # type: ignore[list-item]
    assert pool.allocate() == blocks[1]
    assert pool.match([b"\x01"]) == []
    assert pool.match([b"\x00"]) == [blocks[0]]


def test_features_are_bounded_by_bytes_and_split_by_salt() -> None:
    cache = FeatureCache(max_bytes=3000)
    for index in range(5):
        cache.put(b"a", bytes([index]), VisionFeatures(torch.zeros(10, 25), ()))  # 1000 bytes
    assert cache.num_bytes == 3000
    assert cache.get(b"a", bytes([1])) is None
    assert cache.get(b"a", bytes([4])) is not None
    assert cache.get(b"b", bytes([4])) is None


# ---- text


TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60)


@given(TEXTS, st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_pieces_are_whole_characters_and_add_up(text: str, size: int) -> None:
    tokenizer = TOKENIZER
    tokens = tokenizer.encode_literally(text)
    detokenizer = Detokenizer(tokenizer)
    pieces = [
        detokenizer.add(tokens[start : start + size]) for start in range(0, len(tokens), size)
    ]
    pieces.append(detokenizer.finish())
    whole = tokenizer.decode(tokens)
    assert "".join(pieces) == whole
    if "\ufffd" not in whole:
        assert not any("\ufffd" in piece for piece in pieces)


@given(
    st.text(alphabet="abc", max_size=30),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3),
)
@settings(max_examples=200, deadline=None)
def test_stop_strings_cut_at_the_first_whatever_the_pieces(text: str, stops: list[str]) -> None:
    detokenizer = Detokenizer(TOKENIZER, tuple(stops))
    shown = ""
    for letter in text:
        shown += detokenizer.add(TOKENIZER.encode(letter))
    shown += detokenizer.finish()
    places = [text.find(stop) for stop in stops if stop in text]
    # Letters come one at a time, so the stop that is complete first wins.
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not places:
        assert shown == text
    else:
        first_end = min(ends)
        begin = min(
            p
            for p, stop in zip(places, [s for s in stops if s in text], strict=True)
            if p + len(stop) == first_end
        )
        assert shown == text[:begin]


def test_control_tokens_in_user_text_are_only_letters() -> None:
    for name in ("<|im_end|>", "<|image_pad|>", "<think>"):
        tokens = TOKENIZER.encode_literally(f"a{name}b")
        assert TOKENIZER.token_to_id(name) not in tokens
        assert TOKENIZER.decode(tokens, skip_special_tokens=False) == f"a{name}b"


# ---- sampling


def draws(
    params: SamplingParams, logits: list[float], count: int, prompt: list[int] | None = None
) -> list[int]:
    sampler = Sampler(params, prompt or [])
    return [sampler.draw(torch.tensor(logits)) for _ in range(count)]


def test_temperature_zero_takes_the_largest() -> None:
    assert draws(SamplingParams(temperature=0), [0.1, 3.0, 2.9], 5) == [1] * 5


def test_draws_follow_the_distribution() -> None:
    """3,000 draws from (0.6, 0.3, 0.1): each share within four standard deviations."""
    probabilities = torch.tensor([0.6, 0.3, 0.1])
    tokens = draws(SamplingParams(temperature=1, seed=1), probabilities.log().tolist(), 3000)
    for token, probability in enumerate(probabilities.tolist()):
        deviation = (3000 * probability * (1 - probability)) ** 0.5
        assert abs(tokens.count(token) - 3000 * probability) < 4 * deviation


@pytest.mark.parametrize(
    ("params", "allowed"),
    [
        (SamplingParams(temperature=1, top_k=2, seed=0), {0, 1}),
        (SamplingParams(temperature=1, top_p=0.5, seed=0), {0}),
        (SamplingParams(temperature=1, top_p=0.75, seed=0), {0, 1}),
        (SamplingParams(temperature=1, min_p=0.4, seed=0), {0, 1}),
        (SamplingParams(temperature=1, min_p=0.6, seed=0), {0}),
    ],
)
def test_filters_keep_what_they_should(params: SamplingParams, allowed: set[int]) -> None:
    logits = torch.tensor([0.55, 0.25, 0.15, 0.05]).log().tolist()
    assert set(draws(params, logits, 400)) == allowed


def test_penalties_move_the_choice() -> None:
    logits = torch.tensor([2.0, 1.9, 0.0])
    plain = Sampler(SamplingParams(), [])
    frequent = Sampler(SamplingParams(frequency_penalty=0.2), [])
    present = Sampler(SamplingParams(presence_penalty=0.2), [])
    repeated = Sampler(SamplingParams(repetition_penalty=1.2), [0])
    for sampler in (plain, frequent, present):
        sampler.commit(0)
    assert plain.draw(logits) == 0
    assert frequent.draw(logits) == present.draw(logits) == 1
    assert repeated.draw(logits) == 1  # the prompt counts for this one


def test_logprobs_are_normalised() -> None:
    entry = token_logprob(torch.tensor([1.0, 2.0, 3.0]), 1, 3, TOKENIZER)
    total = sum(torch.tensor(value).exp() for _, _, value in entry.top)
    assert float(total) == pytest.approx(1.0)
    assert entry.top[1][0] == 1
    assert entry.top[1][2] == entry.logprob


# ---- guard and guesses


def test_a_loop_is_noticed_and_a_table_is_not() -> None:
    guard = RepetitionGuard()
    for token in [1, 2, 3] + [7, 8] * 60:
        guard.add(token)
    assert guard.is_looping
    assert guard.num_repeated == 118
    table = RepetitionGuard()
    for row in range(80):
        for token in (5, 100 + row, 6, 200 + row, 9):
            table.add(token)
    assert not table.is_looping
    assert table.num_repeated == 0


def test_a_loop_that_ends_is_shown_after_all() -> None:
    guard = RepetitionGuard()
    for token in [4] * 40:
        guard.add(token)
    assert guard.num_repeated == 39
    guard.add(5)
    assert guard.num_repeated == 0


def test_a_guess_is_what_followed_the_same_words() -> None:
    history = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 2, 3, 4]
    assert propose(history) == [5, 6, 7, 8, 9, 10][:MAX_DRAFT]
    assert propose([1, 2, 3]) == []


def _load() -> Tokenizer:
    from tests.engine.conftest import WEIGHTS

    return Tokenizer.from_pretrained(WEIGHTS)


TOKENIZER = _load()
