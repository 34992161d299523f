"""Who sends which arrival: by arithmetic on its number, so no message carries a schedule.

Arrivals are numbered from 0 over the whole run. A table of 5,040 places says who owns a number
modulo 5,040: divisible by every count of workers up to ten, and nearly even for more. A change of
owners holds from a moment of the run's clock; the table before it stays what it was, so the union
over workers is the whole schedule at any time, and no arrival ever has two owners.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from survive.plan.arrivals import Block
from survive.plan.chance import I64

PLACES = 5_040
KEEP_US = 3_000_000  # a worker that hears of a change later than this has lost its own lease

Table = npt.NDArray[np.int64]


def first_table(workers: int) -> Table:
    """Worker k of n owns the numbers with number mod n = k (exactly, if n divides 5,040)."""
    return np.arange(PLACES, dtype=np.int64) % workers


def without(table: Table, worker: int) -> Table:
    """What the worker owned is dealt out in turn to all others. ValueError if it is the last."""
    left = [w for w in np.unique(table).tolist() if w != worker]
    if not left:
        raise ValueError("nobody is left to take over")
    changed = table.copy()
    places = np.flatnonzero(table == worker)
    changed[places] = np.array(left, dtype=np.int64)[np.arange(len(places)) % len(left)]
    return changed


@dataclass(frozen=True, slots=True)
class Ownership:
    """Tables, each from a moment on; the first one from the beginning."""

    epochs: tuple[tuple[int, Table], ...]

    @classmethod
    def of(cls, workers: int) -> Ownership:
        """Everyone has an equal part."""
        return cls(((-(1 << 62), first_table(workers)),))

    @property
    def latest(self) -> Table:
        """Who owns what from now on."""
        return self.epochs[-1][1]

    def changed(self, at_us: int, table: Table) -> Ownership:
        """Another table from a moment on, which may not lie before the last change."""
        if at_us < self.epochs[-1][0]:
            raise ValueError("changes of owners are told in order of time")
        return replace(self, epochs=(*self.epochs, (at_us, table)))

    def owners(self, block: Block) -> I64:
        """The owner of each arrival of a block."""
        numbers = numbers_of(block) % PLACES
        starts = np.array([at for at, _ in self.epochs], dtype=np.int64)
        epoch = np.searchsorted(starts, block.intended_us, side="right") - 1
        found: I64 = np.stack([table for _, table in self.epochs])[epoch, numbers]
        return found


def numbers_of(block: Block) -> I64:
    """The number of each arrival of a block."""
    if block.numbers is not None:
        return block.numbers
    return np.arange(block.first, block.first + len(block.intended_us), dtype=np.int64)


def part_of(block: Block, mask: npt.NDArray[np.bool_]) -> Block:
    """Some arrivals of a block; they keep their numbers."""
    return Block(
        block.first,
        block.intended_us[mask],
        block.kind[mask],
        block.row[mask],
        numbers_of(block)[mask],
    )


class Striped:
    """The blocks of a schedule, cut down to what one worker owns. Empty ones are left out.

    Blocks that reach beyond what was handed out are kept, so that a change of owners can look at
    them again: a worker whose next arrival is far away has passed others that become its own.
    """

    def __init__(self, blocks: Iterator[Block], ownership: Ownership, worker: int) -> None:
        self._blocks = blocks
        self._worker = worker
        self.ownership = ownership
        self._recent: deque[Block] = deque()  # whole blocks, as made
        self._again: deque[Block] = deque()  # parts to be handed out before new ones

    def __iter__(self) -> Iterator[Block]:
        return self

    def __next__(self) -> Block:
        while True:
            if self._again:
                return self._again.popleft()
            block = next(self._blocks)
            self._recent.append(block)
            mine = self.ownership.owners(block) == self._worker
            if mine.any():
                return part_of(block, mine)

    def forget(self, before_us: int) -> None:
        """Drop blocks that no change can reach any more: their arrivals lie well before."""
        while self._recent and self._recent[0].intended_us[-1] < before_us - KEEP_US:
            self._recent.popleft()

    def restripe(self, at_us: int, table: Table, after: int, now_us: int) -> I64:
        """Others own what from ``at_us`` on; arrivals numbered up to ``after`` were handed out.

        If the message came late (``now_us`` past ``at_us``), what became ours in between is not
        sent: the numbers of those arrivals are returned with their blocks forgotten, as rows
        (intended, kind). They are lost, and the caller says so.
        """
        before = self.ownership
        self.ownership = before.changed(at_us, table)
        lost: list[I64] = []
        self._again.clear()
        for block in self._recent:
            numbers = numbers_of(block)
            mine = self.ownership.owners(block) == self._worker
            late = mine & (before.owners(block) != self._worker) & (block.intended_us < now_us)
            if late.any():
                lost.append(np.stack([block.intended_us[late], block.kind[late]], axis=1))
            rest = mine & ~late & (numbers > after)
            if rest.any():
                self._again.append(part_of(block, rest))
        return np.concatenate(lost) if lost else np.empty((0, 2), dtype=np.int64)


def planned_of(
    blocks: Iterator[Block], ownership: Ownership, worker: int, until_us: int
) -> Iterator[Block]:
    """What a worker owned of a schedule before a moment."""
    for block in blocks:
        if block.intended_us[0] >= until_us:
            return
        mine = (ownership.owners(block) == worker) & (block.intended_us < until_us)
        if mine.any():
            yield part_of(block, mine)
