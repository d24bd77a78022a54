"""The engine's promises: same words however they are computed, and nothing is ever lost."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from transformers import Qwen3VLForConditionalGeneration

from tests.engine.conftest import WEIGHTS, Desk
from tests.pictures import draw_receipt
from visiongate import kernels
from visiongate.engine.engine import Engine
from visiongate.engine.image import decode
from visiongate.engine.prompt import Message, PromptBuilder
from visiongate.engine.types import EngineSettings, Grammar, Image, Prompt, TokenLogprob
from visiongate.model.config import ModelConfig
from visiongate.model.vision import to_patches

MakeDesk = Callable[..., Desk]

READ = "Read all the text."
TOTAL = "What is the total?"


def test_the_total_of_a_receipt_is_read(desk: Desk) -> None:
    receipt = draw_receipt(0)
    assert desk.ask(TOTAL, decode(receipt.png)).text == receipt.total


def test_torch_leaves_the_processors_to_the_kernels() -> None:
    """Its threads spun for 5 ms after each cosine, on the processor of a thread of the kernels."""
    before = torch.get_num_threads()
    try:
        Engine.from_pretrained(WEIGHTS, EngineSettings(num_threads=2, cache_tokens=256))
        assert torch.get_num_threads() == (2 if kernels.backend() == "torch" else 1)
    finally:
        torch.set_num_threads(before)


def reference_text(model: Qwen3VLForConditionalGeneration, prompt: Prompt, count: int) -> list[int]:
    """Greedy tokens of transformers for one of our prompts."""
    config = ModelConfig.from_pretrained(WEIGHTS).vision
    frames = [
        to_patches(torch.from_numpy(np.array(span.image.pixels)), config) for span in prompt.spans
    ]
    patches = torch.cat(frames).view(-1, 3, 1, 256).expand(-1, 3, 2, 256).reshape(-1, 1536)
    ids = torch.tensor([prompt.token_ids])
    pads = (ids == model.config.image_token_id).int()
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=patches,
        image_grid_thw=torch.tensor([span.image.grid_thw for span in prompt.spans]),
        mm_token_type_ids=pads,
        max_new_tokens=count,
        do_sample=False,
    )
    tokens: list[int] = out[0, ids.shape[1] :].tolist()
    return tokens


@pytest.fixture(scope="module")
def reference() -> Qwen3VLForConditionalGeneration:
    return Qwen3VLForConditionalGeneration.from_pretrained(WEIGHTS, dtype=torch.float32).eval()


@pytest.mark.timeout(400)
def test_fifty_pictures_are_answered_like_the_reference(
    desk: Desk, builder: PromptBuilder, reference: Qwen3VLForConditionalGeneration
) -> None:
    questions = (TOTAL, "What is the store name?", READ, "How many items are listed?", "读出文字")
    with torch.inference_mode():
        for seed in range(50):
            receipt = draw_receipt(seed, width=256 + 32 * (seed % 5), height=512 - 32 * (seed % 3))
            image = decode(receipt.png)
            question = questions[seed % len(questions)]
            prompt = builder.build([Message("user", (image, question))])
            expected = builder.tokenizer.decode(reference_text(reference, prompt, 16))
            ours = desk.ask(question, image, max_tokens=16)
            assert ours.text == expected, f"seed {seed}"


def test_two_pictures_are_answered_like_the_reference(
    desk: Desk,
    builder: PromptBuilder,
    receipts: list[Image],
    reference: Qwen3VLForConditionalGeneration,
) -> None:
    prompt = builder.build([Message("user", (receipts[0], receipts[1], READ))])
    with torch.inference_mode():
        expected = builder.tokenizer.decode(reference_text(reference, prompt, 24))
    assert desk.ask(READ, receipts[0], receipts[1], max_tokens=24).text == expected


@pytest.fixture(scope="module")
def alone(
    model: object, tokenizer: object, builder: PromptBuilder, receipts: list[Image]
) -> list[str]:
    """Each receipt's text, asked one at a time of a cold engine without guesses."""
    from visiongate.engine.engine import Engine
    from visiongate.engine.types import EngineSettings

    texts = []
    for image in receipts:
        engine = Engine(model, tokenizer, EngineSettings(cache_tokens=4096, drafts=False))  # type: ignore[arg-type]
        texts.append(Desk(engine, builder).ask(READ, image).text)
    return texts


