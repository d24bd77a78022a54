"""The engine on a GPU against the engine on the CPU, on the embedded weights.

Without a GPU the same path runs through Triton's interpreter, on fewer and shorter answers.
"""

from __future__ import annotations

import dataclasses
import gc
import io
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image as PillowImage
from safetensors.torch import save_file

IS_CUDA = torch.cuda.is_available()
if not IS_CUDA:
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are defined

pytest.importorskip("triton")

from tests.engine.conftest import WEIGHTS, Desk  # noqa: E402  # after the variable is set
from tests.pictures import draw_receipt  # noqa: E402
from visiongate.engine import cuda_runner  # noqa: E402
from visiongate.engine.budget import CONTEXT_BYTES, gpu_budget, published  # noqa: E402
from visiongate.engine.engine import Engine, load  # noqa: E402
from visiongate.engine.image import decode  # noqa: E402
from visiongate.engine.prompt import PromptBuilder  # noqa: E402
from visiongate.engine.runner import Launched  # noqa: E402
from visiongate.engine.scheduler import Chunk  # noqa: E402
from visiongate.engine.tokenizer import Tokenizer  # noqa: E402
from visiongate.engine.types import EngineSettings, Grammar, Image, Precision  # noqa: E402
from visiongate.errors import InvalidSettings  # noqa: E402
from visiongate.kernels.cuda.weight8 import Matrix8, Storage  # noqa: E402
from visiongate.model.config import ModelConfig  # noqa: E402
from visiongate.model.cuda import CudaQwen3VL  # noqa: E402
from visiongate.model.qwen3vl import Qwen3VL  # noqa: E402
from visiongate.model.upload import load_on_device  # noqa: E402
from visiongate.model.weights import load_model  # noqa: E402

FILE = "model.safetensors"
DEVICE = "cuda:0" if IS_CUDA else "cpu"
cuda = pytest.mark.skipif(not IS_CUDA, reason="needs an NVIDIA GPU")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded weights; for the interpreter, which is slow, a random model of two layers."""
    if IS_CUDA:
        return WEIGHTS
    small = tmp_path_factory.mktemp("small")
    shutil.copytree(WEIGHTS, small, dirs_exist_ok=True)
    config = json.loads((WEIGHTS / "config.json").read_text())
    config["text_config"] |= {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 32,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    config["text_config"]["rope_parameters"]["mrope_section"] = [6, 5, 5]
    config["vision_config"] |= {
        "hidden_size": 64, "intermediate_size": 128, "depth": 2, "num_heads": 2,
        "out_hidden_size": 64, "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    (small / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(4)
    weights = {
        name: torch.randn(tensor.shape, generator=generator) / tensor.shape[-1] ** 0.5
        for name, tensor in Qwen3VL(ModelConfig.from_pretrained(small)).state_dict().items()
    }
    save_file(weights, small / "model.safetensors")
    return small


@pytest.fixture(scope="module")
def fused(folder: Path) -> CudaQwen3VL:
    return load_on_device(folder, torch.float32, torch.device(DEVICE))


@pytest.fixture(scope="module")
def model(folder: Path) -> Qwen3VL:
    """The CPU's: what `make_desk` uses here."""
    return load_model(folder)


@pytest.fixture
def make_fused(
    fused: CudaQwen3VL, tokenizer: Tokenizer, builder: PromptBuilder
) -> Callable[..., Desk]:
    """Makes engines on the GPU that share the loaded weights."""

    def make(**settings: object) -> Desk:
        base = EngineSettings(
            device=DEVICE, cache_tokens=2048, block_size=64, chunk_tokens=640, max_num_seqs=4
        )
        chosen = dataclasses.replace(base, **settings)  # type: ignore[arg-type]
        return Desk(Engine(fused, tokenizer, chosen), builder)

    return make


def rounded(folder: Path, storage: Storage, target: Path) -> Path:
    """The checkpoint in `folder` with the decoder's weights as they are held in 8 bits."""
    held = load_on_device(folder, torch.float32, torch.device("cpu"), storage).named()
    shutil.copytree(folder, target, dirs_exist_ok=True)
    everything = {
        name: found.lookup(torch.arange(len(found))) if isinstance(found, Matrix8) else found
        for name, found in held.items()
    }
    save_file({name: t.contiguous() for name, t in everything.items()}, target / FILE)
    return target


def plain_picture(width: int = 96, height: int = 64) -> Image:
    buffer = io.BytesIO()
    PillowImage.new("RGB", (width, height), (200, 30, 30)).save(buffer, "PNG")
    return decode(buffer.getvalue())


