"""What a comparison of runs says, as ``diff --format json`` prints it and reporters read it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum

from survive.contracts import Json
from survive.errors import ExitCode
from survive.judge.between import Chance
from survive.judge.conditions import Difference
from survive.judge.spectra import Spectra
from survive.judge.statistics import ALPHA
from survive.judge.verdict import Number, Word, plain


class Change(StrEnum):
    """What became of a cell, or of all of them: the first that any cell has is that of all."""

    WORSE = "worse"
    UNDECIDED = "undecided"
    BETTER = "better"
    ALIKE = "alike"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A run that cannot be part of a comparison."""

    folder: str
    why: str


@dataclass(frozen=True, slots=True)
class Run:
    """A run that is part of it."""

    folder: str
    seed: int
    started_utc: str
    verdict: Word
    exit_code: ExitCode


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two."""

    runs: tuple[Run, ...]
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True, slots=True)
class Values:
    """What the episodes of one side measured; null = not measured, or its fault not proven."""

    values: tuple[Number, ...]
    median: Number


@dataclass(frozen=True, slots=True)
class Verdicts:
    """How often a cell got each verdict."""

    survived: int
    failed: int
    inconclusive: int


@dataclass(frozen=True, slots=True)
class Moved:
    """New minus base. ``between``: of the medians of episodes, three or more a side (Hodges &
    Lehmann, interval by rank). ``within``: of these two runs alone, at 90 %."""

    by: Number
    low: Number
    high: Number
    confidence: float | None
    basis: str  # between | within | "" (no interval)


@dataclass(frozen=True, slots=True)
class CellChange:
    """One cell of both sides. ``p`` are one-sided, null where nothing could be judged."""

    name: str
    metric: str
    request: str
    window: str
    unit: str
    bound: str  # min: more is better; max: less is
    base_limit: float
    new_limit: float
    change: Change
    why: str
    base: Values
    new: Values
    base_verdicts: Verdicts
    new_verdicts: Verdicts
    moved: Moved
    worse: Chance | None
    better: Chance | None


@dataclass(frozen=True, slots=True)
class Measure:
    """A number beside the objectives: information, never judged."""

    of: str  # a fault, or "load"
    name: str
    unit: str
    base: Values
    new: Values
    moved: Moved


@dataclass(frozen=True, slots=True)
class Comparison:
    """The whole answer."""

    scenario: str
    change: Change
    base: Side
    new: Side
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]
    cells: tuple[CellChange, ...]
    measures: tuple[Measure, ...]
    spectra: tuple[Spectra, ...]
    alpha: float = ALPHA
    tolerated: float = 0.0  # share of its badness by which a cell may be worse
    version: int = 1

    def to_json(self) -> dict[str, Json]:
        """The document of ``diff --format json``; numbers to 4 significant digits."""
        document = plain(asdict(self))
        assert isinstance(document, dict)
        return document

    def exit_code(self, *, fail_on_regression: bool) -> ExitCode:
        """0 = compared; as a gate 1 = worse, 3 = undecided."""
        if fail_on_regression and self.change is Change.WORSE:
            return ExitCode.FAILED
        if fail_on_regression and self.change is Change.UNDECIDED:
            return ExitCode.INCONCLUSIVE
        return ExitCode.SURVIVED
