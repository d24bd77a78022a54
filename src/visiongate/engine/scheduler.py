"""Decides what each step computes, and owns the cache blocks that it needs for that.

One token budget, no phases: first every running answer gets its next token, then prompts are
computed in chunks with what is left, then waiting sequences are let in. Prompts and pictures of a
key that had more of the device than others wait while those have something to do.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from visiongate.engine.cache import BlockPool
from visiongate.engine.pace import Load
from visiongate.engine.sequence import Sequence
from visiongate.engine.shares import Shares

SHORT_PROMPT = 32
"""Prompt tokens that nobody is held back for: they take about as long as one step of answers."""

_PART_STEP = 128

LEAST_BEFORE_PICTURE = 64
"""Fewer tokens before a picture wait for it: alone they would cost a way through all weights."""


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Tokens of one sequence for one step: `num_tokens` from `start` on, drafts included."""

    sequence: Sequence
    start: int
    num_tokens: int

    @property
    def draws(self) -> bool:
        """Whether the chunk reaches the last token, so that the next can be drawn."""
        return self.start + self.num_tokens >= len(self.sequence.token_ids)

    @property
    def is_prompt(self) -> bool:
        """Whether it computes a prompt, rather than going on with an answer."""
        return self.start < self.sequence.num_prefill_tokens - 1