def receipt(seed: int) -> Image:
    return decode(draw_receipt(seed).png)


def test_float8_is_refused_on_the_cpu(folder: Path) -> None:
    with pytest.raises(InvalidSettings, match="float8 is for GPUs"):
        load(folder, EngineSettings(precision="float8"))


@pytest.mark.parametrize("precision", ["int8", "float8"])
def test_an_old_card_is_named_with_what_it_lacks(
    folder: Path, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 5))
    with pytest.raises(InvalidSettings, match=r"8\.0 or newer; cuda:0 has 7\.5"):
        load(folder, EngineSettings(device="cuda:0", precision=precision))


def test_short_answers_equal_the_cpus(
    make_fused: Callable[..., Desk], make_desk: Callable[..., Desk]
) -> None:
    """Greedy, drawn at random, under a grammar, with log probabilities; one after another."""
    picture = plain_picture()
    ours, theirs = make_fused(), make_desk()
    for params in (
        {},
        {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "seed": 5},
        {"temperature": 1.0, "min_p": 0.01, "seed": 6},
        {"grammar": Grammar("json_object")},
        {"num_logprobs": 2, "repetition_penalty": 1.1},
    ):
        ours_answer = ours.ask("Colour?", picture, max_tokens=4, **params)
        theirs_answer = theirs.ask("Colour?", picture, max_tokens=4, **params)
        assert ours_answer.text == theirs_answer.text, params
        assert ours_answer.finals[0].finish_reason == theirs_answer.finals[0].finish_reason
        assert ours_answer.usage.completion_tokens == theirs_answer.usage.completion_tokens


def test_together_as_alone(make_fused: Callable[..., Desk], make_desk: Callable[..., Desk]) -> None:
    """Answers of different lengths leave and join the graph's rows; each stays what it was."""
    ours, theirs = make_fused(), make_desk()
    asks = [("Hello", 3), ("Who are you?", 6), ("One two", 1)]
    keys = [ours.add(question, max_tokens=count) for question, count in asks]
    ours.run()
    for key, (question, count) in zip(keys, asks, strict=True):
        assert ours.answers[key].text == theirs.ask(question, max_tokens=count).text


def recording(engine: Engine, seen: list[Launched]) -> Callable[..., Launched]:
    """The engine's way to launch, which also keeps what it launched."""
    launch = engine.runner.launch

    def record(chunks: list[Chunk], after: Launched | None = None) -> Launched:
        seen.append(launch(chunks, after))
        return seen[-1]

    return record


