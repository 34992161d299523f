"""The survival matrix: what each fault did to each objective. Pure, from the verdict alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from survive.judge.verdict import Cell, Verdict, Word

_ORDER = (Word.SURVIVED, Word.INCONCLUSIVE, Word.FAILED)


@dataclass(frozen=True, slots=True)
class Square:
    """One fault × one objective: the worst of its cells, None where it is not judged there."""

    fault: str
    objective: str
    worst: Cell | None
    cells: int

    @property
    def verdict(self) -> Word | None:
        """That of the worst cell."""
        return self.worst.verdict if self.worst else None


@dataclass(frozen=True, slots=True)
class Matrix:
    """Faults down, objectives across, both in the order of the scenario."""

    faults: tuple[str, ...]
    objectives: tuple[str, ...]
    squares: tuple[tuple[Square, ...], ...]  # [fault][objective]


def matrix_of(verdict: Verdict) -> Matrix:
    """Every fault against every objective that is judged under or after one.

    A repeat (``x#2``) is a row of its own; what pools the repeats is no fault.
    """
    faults = tuple(fault.name for fault in verdict.faults)
    judged = [cell for cell in verdict.objectives if _fault_of(cell) in faults]
    objectives = tuple(dict.fromkeys(cell.name for cell in judged))
    squares = tuple(
        tuple(_square(fault, objective, judged) for objective in objectives) for fault in faults
    )
    return Matrix(faults, objectives, squares)


def _fault_of(cell: Cell) -> str:
    kind, _, name = cell.window.partition(":")
    return name if kind in {"fault", "recovery"} else ""


def _square(fault: str, objective: str, judged: Sequence[Cell]) -> Square:
    mine = [c for c in judged if c.name == objective and _fault_of(c) == fault]
    worst = max(mine, key=_badness, default=None)
    return Square(fault, objective, worst, len(mine))


def _badness(cell: Cell) -> tuple[int, float]:
    """Among cells of one word the one with the greater share of bad."""
    return _ORDER.index(cell.verdict), cell.bad / cell.n if cell.n else 0.0


def rows(matrix: Matrix) -> Iterator[tuple[str, tuple[Square, ...]]]:
    """(fault, its squares)."""
    yield from zip(matrix.faults, matrix.squares, strict=True)
