"""The KV cache of a simulated GPU: blocks of 16 tokens, and whose prompts they still remember.

A running sequence holds whole blocks and takes another when it outgrows them. What a prompt left in
blocks that nobody holds stays readable until the room is needed (least recently used goes first):
that is the prefix cache. A block is known by the chain of hashes up to it, as in vLLM, so the same
words after other words are another block.

Weakness ``memory_leak``: blocks of a generation whose client left are never given back.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Sequence

BLOCK = 16  # tokens, vLLM's default


def blocks_of(tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-tokens // BLOCK)


def prefix_of(words: Sequence[str]) -> tuple[int, ...]:
    """A hash for each whole block of a prompt but its last token, which is always computed."""
    hashes: list[int] = []
    before = 0
    for end in range(BLOCK, len(words), BLOCK):
        text = " ".join(words[end - BLOCK : end])
        before = zlib.crc32(text.encode("utf-8", "surrogatepass"), before)
        hashes.append(before)
    return tuple(hashes)


class KvCache:
    """Counts of blocks; nothing is stored."""

    def __init__(self, tokens: int, *, leaks: bool = False) -> None:
        self.total = max(1, tokens // BLOCK)
        self.held = 0  # by running sequences
        self.leaked = 0
        self.queried_tokens = 0  # of prompts looked up, and found: vLLM's prefix cache counters
        self.hit_tokens = 0
        self._leaks = leaks
        self._known: OrderedDict[int, None] = OrderedDict()

    @property
    def used(self) -> float:
        """Share of all blocks that nobody else can have."""
        return (self.held + self.leaked) / self.total

    def room(self, taken: float) -> int:
        """Blocks that there are, while something else has a share of the memory."""
        return int(self.total * (1 - taken))

    def take(self, blocks: int, taken: float) -> bool:
        """Hold more blocks; False if so many are not free."""
        if self.held + self.leaked + blocks > self.room(taken):
            return False
        self.held += blocks
        return True

    def give_back(self, blocks: int, *, abandoned: bool = False) -> None:
        """Free a sequence's blocks; ``abandoned``: its client left."""
        self.held -= blocks
        if abandoned and self._leaks:
            self.leaked += blocks

    def remembered(self, prompt_tokens: int, prefix: Sequence[int]) -> int:
        """Tokens at the start of a prompt that need no prefill; from now on all of it is known."""
        self.queried_tokens += prompt_tokens
        hits, whole = 0, True
        for block in prefix:
            whole = whole and block in self._known
            hits += whole
            self._known[block] = None
            self._known.move_to_end(block)
        while len(self._known) > max(0, self.total - self.leaked):
            self._known.popitem(last=False)
        self.hit_tokens += hits * BLOCK
        return hits * BLOCK

    def forget(self) -> None:
        """The memory is gone, and all that was in it."""
        self.held = self.leaked = 0
        self._known.clear()
