"""The last layer computes the wanted rows alone: to the bits of a step that wants them all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from tests.kernels.conftest import LEVELS, in_use
from tests.model.test_oracle import BLOCK_SIZE, make_checkpoint
from visiongate import kernels
from visiongate.model.inputs import ForwardBatch, KVPool, VisionFeatures
from visiongate.model.qwen3vl import Qwen3VL
from visiongate.model.text import SwiGLU
from visiongate.model.weights import load_model

PRECISIONS: tuple[kernels.Precision, ...] = ("float32", "bfloat16", "int8")


@dataclass(frozen=True)
class Chunk:
    """Some tokens of a sequence: how many, and how many stand in the cache before them."""

    num_tokens: int
    num_before: int = 0


PROMPT = [Chunk(90)]
LATER = [Chunk(70, 35)]
MIXED = [Chunk(1, 33), Chunk(4, 20), Chunk(50, 16), Chunk(1, 0), Chunk(40)]

CASES = {
    "the last row": (PROMPT, [89]),
    "none": (PROMPT, []),
    "drafts": (PROMPT, [86, 87, 88, 89]),
    "a later chunk's last row": (LATER, [69]),
    "a later chunk's drafts": (LATER, [67, 68, 69]),
    "answers, drafts, two prompts": (MIXED, [0, 1, 2, 3, 4, 55, 95]),
    "answers beside a prompt that goes on": (MIXED, [0, 4, 55]),
    "the ends of neighbours": (MIXED, [54, 55, 56]),
    "any rows in any order": (MIXED, [60, 2, 94, 95, 3, 60, 7, 20, 21]),
    "all but one": (PROMPT, list(range(1, 90))),
}


@dataclass
class Step:
    """A batch over a cache with random numbers for what was before it."""

    model: Qwen3VL
    chunks: list[Chunk]
    num_visual: int = 0
    num_taps: int = 0
    pool: KVPool = field(init=False)
    batch: ForwardBatch = field(init=False)

    def __post_init__(self) -> None:
        text = self.model.config.text
        generator = torch.Generator().manual_seed(5)
        lengths = [chunk.num_before + chunk.num_tokens for chunk in self.chunks]
        blocks = [-(-length // BLOCK_SIZE) for length in lengths]
        shape = (text.num_hidden_layers, sum(blocks), text.num_key_value_heads, BLOCK_SIZE)
        cached = torch.randn(2, *shape, text.head_dim, generator=generator)
        dtype = self.model.model.language_model.layers.at(0).mlp.down_proj.rows_dtype
        self.pool = KVPool(*cached.to(dtype))
        order = torch.randperm(sum(blocks), generator=generator).split(blocks)
        table = torch.zeros(len(blocks), max(blocks), dtype=torch.int32)
        slots = []
        for row, (chunk, own) in enumerate(zip(self.chunks, order, strict=True)):
            table[row, : len(own)] = own
            places = torch.arange(chunk.num_before, lengths[row])
            slots.append(own[places // BLOCK_SIZE] * BLOCK_SIZE + places % BLOCK_SIZE)
        sizes = [chunk.num_tokens for chunk in self.chunks]
        T, V = sum(sizes), self.num_visual
        embeddings = torch.randn(1 + self.num_taps, V, text.hidden_size, generator=generator)
        self.batch = ForwardBatch(
            token_ids=torch.randint(2, 80, (T,), generator=generator),
            positions=torch.randint(0, 99, (3, T), generator=generator),
            slot_mapping=torch.cat(slots),
            block_tables=table,
            cu_seqlens_q=torch.tensor([0, *sizes]).cumsum(0).int(),
            context_lens=torch.tensor(lengths, dtype=torch.int32),
            logits_rows=torch.arange(T),
            visual_rows=torch.arange(T - V - 1, T - 1) if V else None,
            features=VisionFeatures(embeddings[0], tuple(embeddings[1:])) if V else None,
        )

    def run(self, rows: list[int] | None = None) -> tuple[Tensor, KVPool]:
        """Logits of some rows, or of all, and the cache afterwards."""
        wanted = self.batch.logits_rows if rows is None else torch.tensor(rows, dtype=torch.int64)
        pool = KVPool(self.pool.keys.clone(), self.pool.values.clone())
        return self.model(replace(self.batch, logits_rows=wanted), pool), pool


@pytest.fixture(scope="module", params=LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    yield from in_use(request.param)


@pytest.fixture(scope="module", params=["tied", "odd head"])
def name(request: pytest.FixtureRequest) -> str:
    """Key maps that begin where a panel ends, and in the midst of one."""
    chosen: str = request.param
    return chosen


@pytest.fixture(scope="module", params=PRECISIONS)
def model(
    level: str,
    name: str,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Qwen3VL:
    path = make_checkpoint(tmp_path_factory.mktemp("ckpt") / "tiny", name, seed=7)
    return load_model(path, request.param)


def assert_same(level: str, ours: Tensor, expected: Tensor) -> None:
    """The same bits; plain torch promises its kernels' rounding only."""
    if level != "torch":
        assert torch.equal(ours, expected)
    else:
        assert torch.allclose(ours.float(), expected.float(), rtol=2e-2, atol=2e-2)