class Scheduler:
    """Waiting and running sequences, and their blocks.

    After each call the held blocks are exactly those in the block tables of running sequences.
    """

    def __init__(
        self, pool: BlockPool, *, max_num_seqs: int, max_prefills: int, chunk_tokens: int = 0
    ) -> None:
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self.max_prefills = max_prefills
        self.chunk_tokens = chunk_tokens
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.shares = Shares()
        self.num_preemptions = 0

    @property
    def num_streaming(self) -> int:
        """Running sequences that are past their prompt."""
        return sum(1 for sequence in self.running if not sequence.is_prefilling)

    @property
    def load(self) -> Load:
        """How many stream, and how many do not yet."""
        num_streaming = self.num_streaming
        return Load(num_streaming, len(self.running) + len(self.waiting) - num_streaming)

    @property
    def has_other_work(self) -> bool:
        """Whether there is more to do than the next token of every answer."""
        if self.waiting and len(self.running) < self.max_num_seqs:
            return True
        return any(sequence.is_prefilling or sequence.needed_images() for sequence in self.running)

    def add(self, sequence: Sequence) -> None:
        """Puts a sequence behind those of its priority."""
        active = {other.salt for other in (*self.waiting, *self.running)}
        sequence.turn = self.shares.enter(sequence.salt, active)
        bisect.insort(self.waiting, sequence, key=_order)

    def schedule(self, token_budget: int, prefill_budget: int) -> list[Chunk]:
        """The chunks of the next step.

        Args:
            token_budget: the most tokens of the step.
            prefill_budget: the most tokens of prompts among them.
        """
        self._admit()
        chunks = self._next_tokens(token_budget)
        room = min(prefill_budget, token_budget - sum(chunk.num_tokens for chunk in chunks))
        chunks += self._prefill(room, chunks)
        if not chunks and self._is_stuck():
            self._preempt(self.running[-1])
            return self.schedule(token_budget, prefill_budget)
        return chunks

    def commit(self, sequence: Sequence, num_computed_tokens: int) -> None:
        """Records what a step computed, and lets others share the blocks that are now full."""
        size = self.pool.block_size
        full = slice(sequence.num_computed_tokens // size, num_computed_tokens // size)
        sequence.num_computed_tokens = num_computed_tokens
        sequence.drop_used_features()
        if full.start < full.stop:
            names = sequence.namer.extend(sequence.token_ids[:num_computed_tokens])
            for block, name in zip(sequence.block_table[full], names[full], strict=True):
                self.pool.publish(block, name)

    def remove(self, sequence: Sequence) -> None:
        """Ends a sequence, wherever it is; its blocks are free at once."""
        if sequence in self.running:
            self.running.remove(sequence)
            self.pool.release(sequence.block_table)
            sequence.block_table = []
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def is_held(self, sequence: Sequence, chunks: Seq[Chunk]) -> bool:
        """Whether its long prompt and pictures wait: this step has work of a key that had less."""
        return any(
            chunk.sequence.salt != sequence.salt
            and self.shares.of(chunk.sequence.salt) < sequence.turn
            for chunk in chunks
        )

    def _admit(self) -> None:
        """Lets waiting sequences in while there is a place and room for their prompts."""
        while self.waiting and len(self.running) < self.max_num_seqs:
            sequence = self.waiting[0]
            size = self.pool.block_size
            names = sequence.namer.extend(sequence.token_ids)
            reusable = (len(sequence.token_ids) - 1) // size  # the last token must be computed
            shared = self.pool.match(names[:reusable])
            self.pool.hold(shared)
            wanted = -(-(len(sequence.token_ids) + 1) // size) - len(shared)
            if wanted > self.pool.num_free and self.running:
                self.pool.release(shared)
                return
            self.waiting.pop(0)
            self.running.append(sequence)
            sequence.block_table = shared
            sequence.num_computed_tokens = len(shared) * size
            sequence.num_prefill_tokens = len(sequence.token_ids)
            if not sequence.preemptions:
                sequence.num_cached_tokens = sequence.num_computed_tokens

    def _next_tokens(self, budget: int) -> list[Chunk]:
        """One chunk for every sequence past its prompt: its pending token, forced ones, drafts."""
        chunks = []
        for sequence in list(self.running):
            if sequence.is_prefilling or sequence not in self.running or sequence.needed_images():
                continue
            pending = len(sequence.token_ids) - sequence.num_computed_tokens
            if pending + len(sequence.draft) > budget or not self.reserve(sequence, drafts=True):
                sequence.draft = []
            if pending > budget or not self._reserve_or_preempt(sequence):
                continue
            count = pending + len(sequence.draft)
            budget -= count
            chunks.append(Chunk(sequence, sequence.num_computed_tokens, count))
        return [chunk for chunk in chunks if chunk.sequence in self.running]

    def _prefill(self, budget: int, others: Seq[Chunk]) -> list[Chunk]:
        """Chunks of the prompts that can go on, beside the `others` of this step."""
        chunks: list[Chunk] = []
        for sequence in sorted(self.running, key=lambda sequence: sequence.turn):
            if len(chunks) == self.max_prefills or budget <= 0:
                break
            if not (sequence.is_prefilling or sequence.needed_images()):
                continue
            count = self._chunk_size(sequence, budget)
            if chunks and count > budget:
                break
            if count > SHORT_PROMPT and self.is_held(sequence, (*others, *chunks)):
                continue
            if count > 0 and self.reserve(sequence, sequence.num_computed_tokens + count):
                sequence.draft = []
                chunks.append(Chunk(sequence, sequence.num_computed_tokens, count))
                budget -= count
        return chunks

    def _chunk_size(self, sequence: Sequence, budget: int) -> int:
        """How many tokens of a prompt to compute now; 0 while it waits for a picture."""
        if not self.chunk_tokens:
            left = sequence.num_ready_tokens - sequence.num_computed_tokens
            if left < LEAST_BEFORE_PICTURE and sequence.needed_images():
                return 0
            return -(-left // max(1, -(-left // budget)))  # even parts: no short one at the end
        if sequence.needed_images():
            return 0
        left = len(sequence.token_ids) - sequence.num_computed_tokens
        count = prompt_part(left, self.chunk_tokens)
        while count < left:
            more = prompt_part(left - count, self.chunk_tokens)
            if count + more > budget:
                break
            count += more
        return count

    def reserve(
        self, sequence: Sequence, num_tokens: int | None = None, *, drafts: bool = False
    ) -> bool:
        """Gives blocks for the first `num_tokens` tokens (default: all); False if short."""
        if num_tokens is None:
            num_tokens = len(sequence.token_ids) + (len(sequence.draft) if drafts else 0)
        missing = -(-num_tokens // self.pool.block_size) - len(sequence.block_table)
        if missing > self.pool.num_free:
            return False
        for _ in range(missing):
            block = self.pool.allocate()
            assert block is not None
            sequence.block_table.append(block)
        return True

    def _reserve_or_preempt(self, sequence: Sequence) -> bool:
        """`reserve`, taking blocks from the youngest; False when that is the sequence itself."""
        while not self.reserve(sequence):
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Takes all blocks back; the sequence waits, in front, and is computed anew."""
        self.remove(sequence)
        sequence.num_computed_tokens = 0
        sequence.num_prefill_tokens = len(sequence.token_ids)
        sequence.draft = []
        sequence.preemptions += 1
        self.num_preemptions += 1
        bisect.insort(self.waiting, sequence, key=_order)

    def _is_stuck(self) -> bool:
        """Whether sequences block each other: none waits for a picture, none could get a block."""
        return len(self.running) > 1 and not any(
            sequence.needed_images() for sequence in self.running
        )


def prompt_part(left: int, most: int) -> int:
    """Tokens of the next part of a prompt that has `left` to compute, at most `most`.

    As few parts as can be, as even as steps of 128 allow: a large product takes as long for 100
    rows as for 128. What is over 128s comes first, the last part has the head to compute.
    """
    count = -(-left // most)
    if count == 1:
        return left
    steps = (2 * left // count + _PART_STEP) // (2 * _PART_STEP)
    even = min(steps, most // _PART_STEP) * _PART_STEP
    return min(most, left - (count - 1) * even)


def _order(sequence: Sequence) -> tuple[int, float]:
    return sequence.request.priority, sequence.arrival
