"""How much load a scenario survives: the levels that were played, and what they bound. Pure.

A level is a factor on every rate of the plan. ``survives`` is the highest level at which every run
survived, with no failed run at it or below; ``fails`` the lowest at which every run failed. What is
neither (undecided, or seeds that disagree) lies between and moves no bound. A run that the harness
could not send in time bounds the harness and never the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

from survive.contracts import Json
from survive.errors import ExitCode
from survive.judge.load import LATE_US
from survive.judge.verdict import Cell, Verdict, Word, plain

_LATE_MS = LATE_US / 1000
_CELL = ("name", "metric", "request", "window", "verdict", "bound", "limit", "unit", "observed")


class Finding(StrEnum):
    """What a run, or all runs of a level, say of the target at that load."""

    SURVIVED = "survived"
    FAILED = "failed"
    UNDECIDED = "undecided"  # the evidence falls short
    HARNESS = "harness"  # late, or out of lanes: nothing is said of the target
    MIXED = "mixed"  # of a level: some runs survived, some failed


DECIDED = frozenset({Finding.SURVIVED, Finding.FAILED})


@dataclass(frozen=True, slots=True)
class LevelRun:
    """One run at one level."""

    seed: int
    folder: str
    exit_code: int
    finding: Finding
    why: str = ""  # the deciding reason; "" = survived
    cells: tuple[Cell, ...] = ()
    grade: str = ""


def finding_of(verdict: Verdict, lanes: int, lanes_needed: int) -> tuple[Finding, str]:
    """What a run says of the target, and why.

    A run is out of lanes if one was waited for and there were fewer than its rate can need: more
    of them would have asked more of the target, so what it failed is not its limit. Where something
    is broken in spite of the harness's lateness (exit 1), it is the target's.
    """
    reason = next(iter(verdict.reasons), "")
    if verdict.guilt and verdict.exit_code is not ExitCode.FAILED:
        return Finding.HARNESS, verdict.guilt[0]
    if verdict.exit_code is ExitCode.SURVIVED:
        return Finding.SURVIVED, ""
    if verdict.exit_code not in {ExitCode.FAILED, ExitCode.STOPPED}:
        return Finding.UNDECIDED, reason
    waited_ms = verdict.load.lane_wait_ms.max
    if lanes < lanes_needed and isinstance(waited_ms, int | float) and waited_ms > _LATE_MS:
        return (
            Finding.HARNESS,
            f"{lanes:,} lanes were all taken, and this rate can need {lanes_needed:,}",
        )
    return Finding.FAILED, reason


@dataclass(frozen=True, slots=True)
class Level:
    """A factor on every rate, and its runs."""

    factor: Fraction
    runs: tuple[LevelRun, ...] = ()

    @property
    def decided(self) -> int:
        """Runs that survived or failed."""
        return sum(run.finding in DECIDED for run in self.runs)

    @property
    def finding(self) -> Finding:
        """What its runs say together: a decided run makes those that decide nothing superfluous."""
        found = {run.finding for run in self.runs}
        if found >= DECIDED:
            return Finding.MIXED
        order = (Finding.SURVIVED, Finding.FAILED, Finding.HARNESS)
        return next((one for one in order if one in found), Finding.UNDECIDED)

    @property
    def told(self) -> LevelRun:
        """The run that says what the level says; of a mixed one, that which failed."""
        wanted = Finding.FAILED if self.finding is Finding.MIXED else self.finding
        return next(run for run in self.runs if run.finding is wanted)


@dataclass(frozen=True, slots=True)
class Envelope:
    """Levels in ascending order, and what follows from them."""

    levels: tuple[Level, ...] = ()
    faults: bool = True  # with those of the scenario

    def with_run(self, factor: Fraction, run: LevelRun) -> Envelope:
        """The same and one more run."""
        known = {level.factor: level.runs for level in self.levels}
        known[factor] = (*known.get(factor, ()), run)
        levels = tuple(Level(factor, known[factor]) for factor in sorted(known))
        return Envelope(levels, self.faults)

    def _all(self, finding: Finding) -> list[Level]:
        return [level for level in self.levels if level.finding is finding]

    @property
    def survives(self) -> Level | None:
        """The highest level that survived, with no failed run below it."""
        bad = [x.factor for x in self.levels if x.finding in {Finding.FAILED, Finding.MIXED}]
        below = min(bad, default=None)
        sound = [x for x in self._all(Finding.SURVIVED) if below is None or x.factor < below]
        return sound[-1] if sound else None

    @property
    def fails(self) -> Level | None:
        """The lowest level that failed."""
        return next(iter(self._all(Finding.FAILED)), None)

    @property
    def harness(self) -> Level | None:
        """The lowest level that the harness could not play, if it lies inside the bounds."""
        low, high = self.survives, self.fails
        inside = (
            level
            for level in self._all(Finding.HARNESS)
            if (low is None or level.factor > low.factor)
            and (high is None or level.factor < high.factor)
        )
        return next(inside, None)

    @property
    def open(self) -> tuple[Level, ...]:
        """Levels that say neither, the harness's own apart."""
        return tuple(x for x in self.levels if x.finding in {Finding.UNDECIDED, Finding.MIXED})

    @property
    def violations(self) -> tuple[tuple[Level, Level], ...]:
        """(a level with a failed run, the highest above it that survived all the same)."""
        best = next(reversed(self._all(Finding.SURVIVED)), None)
        failed = [x for x in self.levels if x.finding in {Finding.FAILED, Finding.MIXED}]
        return tuple((x, best) for x in failed if best is not None and x.factor < best.factor)

    @property
    def limits(self) -> tuple[Cell, ...]:
        """What breaks first: the failed cells of the lowest level that failed."""
        if self.fails is None:
            return ()
        return tuple(cell for cell in self.fails.told.cells if cell.verdict is Word.FAILED)

    @property
    def whole(self) -> bool:
        """It survives somewhere, and fails above that, or survived the highest level played."""
        low = self.survives
        return low is not None and (self.fails is not None or low is self.levels[-1])


