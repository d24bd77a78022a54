"""What need not be computed twice: keys and values of prefixes, features of pictures.

A block holds the keys and values of `block_size` consecutive tokens. Its name is a hash over its
parent's name, its tokens and the digests of the pictures in it, so equal names mean equal contents,
all the way back to the first token, whose parent is the salt of the API key:

    salt --> H(salt, tokens 0-15) --> H(parent, tokens 16-31, digest of picture A at 20) --> ...
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

from visiongate.engine.types import Prompt
from visiongate.model.inputs import VisionFeatures

BlockHash = bytes


class BlockPool:
    """Hands out cache blocks, shares those that hold the same prefix, and forgets the oldest.

    A block is held (some sequence uses it) or free. A free block keeps its content and name until
    it is handed out again, least recently used first.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._references = [0] * num_blocks
        self._names: list[BlockHash | None] = [None] * num_blocks
        self._by_name: dict[BlockHash, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))

    @property
    def num_free(self) -> int:
        """Blocks that can be handed out now."""
        return len(self._free)

    @property
    def num_held(self) -> int:
        """Blocks that some sequence uses."""
        return sum(1 for count in self._references if count)

    def match(self, names: Sequence[BlockHash]) -> list[int]:
        """The blocks of the longest known prefix; not yet held."""
        found: list[int] = []
        for name in names:
            block = self._by_name.get(name)
            if block is None:
                break
            found.append(block)
        return found

    def hold(self, blocks: Sequence[int]) -> None:
        """Counts one more user of each block."""
        for block in blocks:
            if not self._references[block]:
                del self._free[block]
            self._references[block] += 1

    def allocate(self) -> int | None:
        """A block to write to, held, its old content forgotten; None when all are held."""
        if not self._free:
            return None
        block, _ = self._free.popitem(last=False)
        name, self._names[block] = self._names[block], None
        if name is not None:
            del self._by_name[name]
        self._references[block] = 1
        return block

    def publish(self, block: int, name: BlockHash) -> None:
        """Lets others find a block whose content is complete; the first with a name keeps it."""
        if name not in self._by_name and self._names[block] is None:
            self._by_name[name] = block
            self._names[block] = name

    def release(self, blocks: Sequence[int]) -> None:
        """Counts one user less; the end of a prefix becomes free before its beginning."""
        for block in reversed(blocks):
            self._references[block] -= 1
            assert self._references[block] >= 0
            if not self._references[block]:
                self._free[block] = None

    def clear(self) -> None:
        """Forgets the content of every free block."""
        for block in self._free:
            name, self._names[block] = self._names[block], None
            if name is not None:
                del self._by_name[name]


class BlockNamer:
    """Names a sequence's blocks as it grows."""

    def __init__(self, prompt: Prompt, salt: bytes, block_size: int) -> None:
        self._spans = prompt.spans
        self._block_size = block_size
        self.names: list[BlockHash] = []
        self._root = hashlib.blake2b(b"visiongate/kv/1" + salt, digest_size=32).digest()

    def extend(self, token_ids: Sequence[int]) -> list[BlockHash]:
        """The names of all blocks that these tokens fill."""
        size = self._block_size
        while (start := len(self.names) * size) + size <= len(token_ids):
            parent = self.names[-1] if self.names else self._root
            digest = hashlib.blake2b(parent, digest_size=32)
            digest.update(array("q", token_ids[start : start + size]).tobytes())
            for span in self._spans:
                if span.start < start + size and span.end > start:
                    digest.update(span.image.digest)
                    digest.update(array("q", (span.start, span.end)).tobytes())
            self.names.append(digest.digest())
        return self.names


class FeatureCache:
    """Features of recent pictures by salt and digest, within a bound of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._entries: OrderedDict[tuple[bytes, bytes], VisionFeatures] = OrderedDict()

    def get(self, salt: bytes, digest: bytes) -> VisionFeatures | None:
        """The features, which become the most recent; or None."""
        entry = self._entries.get((salt, digest))
        if entry is not None:
            self._entries.move_to_end((salt, digest))
        return entry

    def put(self, salt: bytes, digest: bytes, features: VisionFeatures) -> None:
        """Keeps features; the least recent ones go when the bound is passed."""
        old = self._entries.pop((salt, digest), None)
        if old is not None:
            self.num_bytes -= old.num_bytes
        self._entries[salt, digest] = features
        self.num_bytes += features.num_bytes
        while self.num_bytes > self.max_bytes and self._entries:
            _, dropped = self._entries.popitem(last=False)
            self.num_bytes -= dropped.num_bytes

    def clear(self) -> None:
        """Forgets everything."""
        self._entries.clear()
        self.num_bytes = 0
