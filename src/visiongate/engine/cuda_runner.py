"""Runs steps on a GPU: a graph for the answers, large products for the prompts, draws on the card.

    launch(N) ------------> GPU: graph N | prompt | picture slice
    launch(N + 1, after=N)  the answers' next step, given before N's tokens are known to the host
    N.wait() -> tokens      events, text and bookkeeping of N, while N + 1 runs

A prompt is computed by itself, in chunks that only its own length decides, and a decode row's
result does not depend on the other rows: a request's tokens are the same alone and in company.

Dimensions: B rows of a graph, R rows that draw at random, V vocabulary.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visiongate.engine.runner import (
    Launched,
    Output,
    Runner,
    pictures_of,
    positions_of,
    slots_of,
)
from visiongate.engine.sampler import Sampler
from visiongate.engine.scheduler import Chunk, prompt_part
from visiongate.engine.sequence import Sequence
from visiongate.kernels.cuda import ops
from visiongate.model.card_limits import CHUNK_TOKENS
from visiongate.model.cuda import (
    DRAW_WORDS,
    HOST_WORDS,
    CudaQwen3VL,
    DecodeState,
    PromptInputs,
    PromptState,
)
from visiongate.model.inputs import KVPool, VisionFeatures

BUCKETS = (1, 2, 4, 8, 16, 32, 48, 64)
"""Rows that a graph is captured for; a step uses the smallest that holds its rows."""

PROMPT_BUCKETS = tuple(range(32, CHUNK_TOKENS + 1, 32))
"""Tokens of a prompt's chunk that a graph is captured for."""

MAX_ROWS = 64
"""Rows of one graph; a step with more takes several."""

MAX_TOP_K = 1024
"""Up to here the candidates are selected, beyond it all logits are sorted."""

_IN_FLIGHT = 4
"""Sets of host buffers: one more than launches whose copies can be under way."""


@dataclass(slots=True, eq=False)
class LaunchedOnDevice(Launched):
    """A step under way on the device.

    Attributes:
        rows: for each sequence of the graph its row; what a step launched `after` this one reads.
        places: for each chunk whose token is drawn on the device its place among those tokens.
    """

    rows: dict[Sequence, int] = field(default_factory=dict)
    places: dict[int, int] = field(default_factory=dict)
    _tokens: Tensor | None = None
    _started: torch.cuda.Event | None = None
    _done: torch.cuda.Event | None = None

    @property
    def is_done(self) -> bool:
        """Whether the device has come to the end of it."""
        return self._done is None or self._done.query()

    def wait(self) -> list[Output]:
        """Waits for the device; then each chunk's token, logits (1, V), or None."""
        if self._done is not None:
            assert self._started is not None
            self._done.synchronize()
            self.seconds = self._started.elapsed_time(self._done) / 1e3
            self._done = None
        if self._tokens is not None:
            drawn = self._tokens.tolist()
            for index, place in self.places.items():
                self.outputs[index] = drawn[place]
            self._tokens = None
        return self.outputs