def holds(envelope: Envelope, least: Fraction) -> Word:
    """Does the target survive at least that factor?"""
    low, high = envelope.survives, envelope.fails
    if low is not None and low.factor >= least:
        return Word.SURVIVED
    if high is not None and high.factor <= least:
        return Word.FAILED
    return Word.INCONCLUSIVE


def exit_of(envelope: Envelope, least: Fraction | None, *, done: bool = True) -> ExitCode:
    """With a wanted factor: 0 it holds, 1 it does not, 3 undecided.

    Else: 0 an interval was found, 1 it failed wherever it was decided, 3 otherwise: where only the
    harness's ceiling bounds it above, nothing is known of the target's. Not ``done``: higher loads
    were to be played, so that the highest one survived is no answer.
    """
    if least is not None:
        word = holds(envelope, least)
    elif envelope.whole and (done or envelope.fails is not None):
        word = Word.SURVIVED
    else:
        found = {level.finding for level in envelope.levels}
        word = Word.FAILED if found == {Finding.FAILED} else Word.INCONCLUSIVE
    return {
        Word.SURVIVED: ExitCode.SURVIVED,
        Word.FAILED: ExitCode.FAILED,
        Word.INCONCLUSIVE: ExitCode.INCONCLUSIVE,
    }[word]


def cost_of_faults(broken: Envelope, sound: Envelope) -> tuple[float, float] | None:
    """The share of the fault-free envelope that the faults take: (at least, at most).

    None unless both have both bounds; at least may be below 0: then it may cost nothing.
    """
    bounds = (broken.survives, broken.fails, sound.survives, sound.fails)
    low, high, calm_low, calm_high = (None if x is None else float(x.factor) for x in bounds)
    if low is None or high is None or calm_low is None or calm_high is None:
        return None
    return 1 - high / calm_low, 1 - low / calm_high


@dataclass(frozen=True, slots=True)
class Finished:
    """Everything that a command found, as it is shown and written."""

    scenario: str
    target: str
    host: str  # virtual | real
    one_rps: Fraction  # the highest rate at factor 1
    resolution: float
    least: Fraction | None
    envelopes: tuple[Envelope, ...]
    exit_code: ExitCode
    ended: str = "complete"  # | runs (no more were allowed) | interrupted | stopped
    folder: str = ""
    span_us: int = 0  # of the load of one run

    def rps(self, level: Level) -> float:
        """The highest rate of a level."""
        return float(self.one_rps * level.factor)

    @property
    def cost(self) -> tuple[float, float] | None:
        """See cost_of_faults; None if only one envelope was asked for."""
        if len(self.envelopes) != 2:
            return None
        return cost_of_faults(self.envelopes[0], self.envelopes[1])

    @property
    def grade(self) -> str:
        """Of its runs, which are all of one kind."""
        return next((run.grade for run in self.runs if run.grade), "")

    @property
    def runs(self) -> tuple[LevelRun, ...]:
        """All of them."""
        levels = (level for envelope in self.envelopes for level in envelope.levels)
        return tuple(run for level in levels for run in level.runs)

    def to_json(self) -> dict[str, Json]:
        """The document of envelope.json; see schema/envelope.v1.json."""
        cost = self.cost
        document = plain(
            {
                "version": 1,
                "scenario": self.scenario,
                "target": self.target,
                "host": self.host,
                "grade": self.grade,
                "one_rps": float(self.one_rps),
                "resolution": self.resolution,
                "min": None if self.least is None else float(self.least),
                "exit_code": int(self.exit_code),
                "ended": self.ended,
                "envelopes": [self._envelope(one) for one in self.envelopes],
                "cost_of_faults": None if cost is None else {"low": cost[0], "high": cost[1]},
                "folder": self.folder,
            }
        )
        assert isinstance(document, dict)
        return document

    def _envelope(self, one: Envelope) -> dict[str, object]:
        return {
            "faults": one.faults,
            "survives": self._at(one.survives),
            "fails": self._at(one.fails),
            "harness": self._at(one.harness),
            "limits": _cells(one.limits),
            "violations": [
                {"failed": self._at(failed), "survived": self._at(survived)}
                for failed, survived in one.violations
            ],
            "levels": [
                {
                    "factor": float(level.factor),
                    "rps": self.rps(level),
                    "finding": level.finding,
                    "runs": [_run(run) for run in level.runs],
                }
                for level in one.levels
            ],
        }

    def _at(self, level: Level | None) -> dict[str, object] | None:
        if level is None:
            return None
        return {"factor": float(level.factor), "rps": self.rps(level)}


def _run(run: LevelRun) -> dict[str, object]:
    told = {name: getattr(run, name) for name in ("seed", "folder", "exit_code", "finding", "why")}
    return {**told, "objectives": _cells(run.cells)}


def _cells(cells: Sequence[Cell]) -> list[dict[str, object]]:
    return [{name: getattr(cell, name) for name in _CELL} for cell in cells]