def test_a_prompts_parts_give_the_same_in_one_step_or_in_several(
    make_fused: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than one chunk's worth of words: how many parts a step takes changes no bit."""
    monkeypatch.setattr(cuda_runner, "PROMPT_BUCKETS", (64, 128))  # the interpreter is slow
    logits: list[torch.Tensor] = []
    for tokens in (1, 5000):
        desk = make_fused(max_step_tokens=5000, chunk_tokens=128)
        monkeypatch.setattr(desk.engine._pace, "prompt_tokens", lambda _, tokens=tokens: tokens)
        key = desk.add("one two three " * 45, max_tokens=1, num_logprobs=1)
        seen: list[Launched] = []
        monkeypatch.setattr(desk.engine.runner, "launch", recording(desk.engine, seen))
        desk.run()
        assert desk.answers[key].finals
        chunks = [chunk for launched in seen for chunk in launched.chunks]
        assert sum(chunk.num_tokens for chunk in chunks) > 128
        assert len(chunks) == (2 if tokens == 1 else 1)
        outputs = [output for launched in seen for output in launched.outputs]
        logits += [output for output in outputs if isinstance(output, torch.Tensor)]
    alone, together = logits
    assert torch.equal(alone, together)


def test_an_abort_between_a_step_and_the_next_under_way(make_fused: Callable[..., Desk]) -> None:
    """The step that was launched ahead for it is dropped, its blocks are free at once."""
    ours = make_fused()
    first = ours.add("Hello there", max_tokens=30, ignore_eos=True)
    while ours.answers[first].num_tokens < 2:
        ours.step()
    assert ours.engine._ahead is not None
    ours.engine.abort(first)
    del ours.answers[first]
    assert ours.engine.blocks.num_free == ours.engine.blocks.num_blocks
    second = ours.ask("Who are you?", max_tokens=4)
    assert second.text == make_fused().ask("Who are you?", max_tokens=4).text


@pytest.mark.parametrize("storage", ["int8", "float8"])
def test_weights_in_8_bits_answer_as_the_cpu_does_with_the_same_weights(
    folder: Path,
    tmp_path: Path,
    storage: Storage,
    tokenizer: Tokenizer,
    builder: PromptBuilder,
) -> None:
    """Together, alone, greedy and drawn: exact but for the order of additions in float32."""
    held = load_on_device(folder, torch.float32, torch.device(DEVICE), storage)
    settings = EngineSettings(
        device=DEVICE, cache_tokens=2048, block_size=64, chunk_tokens=640, max_num_seqs=4
    )
    ours = Desk(Engine(held, tokenizer, settings), builder)
    model = load_model(rounded(folder, storage, tmp_path / "rounded"))
    theirs = Desk(Engine(model, tokenizer, EngineSettings(cache_tokens=2048)), builder)
    asks = [("Hello", 3), ("One two", 2)]
    keys = [ours.add(question, max_tokens=count) for question, count in asks]
    ours.run()
    for key, (question, count) in zip(keys, asks, strict=True):
        assert ours.answers[key].text == theirs.ask(question, max_tokens=count).text
    if storage == "float8" and not IS_CUDA:
        return  # the interpreter takes its time
    drawn = {"temperature": 0.8, "top_k": 20, "seed": 5}
    ours_answer = ours.ask("Colour?", plain_picture(), max_tokens=3, **drawn)
    assert ours_answer.text == theirs.ask("Colour?", plain_picture(), max_tokens=3, **drawn).text


@pytest.mark.parametrize("storage", ["int8", "float8"])
def test_the_embedded_model_reads_totals_with_weights_in_8_bits(
    tmp_path: Path, storage: Storage, tokenizer: Tokenizer, builder: PromptBuilder
) -> None:
    """What rounding costs: nothing here. The CPU computes, in float32, with the rounded weights."""
    model = load_model(rounded(WEIGHTS, storage, tmp_path))
    desk = Desk(Engine(model, tokenizer, EngineSettings(cache_tokens=4096)), builder)
    receipts = [draw_receipt(seed) for seed in range(6)]
    answers = [desk.ask("What is the total?", decode(found.png)).text for found in receipts]
    assert answers == [found.total for found in receipts]


def test_weights_are_quantised_alike_in_pieces_of_any_size(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device(DEVICE)
    whole = load_on_device(folder, torch.float32, device, "int8").named()
    monkeypatch.setattr("visiongate.model.upload.QUANTISED_PIECE_BYTES", 1000)
    for name, found in load_on_device(folder, torch.float32, device, "int8").named().items():
        expected = whole[name]
        if isinstance(found, Matrix8) and isinstance(expected, Matrix8):
            assert torch.equal(found.scale, expected.scale), name
            assert torch.equal(found.values, expected.values), name
        else:
            assert isinstance(found, torch.Tensor)
            assert isinstance(expected, torch.Tensor)
            assert torch.equal(found, expected), name


@pytest.mark.parametrize(
    ("precision", "storage"), [("bfloat16", None), ("int8", "int8"), ("float8", "float8")]
)
def test_the_budget_of_a_card_counts_the_model_s_own_tensors(
    precision: Precision, storage: Storage | None
) -> None:
    config = published("Qwen/Qwen3-VL-4B-Instruct")
    assert config is not None
    model = CudaQwen3VL(config, torch.bfloat16, torch.device("meta"), storage)
    held = sum(target.nbytes for target in model.named().values())
    need = gpu_budget(config, precision, cache_tokens=0, max_rows=1)
    assert held == pytest.approx(need.weights_bytes, rel=0.003)  # scales are not counted


@cuda
@pytest.mark.cuda
def test_receipts_read_as_on_the_cpu(
    make_fused: Callable[..., Desk], make_desk: Callable[..., Desk]
) -> None:
    ours, theirs = make_fused(max_num_seqs=16, cache_tokens=32768), make_desk(cache_tokens=8192)
    questions = ["What is the total?", "Read all text.", "What is the date?", "List the items."]
    asks = []
    for seed in range(12):
        picture = receipt(seed)
        asks += [(question, picture) for question in questions]
    keys = [ours.add(question, picture) for question, picture in asks]
    ours.run()
    for key, (question, picture) in zip(keys, asks, strict=True):
        alone = make_fused().ask(question, picture)
        assert ours.answers[key].text == alone.text  # in any company
        assert alone.text == theirs.ask(question, picture).text  # and as on the CPU


@cuda
@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["bfloat16", "int8", "float8"])
def test_bfloat16_in_any_company_twice(
    precision: Precision, tokenizer: Tokenizer, builder: PromptBuilder
) -> None:
    """With weights of any size; the totals are read right."""
    settings = EngineSettings(
        precision=precision, device=DEVICE, cache_tokens=65536, block_size=64, max_num_seqs=32,
        chunk_tokens=640,
    )  # fmt: skip
    model = load(WEIGHTS, settings)
    pictures = [receipt(seed) for seed in range(8)]
    asks = [
        (question, picture, seed)
        for seed, picture in enumerate(pictures)
        for question in ("What is the total?", "Read all text.")
    ]

    def answers(together: int) -> list[str]:
        desk = Desk(Engine(model, tokenizer, settings), builder)
        texts = []
        for begin in range(0, len(asks), together):
            keys = [
                desk.add(q, p, temperature=0.5 * (seed % 2), seed=seed)
                for q, p, seed in asks[begin : begin + together]
            ]
            desk.run()
            texts += [desk.answers[key].text for key in keys]
        return texts

    alone = answers(1)
    totals = [draw_receipt(seed).total for seed in range(8)]
    assert alone[0::4] == totals[0::2]  # the greedy ones
    assert answers(16) == alone
    assert answers(16) == alone
    assert answers(5) == alone


@cuda
@pytest.mark.cuda
def test_the_second_card_answers_as_the_first(tokenizer: Tokenizer, builder: PromptBuilder) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one card")
    texts = []
    try:
        for device in ("cuda:1", "cuda:0"):
            settings = EngineSettings(
                precision="bfloat16", device=device, cache_tokens=16384, block_size=64,
                chunk_tokens=640,
            )  # fmt: skip
            engine = Engine(load(WEIGHTS, settings), tokenizer, settings)
            engine.warm_up()
            desk = Desk(engine, builder)
            texts.append([desk.ask("Read all text.", receipt(seed)).text for seed in range(3)])
    finally:
        torch.cuda.set_device(0)
    assert texts[0] == texts[1]


@cuda
@pytest.mark.cuda
def test_a_limit_of_memory_holds(tokenizer: Tokenizer, builder: PromptBuilder) -> None:
    """The cache takes what is left of it, and answers are the same."""
    gc.collect()
    torch.cuda.empty_cache()
    limit = CONTEXT_BYTES + torch.cuda.memory_reserved() + 1_200_000_000
    wanted = EngineSettings(
        precision="int8", device=DEVICE, cache_tokens=1 << 20, block_size=64, chunk_tokens=640,
        device_memory_bytes=limit,
    )  # fmt: skip
    try:
        engine = Engine(load(WEIGHTS, wanted), tokenizer, wanted)
        engine.warm_up()
        desk = Desk(engine, builder)
        assert desk.ask("What is the total?", receipt(1)).text == draw_receipt(1).total
        assert engine.blocks.num_blocks < wanted.cache_tokens // wanted.block_size
        assert torch.cuda.memory_reserved() <= limit - CONTEXT_BYTES
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@cuda
@pytest.mark.cuda
def test_two_thousand_mixed_requests_leave_memory_as_it_was(
    fused: CudaQwen3VL, tokenizer: Tokenizer, builder: PromptBuilder
) -> None:
    """Every answer equals the one given alone; aborts, short caches and preemption in between."""
    settings = EngineSettings(
        device=DEVICE, cache_tokens=8192, block_size=64, max_num_seqs=32, chunk_tokens=640
    )
    desk = Desk(Engine(fused, tokenizer, settings), builder)
    pictures = [receipt(seed) for seed in range(10)]
    questions = ["What is the total?", "What is the date?", "Who served?", "Read all text."]
    alone = {
        (question, index): desk.ask(question, picture).text
        for question in questions
        for index, picture in enumerate(pictures)
    }
    choices = random.Random(3)
    keys: dict[str, tuple[str, int]] = {}
    before = 0
    for number in range(2000):
        question, index = choices.choice(questions), choices.randrange(len(pictures))
        key = desk.add(question, pictures[index], salt=bytes([choices.randrange(4)]))
        if choices.random() < 0.1:
            desk.step()
            desk.engine.abort(key)
            del desk.answers[key]
        else:
            keys[key] = (question, index)
        if number % 40 == 39:
            desk.run()
        if number == 400:
            before = torch.cuda.memory_reserved()
    desk.run()
    assert all(desk.answers[key].text == alone[what] for key, what in keys.items())
    assert torch.cuda.memory_reserved() <= before * 1.02