def test_together_each_gets_the_answer_it_gets_alone(
    make_desk: MakeDesk, receipts: list[Image], alone: list[str]
) -> None:
    desk = make_desk(max_num_seqs=3, max_prefills=2)
    keys = [desk.add(READ, image) for image in receipts]
    desk.run()
    assert [desk.answers[key].text for key in keys] == alone


@pytest.mark.parametrize("step_tokens", [16, 37, 1024])
def test_chunks_change_nothing(
    make_desk: MakeDesk, receipts: list[Image], alone: list[str], step_tokens: int
) -> None:
    desk = make_desk(max_step_tokens=step_tokens, slice_seconds=0.001)
    assert [desk.ask(READ, image).text for image in receipts] == alone


def test_a_warm_cache_changes_nothing_and_needs_no_tower(
    desk: Desk, receipts: list[Image], alone: list[str]
) -> None:
    cold = desk.ask(READ, receipts[0])
    patches = desk.engine.encoder.patches_encoded
    warm = desk.ask(READ, receipts[0])
    assert cold.text == warm.text == alone[0]
    assert cold.usage.cached_tokens == 0
    assert warm.usage.cached_tokens >= warm.usage.prompt_tokens - 2 * desk.engine.blocks.block_size
    assert warm.usage.feature_hits == (True,)
    assert desk.engine.encoder.patches_encoded == patches


def test_preemption_changes_nothing(
    make_desk: MakeDesk, receipts: list[Image], alone: list[str]
) -> None:
    """Two receipts need 2 * (211 + 48) tokens; a cache of 464 cannot hold both to the end."""
    desk = make_desk(cache_tokens=464)
    keys = [desk.add(READ, image) for image in receipts[:3]]
    desk.run()
    assert desk.engine.scheduler.num_preemptions > 0
    assert [desk.answers[key].text for key in keys] == alone[:3]


def test_guesses_change_nothing_and_save_steps(make_desk: MakeDesk) -> None:
    """Made to go on past its end, the model repeats itself, and prompt lookup guesses that."""
    picture = draw_receipt(1)
    counts, texts = [], []
    for drafts in (False, True):
        desk = make_desk(drafts=drafts)
        answer = desk.ask(READ, decode(picture.png), ignore_eos=True, guard=False, max_tokens=200)
        counts.append(desk.engine.stats().steps)
        texts.append(answer.text)
    assert texts[0] == texts[1]
    assert counts[1] < counts[0]


def test_a_stream_is_the_whole_in_pieces(
    desk: Desk, receipts: list[Image], alone: list[str]
) -> None:
    answer = desk.ask(READ, receipts[0])
    assert len([piece for piece in answer.pieces if piece]) > 5
    assert "".join(answer.pieces) == alone[0]
    assert answer.num_tokens == answer.usage.completion_tokens


def test_another_key_shares_nothing(desk: Desk, receipts: list[Image]) -> None:
    desk.ask(TOTAL, receipts[0], salt=b"one")
    patches = desk.engine.encoder.patches_encoded
    other = desk.ask(TOTAL, receipts[0], salt=b"two")
    assert other.usage.cached_tokens == 0
    assert other.usage.feature_hits == (False,)
    assert desk.engine.encoder.patches_encoded == 2 * patches


def test_pictures_with_equal_token_counts_never_share_cache(desk: Desk) -> None:
    """Their prompts are the same token ids: only the digest tells them apart."""
    first, second = draw_receipt(10), draw_receipt(11)
    assert first.total != second.total
    assert desk.ask(TOTAL, decode(first.png)).text == first.total
    answer = desk.ask(TOTAL, decode(second.png))
    assert answer.text == second.total
    assert answer.usage.cached_tokens < 16


def test_the_same_picture_twice_at_once_is_encoded_once(
    make_desk: MakeDesk, receipts: list[Image]
) -> None:
    desk = make_desk(max_prefills=2)
    keys = [desk.add(question, receipts[0]) for question in (TOTAL, READ)]
    desk.run()
    num_patches = receipts[0].num_tokens * 4
    assert desk.engine.encoder.patches_encoded == num_patches
    assert all(desk.answers[key].text for key in keys)


