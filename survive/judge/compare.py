"""``compare(base, new)``: are these runs worse than those? Cell by cell; pure.

One episode tells how it went, not how such episodes go: a difference is judged only between three
or more a side (DESIGN law 6; `survive.judge.between` has the test). Values are compared, not
verdicts, so a cell that survives with less to spare is seen, too.

Gaps in the evidence take away what is good (`better`, `alike`) and never what is `worse`: what is
not known is taken for the worst.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from survive.errors import ExitCode, RecordError
from survive.judge.between import Tested, episodes_to_decide, examined, middle, minus, shift
from survive.judge.comparison import (
    CellChange,
    Change,
    Comparison,
    LeftOut,
    Measure,
    Moved,
    Run,
    Side,
    Values,
    Verdicts,
)
from survive.judge.conditions import (
    ACCEPTABLE,
    SAME,
    Difference,
    changed_keys,
    conditions_of,
    differing,
    no_basis,
)
from survive.judge.episodes import LEAST
from survive.judge.faults import ONE_SHOT, PROVEN, back_after_s
from survive.judge.spectra import Place, Spectra, Spectrum, beside, number, spectra_of
from survive.judge.statistics import ALPHA
from survive.judge.verdict import Cell, LoadReport, Number, Verdict, Word
from survive.record.events import EventName
from survive.record.reader import Record
from survive.scenario.model import Scenario

_NO_INTERVAL = frozenset({"recovery", "scale_up"})  # their low and high are resolution, not chance

MOST_UNKNOWN = 1 / 3  # of the new runs, before nothing good is said of a cell
_BEST = -1.0  # better than any badness

CellKey = tuple[str, str, str, str]  # objective, metric, request, window


@dataclass(frozen=True, slots=True, eq=False)
class Episode:
    """One run, as far as a comparison goes; small enough to hold hundreds."""

    folder: Path
    seed: int
    started_utc: str
    ended: str  # complete, or how else
    verdict: Verdict
    conditions: Mapping[str, str]
    scenario: Scenario
    spectra: Mapping[Place, Spectrum]

    @classmethod
    def of(cls, record: Record, scenario: Scenario, verdict: Verdict) -> Episode:
        """What a record and its verdict come to."""
        return cls(
            record.folder,
            record.plan.seed,
            str(record.manifest.get("started_utc", "")),
            record.named(EventName.RUN_ENDED)[-1].text("ended"),
            verdict,
            conditions_of(record, scenario, verdict),
            scenario,
            spectra_of(record),
        )

    @property
    def virtual(self) -> bool:
        """It is the same run whenever it is made."""
        return self.conditions["host"] == "virtual"


@dataclass(frozen=True, slots=True)
class Given:
    """One side as it was read; ``left_out`` are runs that could not be."""

    name: str  # base | new
    episodes: Sequence[Episode]
    left_out: Sequence[LeftOut] = ()


def compare(
    base: Given, new: Given, accept: Sequence[str] = (), *, tolerate: float = 0.0
) -> Comparison:
    """Compare two sides. RecordError if they did not do the same, or if one has no basis.

    ``accept``: conditions (of ACCEPTABLE) whose difference is taken for none. ``tolerate``: a share
    of its badness (see `_badness`) by which a cell may be worse and is not called so.
    """
    old, fresh = _fit(base), _fit(new)
    _check_same(old, fresh)
    differences = differing(ACCEPTABLE, _conditions(old), _conditions(fresh), accept)
    pairs, one_sided = _pairs(old.episodes, fresh.episodes)
    pairs += _stopped(old.episodes, fresh.episodes)
    asked = _Asked(_blocked(differences), tolerate, len(old.left_out), len(fresh.left_out))
    cells = tuple(_changes(pairs, asked))
    words = {cell.change for cell in cells}
    return Comparison(
        scenario=old.episodes[0].scenario.name,
        change=next((word for word in Change if word in words), Change.UNDECIDED),
        base=_side(old),
        new=_side(fresh),
        differences=differences,
        notes=(*_notes(base, new, old, fresh), *one_sided),
        cells=cells,
        measures=tuple(_measures(_whole(old), _whole(fresh))),
        spectra=tuple(_spectra(_whole(old), _whole(fresh))),
        tolerated=tolerate,
    )


def _whole(given: Given) -> list[Episode]:
    """Those that stop_if did not end."""
    return [episode for episode in given.episodes if not _was_stopped(episode.verdict)]


def _spectra(base: Sequence[Episode], new: Sequence[Episode]) -> list[Spectra]:
    return beside([e.spectra for e in base], [e.spectra for e in new])


# ------------------------------------------------------------------------------ what is compared


def _fit(given: Given) -> Given:
    """The episodes that are a basis; of virtual ones with the same seed the first."""
    kept: dict[object, Episode] = {}
    out = [*given.left_out]
    for episode in given.episodes:
        if why := no_basis(episode.verdict, episode.ended):
            out.append(LeftOut(str(episode.folder), why))
        else:
            kept.setdefault(episode.seed if episode.virtual else episode.folder, episode)
    if not kept:
        raise RecordError(f"no run of {given.name} can be compared: {out[0].why}")
    return Given(given.name, [*kept.values()], out)


def _conditions(given: Given) -> list[Mapping[str, str]]:
    return [episode.conditions for episode in given.episodes]


def _check_same(base: Given, new: Given) -> None:
    if other := differing(SAME, _conditions(base), _conditions(new)):
        named = [f"{d.what} ({d.base}; {d.new})" if d.what in SAME[:2] else d.what for d in other]
        raise RecordError(
            f"the runs did not do the same: other {', '.join(named)}",
            hint="compare runs of one scenario, profile and host; the target file may differ",
        )


def _blocked(differences: Sequence[Difference]) -> str:
    """Why nothing may be judged, or ""."""
    open_ = [f"{d.what} ({d.base}; {d.new})" for d in differences if not d.accepted]
    return f"other {', '.join(open_)}: the difference may come from that" if open_ else ""


def _side(given: Given) -> Side:
    runs = (
        Run(str(e.folder), e.seed, e.started_utc, e.verdict.verdict, e.verdict.exit_code)
        for e in given.episodes
    )
    return Side(tuple(runs), tuple(given.left_out))


def _notes(base: Given, new: Given, old: Given, fresh: Given) -> Iterator[str]:
    """What else a reader has to know, none of it a reason not to judge."""
    for given, fit in ((base, old), (new, fresh)):
        left = len(fit.left_out) - len(given.left_out)
        if twice := len(given.episodes) - len(fit.episodes) - left:
            yield f"{given.name}: {twice} virtual runs repeat a seed: the same run, not counted"
    targets = [side.episodes[0].scenario.raw_target for side in (old, fresh)]
    if keys := changed_keys(*targets):
        yield f"the target file differs in {', '.join(keys)}"
    seeds = [sorted(e.seed for e in side.episodes) for side in (old, fresh)]
    if seeds[0] != seeds[1]:
        yield "other seeds: arrivals and victims were drawn anew"
    folders = [{e.folder.resolve() for e in side.episodes} for side in (old, fresh)]
    if same := folders[0] & folders[1]:
        yield f"runs that are on both sides: {len(same)}"


# -------------------------------------------------------------------------------------- cells


@dataclass(frozen=True, slots=True)
class _Gaps:
    """What runs would have shown of which nothing is known: so many of each side are missing
    altogether. ``worst``: the new ones everything bad, the old ones everything good."""

    base: int = 0
    new: int = 0
    worst: bool = False

    def filled(
        self, base: Sequence[float], new: Sequence[float], tolerate: float
    ) -> tuple[list[float], list[float]]:
        """Badness without gaps if ``worst``; else as it was."""
        within = [value / (1 + tolerate) for value in new]
        if not self.worst:
            return [*base], within
        best, worst = (_BEST if math.isnan(v) else v for v in base), math.inf
        return (
            [*best, *[_BEST] * self.base],
            [*(worst if math.isnan(v) else v for v in within), *[worst] * self.new],
        )


@dataclass(frozen=True, slots=True)
class _Pair:
    """One cell on both sides: an entry an episode, None where it was not measured."""

    sample: Cell
    new_limit: float
    base: tuple[Cell | None, ...]
    new: tuple[Cell | None, ...]

    def values(self, gaps: _Gaps, tolerate: float) -> tuple[list[float], list[float]]:
        """The badness of both sides, with what is not known filled in; that of the new one without
        what is tolerated."""
        old, fresh = ([_badness(c) for c in side] for side in (self.base, self.new))
        return gaps.filled(old, fresh, tolerate)

    @property
    def measured(self) -> tuple[int, int]:
        """Episodes with a value on both sides."""
        old, fresh = (sum(v is not None for v in _observed(s)) for s in (self.base, self.new))
        return old, fresh

    @property
    def testable(self) -> bool:
        """Enough episodes have a value."""
        return min(self.measured) >= LEAST


def _badness(cell: Cell | None) -> float:
    """More is worse, 0 is best; NaN = not measured. What has to be low, the share that is missing,
    or the time that one takes where so many a second are wanted."""
    if cell is None or cell.observed is None:
        return math.nan
    value = float(cell.observed)
    if cell.bound == "max":
        return value
    if cell.unit == "share":
        return 1 - value
    return 1 / value if value > 0 else math.inf


def _pairs(base: Sequence[Episode], new: Sequence[Episode]) -> tuple[list[_Pair], list[str]]:
    """The cells that both sides have, in the order of the scenario; objectives that one has not."""
    old, fresh = ([_cells_of(e.verdict) for e in side] for side in (base, new))
    keys = dict.fromkeys(key for cells in (*old, *fresh) for key in cells)
    found: list[_Pair] = []
    one_sided: dict[str, None] = {}
    for key in keys:
        of_base, of_new = (tuple(cells.get(key) for cells in side) for side in (old, fresh))
        first, last = (next(filter(None, side), None) for side in (of_base, of_new))
        sample, other = first or last, last or first
        if first is None and any(old):  # else every run of that side was stopped
            one_sided[f"{key[0]} ({key[1]}) is only in new"] = None
        elif last is None and any(fresh):
            one_sided[f"{key[0]} ({key[1]}) is only in base"] = None
        elif sample and other:
            judged = _proven(of_base, base), _proven(of_new, new)
            found.append(_Pair(sample, other.limit, *judged))
    return found, [*one_sided]


def _cells_of(verdict: Verdict) -> dict[CellKey, Cell]:
    """None of a run that stop_if ended: its windows are not those of a whole one."""
    if _was_stopped(verdict):
        return {}
    return {(c.name, c.metric, c.request, c.window): c for c in verdict.objectives}


def _was_stopped(verdict: Verdict) -> bool:
    return verdict.exit_code is ExitCode.STOPPED


def _stopped(base: Sequence[Episode], new: Sequence[Episode]) -> list[_Pair]:
    """A cell of its own, if stop_if ended any run: leaving such runs out would flatter."""
    sides = [tuple(_ran_to_its_end(e.verdict) for e in side) for side in (base, new)]
    if all(cell.bad == 0 for side in sides for cell in side):
        return []
    return [_Pair(sides[0][0], 1.0, sides[0], sides[1])]


def _ran_to_its_end(verdict: Verdict) -> Cell:
    stopped = _was_stopped(verdict)
    return Cell(
        name="stop_if",
        metric="finished",
        request="",
        window="run",
        verdict=Word.FAILED if stopped else Word.SURVIVED,
        limit=1.0,
        unit="share",
        observed=float(not stopped),
        low=None,
        high=None,
        n=1,
        bad=int(stopped),
        bound="min",
    )


def _proven(cells: Sequence[Cell | None], episodes: Sequence[Episode]) -> tuple[Cell | None, ...]:
    """Without those whose fault was not proven: they were not measured under it."""
    return tuple(
        None if cell is None or _unproven(cell, episode.verdict) else cell
        for cell, episode in zip(cells, episodes, strict=True)
    )


def _unproven(cell: Cell, verdict: Verdict) -> bool:
    kind, _, name = cell.window.partition(":")
    of = [f for f in verdict.faults if f.name == name or f.name.startswith(f"{name}#")]
    bit = all(f.proof == PROVEN for f in of)
    gone = all(f.heal_proof in {PROVEN, ONE_SHOT} for f in of)
    return kind in {"fault", "recovery"} and not (bit and (gone or kind == "fault"))


@dataclass(frozen=True, slots=True)
class _Asked:
    """Under what cells are judged."""

    blocked: str  # why nothing may be judged, or ""
    tolerate: float
    base_out: int  # runs that are left out
    new_out: int


def _changes(pairs: Sequence[_Pair], asked: _Asked) -> Iterator[CellChange]:
    testable = [pair for pair in pairs if pair.testable and not asked.blocked]
    outcomes = iter(_judged(testable, asked))
    for pair in pairs:
        if pair.testable and not asked.blocked:
            yield _change(pair, *next(outcomes))
        else:
            yield _change(pair, Change.UNDECIDED, asked.blocked or _too_few(pair, len(pairs)), None)


def _judged(pairs: Sequence[_Pair], asked: _Asked) -> Iterator[tuple[Change, str, Tested]]:
    """What is seen makes a cell worse; whatever is not known counts against what is good."""
    gaps = _Gaps(asked.base_out, asked.new_out, worst=True)
    seen, feared = (_with_margin(pairs, one, asked.tolerate) for one in (_Gaps(), gaps))
    for pair, one, fear in zip(pairs, seen, feared, strict=True):
        yield *_word(pair, one, fear, asked, len(pairs)), one


def _with_margin(pairs: Sequence[_Pair], gaps: _Gaps, tolerate: float) -> list[Tested]:
    """Worse by more than is tolerated, better by anything."""
    plain = _examined(pairs, gaps, 0.0)
    within = _examined(pairs, gaps, tolerate) if tolerate else plain
    return [replace(one, better=whole.better) for one, whole in zip(within, plain, strict=True)]


def _examined(pairs: Sequence[_Pair], gaps: _Gaps, tolerate: float) -> list[Tested]:
    if not pairs:
        return []
    sides = [pair.values(gaps, tolerate) for pair in pairs]
    return examined([old for old, _ in sides], [fresh for _, fresh in sides])


def _too_few(pair: _Pair, cells: int) -> str:
    old, fresh = pair.measured
    return (
        f"{old} against {fresh} measured, and nothing is judged below {LEAST} a side; "
        f"{episodes_to_decide(cells)} a side decide"
    )


def _word(pair: _Pair, one: Tested, fear: Tested, asked: _Asked, cells: int) -> tuple[Change, str]:
    old, fresh = pair.measured
    runs = asked.new_out + len(pair.new)
    if one.worse.significant:
        return Change.WORSE, ""
    if fear.worse.significant or (runs - fresh) > MOST_UNKNOWN * runs:
        return Change.UNDECIDED, f"not known for {runs - fresh} of {runs} new runs"
    if not one.decidable:
        return Change.UNDECIDED, (
            f"{old} against {fresh} cannot decide this beside {cells - 1} other cells; "
            f"{episodes_to_decide(cells)} a side do"
        )
    if fear.better.significant:
        return Change.BETTER, ""
    if one.worse.alone <= ALPHA:
        return Change.ALIKE, (
            f"by itself it looks worse (p = {one.worse.alone:.2g}), but one of {cells} cells may "
            f"by luck (p = {one.worse.among_all:.2g}); more episodes would tell"
        )
    return Change.ALIKE, ""


def _change(pair: _Pair, change: Change, why: str, one: Tested | None) -> CellChange:
    cell = pair.sample
    old, fresh = _observed(pair.base), _observed(pair.new)
    return CellChange(
        name=cell.name,
        metric=cell.metric,
        request=cell.request,
        window=cell.window,
        unit=cell.unit,
        bound=cell.bound,
        base_limit=cell.limit,
        new_limit=pair.new_limit,
        change=change,
        why=why,
        base=_values(old),
        new=_values(fresh),
        base_verdicts=_verdicts(pair.base),
        new_verdicts=_verdicts(pair.new),
        moved=_within(pair) or _moved(old, fresh),
        worse=one.worse if one else None,
        better=one.better if one else None,
    )


def _observed(cells: Sequence[Cell | None]) -> tuple[Number, ...]:
    return tuple(None if cell is None else cell.observed for cell in cells)


def _verdicts(cells: Sequence[Cell | None]) -> Verdicts:
    words = [cell.verdict for cell in cells if cell is not None]
    return Verdicts(
        words.count(Word.SURVIVED), words.count(Word.FAILED), words.count(Word.INCONCLUSIVE)
    )


# --------------------------------------------------------------------------------- differences


def _known(values: Sequence[Number]) -> list[float]:
    return sorted(float(value) for value in values if value is not None)


def _values(values: Sequence[Number]) -> Values:
    known = _known(values)
    return Values(tuple(values), number(middle(known)) if known else None)


def _moved(base: Sequence[Number], new: Sequence[Number]) -> Moved:
    """Between episodes: that of the medians, with an interval from LEAST a side."""
    old, fresh = _known(base), _known(new)
    if not old or not fresh:
        return Moved(None, None, None, None, "")
    if found := shift(old, fresh):
        by, low, high = number(found.by), number(found.low), number(found.high)
        return Moved(by, low, high, found.confidence, "between")
    return Moved(number(minus(middle(fresh), middle(old))), None, None, None, "")


def _within(pair: _Pair) -> Moved | None:
    """Of one run against one: the interval of a difference from the two cells' own (exact) ones, by
    squaring and adding (Newcombe 1998, method 10, for shares; Zou & Donner 2008 for any two)."""
    if len(pair.base) + len(pair.new) != 2 or pair.sample.metric in _NO_INTERVAL:
        return None
    old, fresh = _ends(pair.base[0]), _ends(pair.new[0])
    if old is None or fresh is None:
        return None
    by = fresh[1] - old[1]
    low = by - math.hypot(fresh[1] - fresh[0], old[2] - old[1])
    high = by + math.hypot(fresh[2] - fresh[1], old[1] - old[0])
    return Moved(by, low, high, 1 - 2 * ALPHA, "within")


def _ends(cell: Cell | None) -> tuple[float, float, float] | None:
    """low, observed, high; None unless all are finite."""
    if cell is None or None in (cell.low, cell.observed, cell.high):
        return None
    low, observed, high = (float(end or 0) for end in (cell.low, cell.observed, cell.high))
    return (low, observed, high) if math.isfinite(low + observed + high) else None


# ------------------------------------------------------------------------------------ measures


def _measures(base: Sequence[Episode], new: Sequence[Episode]) -> Iterator[Measure]:
    """Of every fault that both sides know, then of the load; those that anybody measured."""
    for name in (fault.name for episode in base[:1] for fault in episode.verdict.faults):
        for measure, unit in _OF_FAULTS.items():
            sides = [[_of_fault(e.verdict, name, measure) for e in side] for side in (base, new)]
            yield from _measure(name, measure, unit, *sides)
    for measure, unit in _OF_LOAD.items():
        sides = [[_of_load(e.verdict.load, measure) for e in side] for side in (base, new)]
        yield from _measure("load", measure, unit, *sides)


_OF_FAULTS = {
    "recovered_after": "s",
    "error_window": "s",
    "residual": "share",
    "amplification": "x",
    "error_budget": "share",
}
_OF_LOAD = {
    "offered": "per s",
    "achieved": "per s",
    "lane_wait.p99": "ms",
    "send_lag.p99": "ms",
}


def _measure(
    of: str, name: str, unit: str, base: Sequence[Number], new: Sequence[Number]
) -> Iterator[Measure]:
    if _known(base) or _known(new):
        yield Measure(of, name, unit, _values(base), _values(new), _moved(base, new))


def _of_fault(verdict: Verdict, name: str, measure: str) -> Number:
    fault = next((f for f in verdict.faults if f.name == name), None)
    if fault is None or fault.proof != PROVEN:
        return None
    match measure:
        case "recovered_after":
            return back_after_s(fault)
        case "error_window":
            return fault.error_window_s
        case "residual":
            return fault.residual
        case "amplification":
            return fault.amplification
        case _:
            return fault.budget.share if fault.budget else None


def _of_load(load: LoadReport, measure: str) -> Number:
    match measure:
        case "offered":
            return load.offered_rps
        case "achieved":
            return load.achieved_rps
        case "lane_wait.p99":
            return load.lane_wait_ms.p99
        case _:
            return load.send_lag_ms.p99