class CudaRunner(Runner):
    """The model on one GPU, its cache, and a graph for each number of rows.

    The pool's last block is nobody's: rows that fill a graph up write there.
    """

    is_beside = True

    def __init__(
        self,
        model: CudaQwen3VL,
        pool: KVPool,
        *,
        max_rows: int,
        max_context: int,
    ) -> None:
        super().__init__(pool)
        self.model = model
        self.max_context = max_context
        self.scratch_block = pool.num_blocks - 1
        largest = min(max_rows, MAX_ROWS)
        self.buckets = [*(size for size in BUCKETS if size < largest), largest]
        self.is_cuda = self.device.type == "cuda"
        self._num_blocks = -(-max_context // pool.block_size)
        self._drawn = torch.zeros(max_rows, dtype=torch.int32, device=self.device)
        num_parts = 2 * ops.num_parts(pool.num_blocks * pool.block_size) + 8 * max_rows
        # Rows that fill a graph up have a part each.
        self._room = num_parts
        self._space = model.decoder.attention_space(max_rows, num_parts + MAX_ROWS)
        self._states: dict[int, DecodeState] = {}
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._largest_prompt: PromptState | None = None
        self._prompt_states: dict[int, PromptState] = {}
        self._prompt_graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._graph_memory: Any = None
        self._side: torch.cuda.Stream | None = None
        self._last_tables: dict[int, list[list[int]]] = {}
        num_words = max_rows * (HOST_WORDS + self._num_blocks)
        self._stages = itertools.cycle(
            [self._host(num_words, torch.int32) for _ in range(_IN_FLIGHT)]
        )
        self._draw_space = ops.DrawSpace(max_rows, self.device)
        self._argmax = ops.ArgmaxSpace(1, self.device)
        self._token_buffers = itertools.cycle(
            [self._host(2 * max_rows, torch.int32) for _ in range(_IN_FLIGHT)]
        )
        model.decoder.prepare(max_context)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Captures every graph, the largest first: the others fit into its memory."""
        if not self.is_cuda:
            return
        tower, vision = self.model.visual, self.model.config.vision
        side = 1024 // vision.patch_size
        width = vision.in_channels * vision.patch_size**2
        black = torch.zeros(side * side, width, device=self.device)
        for _ in range(2):  # the second captures
            encoding = tower.begin(black, [(side, side)])
            tower.advance(encoding, tower.num_stages)
            tower.finish(encoding)
        for size in reversed(PROMPT_BUCKETS):
            self._prompt_state(size)
        for size in reversed(self.buckets):
            self._state(size)

    @torch.inference_mode()
    def launch(self, chunks: Seq[Chunk], after: Launched | None = None) -> LaunchedOnDevice:
        """Gives a step to the device and returns at once.

        With `after`, a chunk may stand for the token that `after` is about to draw.
        """
        assert after is None or isinstance(after, LaunchedOnDevice)
        decoding = [chunk for chunk in chunks if _is_decode(chunk)]
        prompts = [chunk for chunk in chunks if not _is_decode(chunk)]
        launched = self._launch_answers(decoding, after.rows if after else {}) if decoding else None
        rest = self._launch_prompts(prompts) if prompts else None
        if launched is None:
            assert rest is not None
            return rest
        launched.rest = rest
        launched.can_follow &= rest is None
        return launched

    def _launch_answers(
        self, chunks: list[Chunk], sources: dict[Sequence, int]
    ) -> LaunchedOnDevice:
        launched = self._begin(chunks)
        tokens: list[Tensor] = []
        groups = self._groups(chunks)
        for group in groups:
            drawn = self._decode(launched, group, sources, at=sum(map(len, tokens)))
            tokens.append(drawn if len(groups) == 1 else drawn.clone())  # the next writes there
        self._fetch(launched, tokens)
        launched.can_follow = len(tokens) == 1 and len(launched.places) == len(chunks)
        return launched

    def _launch_prompts(self, chunks: list[Chunk]) -> LaunchedOnDevice:
        launched = self._begin(chunks)
        tokens: list[Tensor] = []
        for index in range(len(chunks)):
            token = self._prompt(launched, index, at=len(tokens))
            if token is not None:
                tokens.append(token)
        self._fetch(launched, tokens)
        launched.draws = any(chunk.draws for chunk in chunks)
        return launched

    def _begin(self, chunks: list[Chunk]) -> LaunchedOnDevice:
        launched = LaunchedOnDevice(chunks, [None] * len(chunks))
        if self.is_cuda:
            launched._started = torch.cuda.Event(enable_timing=True)
            launched._started.record()
        return launched

    # ---- answers

    def _groups(self, chunks: Seq[Chunk]) -> list[list[int]]:
        """The chunks to decode, in groups whose attention fits the work space: mostly one."""
        groups: list[list[int]] = []
        room = 0
        for index in range(len(chunks)):
            need = ops.num_parts(chunks[index].start + 1)
            if need > room or len(groups[-1]) == MAX_ROWS:
                groups.append([])
                room = self._room
            groups[-1].append(index)
            room -= need
        return groups

    def _decode(
        self, launched: LaunchedOnDevice, decoding: list[int], sources: dict[Sequence, int], at: int
    ) -> Tensor:
        """Steps the given chunks; their tokens, int32 (rows,), are `at` on in the step's buffer."""
        chunks = [launched.chunks[index] for index in decoding]
        size = next(bucket for bucket in self.buckets if bucket >= len(chunks))
        state = self._state(size)
        self._fill(state, size, chunks, sources)
        if self.is_cuda:
            self._graphs[size].replay()
        else:
            self.model.decoder.decode(state, self.pool)
        for row, index in enumerate(decoding):
            sequence = launched.chunks[index].sequence
            launched.rows[sequence] = row
            if sequence.sampler.needs_host:
                launched.outputs[index] = state.logits[row : row + 1].clone()
                continue
            launched.places[index] = at + row
        self._draw_from_all(state.logits, state.drawn, chunks)
        return state.drawn[: len(chunks)]

    def _fill(
        self, state: DecodeState, size: int, chunks: list[Chunk], sources: dict[Sequence, int]
    ) -> None:
        """Puts tokens, places, draws and tables of the rows where the graph reads them."""
        stage = next(self._stages)
        host, end = stage.numpy(), HOST_WORDS * size
        draws = host[: DRAW_WORDS * size].view(np.float64).reshape(size, 6)
        draws[:] = 0
        inputs = host[DRAW_WORDS * size : end].reshape(5, size)
        inputs[:] = 0
        inputs[1] = -1
        rows: list[tuple[int, int, int, int, int]] = []
        part = 0
        for row, chunk in enumerate(chunks):
            sequence, place = chunk.sequence, chunk.start
            if _draws_from_few(sequence.sampler):
                draws[row] = _draw_settings(row, sequence.sampler)
            if place < len(sequence.token_ids):
                token, source = sequence.token_ids[place], -1
            else:
                token, source = 0, sources[sequence]
            rows.append((token, source, place, _rope_place(sequence, place), part))
            part += ops.num_parts(place + 1)
        inputs[:, : len(rows)] = np.asarray(rows, dtype=np.int32).T
        inputs[4, len(rows) :] = np.arange(part, part + size - len(rows))
        state.host.copy_(stage[:end], non_blocking=True)
        tables = [chunk.sequence.block_table for chunk in chunks]
        if self._last_tables.get(size) != tables:
            self._last_tables[size] = [list(table) for table in tables]
            width = max(map(len, tables))
            padded = host[end : end + width * size].reshape(size, width)
            padded[:] = self.scratch_block
            for row, table in enumerate(tables):
                padded[row, : len(table)] = table
            staged = stage[end : end + width * size].to(self.device, non_blocking=True)
            state.tables[:, :width].copy_(staged.view(size, width))

    def _state(self, size: int) -> DecodeState:
        """The tensors for `size` rows, and on a GPU their graph, made on first use."""
        if size not in self._states:
            decoder = self.model.decoder
            state = decoder.decode_state(
                size, self._num_blocks, self._drawn, self._space, self._draw_space
            )
            state.tables.fill_(self.scratch_block)
            state.inputs[1].fill_(-1)
            self._states[size] = state
            if self.is_cuda:
                drawn = self._drawn.clone()  # the step under way may still be followed
                self._graphs[size] = self._capture(
                    functools.partial(decoder.decode, state, self.pool)
                )
                self._drawn.copy_(drawn)
        return self._states[size]

    @torch.inference_mode()
    def _capture(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """The graph of some work, which is also done once: it must be harmless."""
        if self._side is None:  # of this card: torch's own is of the first that captured
            self._side = torch.cuda.Stream(self.device)
            self._graph_memory = torch.cuda.graph_pool_handle()
        stream, memory = self._side, self._graph_memory
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):  # compiles kernels, makes handles
            work()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # other threads ask for free memory meanwhile
        mode = "thread_local"
        with torch.cuda.graph(graph, pool=memory, stream=stream, capture_error_mode=mode):
            work()
        return graph

    # ---- prompts

    def _prompt(self, launched: LaunchedOnDevice, index: int, at: int) -> Tensor | None:
        """Computes one chunk of a prompt; its token (1,) if it is drawn on the device."""
        chunk = launched.chunks[index]
        decoder = self.model.decoder
        start, end = chunk.start, chunk.start + chunk.num_tokens
        while start < end:
            left = len(chunk.sequence.token_ids) - start
            T = min(prompt_part(left, PROMPT_BUCKETS[-1]), end - start)
            size = next(rows for rows in PROMPT_BUCKETS if rows >= T)
            state = self._prompt_state(size)
            decoder.fill(state, *self._stage(Chunk(chunk.sequence, start, T), size))
            if self.is_cuda:
                self._prompt_graphs[size].replay()
            else:
                decoder.compute(state, self.pool)
            start += T
        if not chunk.draws:
            return None
        logits = decoder.logits(state, T - 1)
        sampler = chunk.sequence.sampler
        if sampler.needs_host:
            launched.outputs[index] = logits
            return None
        launched.places[index] = at
        token = torch.empty(1, dtype=torch.int32, device=self.device)
        ops.argmax_rows(logits, self._argmax, token)
        if _draws_from_few(sampler):
            settings = self._tensor(np.asarray([_draw_settings(0, sampler)]))
            ops.draw_rows(logits, settings, self._argmax, self._draw_space, token)
        self._draw_from_all(logits, token, [chunk])
        return token

    def _stage(self, chunk: Chunk, size: int) -> tuple[Tensor, VisionFeatures | None]:
        """A chunk's inputs on the host, and the features that they refer to."""
        length = PromptInputs.length(size, self._num_blocks)
        staged = torch.empty(length, dtype=torch.int32, pin_memory=self.is_cuda)
        sequence, start, stop = chunk.sequence, chunk.start, chunk.start + chunk.num_tokens
        pictures = pictures_of(sequence, start, stop)
        PromptInputs.of(staged.numpy(), size, self._num_blocks).put(
            start,
            sequence.token_ids[start:stop],
            places=positions_of(sequence, start, stop),
            slots=slots_of(sequence, start, stop, self.pool.block_size),
            table=sequence.block_table,
            pictures=[(place, len(features.embeddings)) for place, features in pictures],
            scratch=self.scratch_block * self.pool.block_size,
        )
        parts = [features for _, features in pictures]
        return staged, VisionFeatures.concatenate(parts) if parts else None

    def _prompt_state(self, size: int) -> PromptState:
        """The tensors for chunks of up to `size` tokens and their graph, made on first use."""
        if size not in self._prompt_states:
            decoder = self.model.decoder
            num_taps = len(self.model.config.vision.deepstack_visual_indexes)
            if self._largest_prompt is None:
                largest = decoder.prompt_state(PROMPT_BUCKETS[-1], self._num_blocks, num_taps)
                self._largest_prompt = largest
            state = decoder.prompt_view(self._largest_prompt, size)
            # The last chunk's slots may be a living sequence's: capturing writes to nobody's.
            state.inputs.slots.fill_(self.scratch_block * self.pool.block_size)
            state.inputs.table.fill_(self.scratch_block)
            state.inputs.span.copy_(torch.tensor([0, size], dtype=torch.int32))
            self._prompt_states[size] = state
            if self.is_cuda:
                self._prompt_graphs[size] = self._capture(
                    functools.partial(decoder.compute, state, self.pool)
                )
        return self._prompt_states[size]

    # ---- draws

    def _draw_from_all(self, logits: Tensor, drawn: Tensor, chunks: Seq[Chunk]) -> None:
        """Draws for the rows whose top-k is too large for `ops.draw_rows`, into `drawn` (B,)."""
        many = {row: chunk.sequence.sampler for row, chunk in enumerate(chunks)}
        many = {row: s for row, s in many.items() if s.is_random and not _draws_from_few(s)}
        if many:
            where = self._tensor(np.asarray(list(many), dtype=np.int64))
            drawn.index_copy_(0, where, self._draw_many(logits[where], list(many.values())))

    def _draw_many(self, logits: Tensor, samplers: Seq[Sampler]) -> Tensor:
        """One token for each row of float32 logits (R, V), as `Sampler.draw` would: int32 (R,)."""
        params = [sampler.params for sampler in samplers]
        columns = [
            [p.temperature for p in params],
            [float(p.top_k or logits.shape[1]) for p in params],
            [p.top_p for p in params],
            [p.min_p for p in params],
        ]
        table = self._tensor(np.asarray(columns, dtype=np.float32))
        temperature, top_k, top_p, min_p = table[..., None]
        uniforms = self._tensor(np.asarray([sampler.uniform() for sampler in samplers]))
        largest = max(p.top_k if p.top_k else logits.shape[1] for p in params)
        logits = logits / temperature
        if largest <= MAX_TOP_K:
            logits, order = logits.topk(largest)
        else:
            logits, order = logits.sort(descending=True, stable=True)
        rank = torch.arange(logits.shape[1], device=logits.device)
        weights = logits.masked_fill(rank >= top_k, -torch.inf).softmax(-1)
        keep = weights > 0
        keep &= (weights.cumsum(-1) - weights < top_p) | (top_p >= 1)
        keep &= weights >= min_p * weights[:, :1]
        keep[:, 0] = True
        cumulative = (weights * keep).cumsum(-1).double()
        target = uniforms[:, None] * cumulative[:, -1:]
        where = torch.searchsorted(cumulative, target, right=True).clamp_(max=logits.shape[1] - 1)
        return order.gather(1, where)[:, 0].int()

    # ---- the way back

    def _fetch(self, launched: LaunchedOnDevice, tokens: list[Tensor]) -> None:
        """Starts the copy of the step's tokens to the host."""
        if tokens:
            buffer = next(self._token_buffers)
            drawn = tokens[0] if len(tokens) == 1 else torch.cat(tokens)
            launched._tokens = buffer[: len(drawn)]
            launched._tokens.copy_(drawn, non_blocking=True)
        if self.is_cuda:
            launched._done = torch.cuda.Event(enable_timing=True)
            launched._done.record()

    def _tensor(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.is_cuda:
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def _host(self, size: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(size, dtype=dtype, pin_memory=self.is_cuda)


def _is_decode(chunk: Chunk) -> bool:
    """Whether a chunk is one text token that draws: what a graph can compute."""
    if chunk.num_tokens != 1 or not chunk.draws:
        return False
    sequence, place = chunk.sequence, chunk.start
    if place >= sequence.num_prompt_tokens:
        return True
    time, height, width = sequence.request.prompt.positions[:, place]
    in_picture = any(span.start <= place < span.end for span in sequence.spans)
    return bool(time == height == width) and not in_picture


def _draws_from_few(sampler: Sampler) -> bool:
    """Whether `ops.draw_rows` draws the token."""
    return sampler.is_random and 0 < sampler.params.top_k <= ops.MOST_DRAWN


def _draw_settings(row: int, sampler: Sampler) -> tuple[float, ...]:
    p = sampler.params
    return (row, p.temperature, p.top_k, p.top_p, p.min_p, sampler.uniform())


def _rope_place(sequence: Sequence, place: int) -> int:
    prompt = sequence.request.prompt
    if place < sequence.num_prompt_tokens:
        return int(prompt.positions[0, place])
    return place + prompt.rope_delta