def test_abort_frees_everything_within_one_step(desk: Desk, receipts: list[Image]) -> None:
    """Also in the middle of encoding a picture, and of a prompt."""
    for steps in range(6):
        key = desk.add(READ, receipts[steps % 4], salt=bytes([steps]))
        for _ in range(steps):
            desk.step()
        desk.engine.abort(key)
        assert not desk.engine.has_work
        assert desk.engine.blocks.num_free == desk.engine.blocks.num_blocks
        assert not desk.engine.encoder.jobs


def test_random_traffic_ends_every_request_exactly_once(
    make_desk: MakeDesk, receipts: list[Image]
) -> None:
    rng = random.Random(7)
    desk = make_desk(cache_tokens=768, max_num_seqs=4, max_prefills=2)
    open_keys: list[str] = []
    aborted: set[str] = set()
    for _ in range(120):
        if rng.random() < 0.15 and len(desk.answers) < 20:
            image = [rng.choice(receipts)] if rng.random() < 0.7 else []
            open_keys.append(
                desk.add(rng.choice((TOTAL, READ)), *image, max_tokens=rng.randint(1, 20))
            )
        if open_keys and rng.random() < 0.05:
            key = rng.choice(open_keys)
            desk.engine.abort(key)
            aborted.add(key)
        desk.step()
    while desk.engine.has_work:
        desk.step()
    for key, answer in desk.answers.items():
        assert len(answer.finals) == 1 or (key in aborted and not answer.finals)
    assert desk.engine.blocks.num_free == desk.engine.blocks.num_blocks


def test_a_stream_goes_on_while_a_neighbour_is_encoded(
    make_desk: MakeDesk, receipts: list[Image]
) -> None:
    """With slices of nothing, each step encodes half a block and still gives the stream a token."""
    desk = make_desk(slice_seconds=0.0, drafts=False)
    stream = desk.add(READ, receipts[0], ignore_eos=True, guard=False)
    while desk.answers[stream].num_tokens < 3:
        desk.step()
    late = desk.add(TOTAL, receipts[1])
    tokens_before = desk.answers[stream].num_tokens
    steps = 0
    while not desk.answers[late].num_tokens and not desk.answers[stream].finals:
        desk.step()
        steps += 1
    stages = desk.engine.encoder.tower.num_stages
    assert steps >= stages
    assert desk.answers[stream].num_tokens - tokens_before >= stages


def test_a_deadline_ends_with_what_there_is(desk: Desk, receipts: list[Image]) -> None:
    key = desk.add(READ, receipts[0], deadline_seconds=0.5, ignore_eos=True, max_tokens=3000)
    start = time.monotonic()
    desk.run()
    assert desk.answers[key].finals[0].finish_reason in ("deadline", "repetition")
    assert time.monotonic() - start < 5


def test_the_length_limit_is_honest(desk: Desk, receipts: list[Image]) -> None:
    answer = desk.ask(READ, receipts[0], max_tokens=5)
    assert answer.finals[0].finish_reason == "length"
    assert answer.usage.completion_tokens == answer.num_tokens == 5


def test_a_prompt_over_the_context_is_refused_with_numbers(
    make_desk: MakeDesk, receipts: list[Image]
) -> None:
    desk = make_desk(cache_tokens=128)
    final = desk.ask(READ, receipts[0]).finals[0]
    assert "this server's context is 128" in str(final.error)