@torch.inference_mode()
@pytest.mark.parametrize(("chunks", "rows"), CASES.values(), ids=CASES)
def test_wanted_rows_have_the_bits_of_a_step_that_wants_all(
    level: str, model: Qwen3VL, chunks: list[Chunk], rows: list[int]
) -> None:
    step = Step(model, chunks)
    every, full = step.run()
    some, pool = step.run(rows)
    assert_same(level, some, every[rows])
    assert_same(level, pool.keys, full.keys)
    assert_same(level, pool.values, full.values)
    stored = pool.keys[-1].transpose(1, 2).flatten(0, 1)[step.batch.slot_mapping]
    before = step.pool.keys[-1].transpose(1, 2).flatten(0, 1)[step.batch.slot_mapping]
    assert not (stored == before).all(-1).any()  # of every token, in every head


@torch.inference_mode()
@pytest.mark.parametrize("num_taps", [1, 3, 4, 5])
@pytest.mark.parametrize("rows", [[89], [], [86, 87, 88, 89]])
def test_pictures_reach_the_wanted_rows(
    level: str, model: Qwen3VL, num_taps: int, rows: list[int]
) -> None:
    """Also where the last layer has a tap of its own: rows 69 to 88 are a picture's."""
    step = Step(model, PROMPT, num_visual=20, num_taps=num_taps)
    every, full = step.run()
    some, pool = step.run(rows)
    assert_same(level, some, every[rows])
    assert_same(level, pool.keys, full.keys)
    assert_same(level, pool.values, full.values)


@torch.inference_mode()
def test_few_rows_give_the_wanted_ones(
    level: str, model: Qwen3VL, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Step(model, [Chunk(1, 33), Chunk(20, 16)])
    called, pool = step.run([0, 20])
    monkeypatch.setattr(kernels, "MOST_DECODER_ROWS", 0)
    layered, other = step.run([0, 20])
    assert_same(level, called, layered)
    assert_same(level, pool.keys, other.keys)


@torch.inference_mode()
def test_the_last_layer_multiplies_wanted_rows_alone(
    level: str, model: Qwen3VL, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    forward = SwiGLU.forward

    def watch(self: SwiGLU, stream: Tensor, x: Tensor) -> Tensor:
        seen.append(len(x))
        return forward(self, stream, x)

    monkeypatch.setattr(SwiGLU, "forward", watch)
    step, others = Step(model, PROMPT), len(model.model.language_model.layers) - 1
    step.run([88, 89])
    assert seen == [90] * others + [2]
    seen.clear()
    step.run([])
    assert seen == [90] * others


def test_rows_of_a_batch_are_chunks_at_their_own_places() -> None:
    batch = ForwardBatch(
        token_ids=torch.arange(9),
        positions=torch.arange(27).view(3, 9),
        slot_mapping=torch.arange(9) + 100,
        block_tables=torch.tensor([[1, 2], [3, 0], [4, 5]], dtype=torch.int32),
        cu_seqlens_q=torch.tensor([0, 4, 5, 9], dtype=torch.int32),
        context_lens=torch.tensor([24, 7, 30], dtype=torch.int32),
        logits_rows=torch.arange(9),
    )
    some = batch.only(torch.tensor([1, 3, 4, 5, 6, 8]))
    assert some.cu_seqlens_q.tolist() == [0, 1, 2, 3, 5, 6]
    assert some.context_lens.tolist() == [22, 24, 7, 28, 30]
    assert some.block_tables.tolist() == [[1, 2], [1, 2], [3, 0], [4, 5], [4, 5]]
    assert some.token_ids.tolist() == [1, 3, 4, 5, 6, 8]
    assert some.positions[1].tolist() == [10, 12, 13, 14, 15, 17]
    assert some.slot_mapping.tolist() == [101, 103, 104, 105, 106, 108]
    assert some.logits_rows.tolist() == list(range(6))
    assert {some.cu_seqlens_q.dtype, some.context_lens.dtype, some.block_tables.dtype} == {
        torch.int32
    }