SCHEMA = {
    "type": "object",
    "properties": {
        "store": {"type": "string", "maxLength": 24},
        "total": {"type": "string", "pattern": r"^\$[0-9]+\.[0-9]{2}$"},
        "paid": {"type": "boolean"},
        "currency": {"const": "a rather long constant value"},
    },
    "required": ["store", "total", "paid", "currency"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_under_a_schema_every_answer_validates(
    desk: Desk, receipts: list[Image], temperature: float
) -> None:
    grammar = Grammar("json_schema", json.dumps(SCHEMA))
    for seed, image in enumerate(receipts):
        answer = desk.ask(
            TOTAL, image, grammar=grammar, temperature=temperature, seed=seed, max_tokens=200
        )
        assert answer.finals[0].finish_reason == "stop"
        jsonschema.validate(json.loads(answer.text), SCHEMA)


def test_what_a_grammar_forces_costs_no_step(make_desk: MakeDesk, receipts: list[Image]) -> None:
    desk = make_desk(drafts=False)
    desk.ask(TOTAL, receipts[0])
    before = desk.engine.stats().steps
    schema = {"const": {"a": ["one", "two", "three", "four", "five", "six", "seven"]}}
    answer = desk.ask(TOTAL, receipts[0], grammar=Grammar("json_schema", json.dumps(schema)))
    assert json.loads(answer.text) == schema["const"]
    assert answer.usage.completion_tokens > 3 * (desk.engine.stats().steps - before)


def test_an_impossible_grammar_is_the_callers_error(desk: Desk, receipts: list[Image]) -> None:
    answer = desk.ask(TOTAL, receipts[0], grammar=Grammar("json_schema", '{"type": "nothing"}'))
    assert "cannot be enforced" in str(answer.finals[0].error)


def test_a_loop_is_stopped_and_trimmed(desk: Desk) -> None:
    """A grammar that allows nothing but two words, six hundred times."""
    blank = decode_blank()
    grammar = Grammar("regex", "(?:spam |eggs ){600}")
    answer = desk.ask(TOTAL, blank, grammar=grammar, max_tokens=2000)
    assert answer.finals[0].finish_reason == "repetition"
    assert 1 <= len(answer.text.split()) < 60
    unguarded = desk.ask(TOTAL, blank, grammar=grammar, max_tokens=300, guard=False)
    assert unguarded.finals[0].finish_reason == "length"


def test_seeds_repeat_a_draw_alone_and_together(make_desk: MakeDesk, receipts: list[Image]) -> None:
    desk = make_desk()
    texts = set()
    for seed in range(6):
        options = {"temperature": 2.0, "seed": seed, "max_tokens": 24}
        first = desk.ask(READ, receipts[0], **options)
        keys = [desk.add(READ, receipts[0], **options) for _ in range(2)]  # type: ignore[arg-type]
        desk.run()
        assert {desk.answers[key].text for key in keys} == {first.text}
        texts.add(first.text)
    assert len(texts) > 1


def test_logprobs_are_the_models_own(desk: Desk, receipts: list[Image]) -> None:
    key = desk.add(TOTAL, receipts[0], num_logprobs=3, temperature=0.0)
    entries: list[TokenLogprob] = []
    while desk.engine.has_work:
        for event in desk.step():
            entries += event.logprobs
    assert len(entries) == desk.answers[key].usage.completion_tokens
    for entry in entries:
        assert entry.top[0][0] == entry.token_id  # greedy takes the most likely
        assert entry.logprob == pytest.approx(entry.top[0][2])
        assert entry.logprob <= 0


def test_stop_strings_across_tokens_never_show(
    desk: Desk, receipts: list[Image], alone: list[str]
) -> None:
    full = alone[0]
    for begin in range(2, len(full) - 4, 5):
        stop = full[begin : begin + 4]
        answer = desk.ask(READ, receipts[0], stop=(stop,))
        assert answer.text == full[: full.index(stop)]
        assert answer.finals[0].finish_reason == "stop"


def decode_blank() -> Image:
    from tests.pictures import to_bytes

    return decode(to_bytes(PILImage.new("RGB", (256, 256), "white")))


def test_a_temperature_next_to_nothing_is_greedy(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk()
    greedy = desk.ask("Hello there", max_tokens=8)
    for temperature in (1e-300, 5e-324, 1e-9):
        assert desk.ask("Hello there", max_tokens=8, temperature=temperature).text == greedy.text


def test_a_draw_that_fails_ends_its_own_request_only(
    make_desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = make_desk()
    alone = desk.ask("Hello there", max_tokens=8)
    good = desk.add("Hello there", max_tokens=8)
    bad = desk.add("Who are you?", max_tokens=8)
    while not desk.answers[bad].num_tokens:
        desk.step()
    broken = desk.engine._by_id[bad].sampler

    def fail(logits: object) -> int:
        raise IndexError("planted")

    monkeypatch.setattr(broken, "draw", fail)
    desk.run()
    assert desk.answers[good].text == alone.text
    assert desk.answers[bad].finals[0].error is not None
