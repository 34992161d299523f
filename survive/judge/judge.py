"""``judge(record, scenario)``: from what was observed to what it means. Pure.

Limits come from the scenario, time from the record's plan, so a limit can be changed and a stored
run judged again. What happens here, in order: windows from plan and actual cuts; proofs from
events; the harness's own health; one cell per objective × kind × window; recoveries; the baseline
rule; the exit code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from survive.contracts import Grade
from survive.errors import RecordError
from survive.judge.budget import budget_of
from survive.judge.cells import Evidence, metric_name, other_cells, shown_limit, unit_of
from survive.judge.dispersion import LEAST_US
from survive.judge.episodes import episodes
from survive.judge.exits import Facts, exit_as_asked, exit_code, word_of
from survive.judge.faults import PROVEN, Life, back_after_s, left_over, lives
from survive.judge.grades import asked_of, fault_grades, lowest, ungraded
from survive.judge.hysteresis import loop_of
from survive.judge.journeys import never_asked, with_journeys
from survive.judge.lateness import HOLLOW_SHARE, Lateness
from survive.judge.load import absent, conservation, guilt, load_report, undelivered
from survive.judge.metrics import Shares, Tally, allowed_share
from survive.judge.probed import missing, seen
from survive.judge.rates import amplification, counted
from survive.judge.recovery import SAME_LOAD, Recovery, Steady, recovery_word, watch
from survive.judge.statistics import decide, lower_bound, upper_bound
from survive.judge.verdict import (
    Cell,
    Episodes,
    FaultReport,
    Loop,
    Number,
    ReplicaShare,
    Verdict,
    Word,
)
from survive.judge.windows import Group, Windows, groups, windows_of
from survive.record.events import Event, EventName
from survive.record.reader import Record
from survive.record.samples import BAD, Outcome
from survive.record.table import I64, OUTCOME_CODE, OUTCOMES
from survive.scenario.model import GAUGES, PROBED, TALLIED, Metric, Objective, Scenario
from survive.units import SECOND

_DEFAULT_STABLE_US = 5 * SECOND  # half of the 10 s that are watched when no objective says
BASELINE_UNDECIDED = "the baseline (steady) is undecided"
_NO_KIND = -1  # of a locustfile: what nothing was called
_BROKE_OFF = {
    "target_unhealthy": "the target never became healthy",
    "agent_died": "the chaos agent died",
    "load_died": "the load process died",
}


def judge(record: Record, scenario: Scenario) -> Verdict:
    """The verdict on a stored run. RecordError if scenario and record do not belong together."""
    return _Judgement(record, with_journeys(scenario, record.plan)).verdict()


@dataclass(frozen=True, slots=True)
class _Watched:
    """One fault with all that was found out about it."""

    life: Life
    group: Group
    recovery: Recovery


class _Judgement:
    """One judging. Built top-down, read once."""

    def __init__(self, record: Record, scenario: Scenario) -> None:
        self._record, self._scenario = record, scenario
        self._plan, self._table = record.plan, record.table
        self._check()
        self._lives = {life.window.fault: life for life in lives(self._plan, record.events)}
        late = [span for life in self._lives.values() for span in life.late(self._plan.end_us)]
        self._windows = Windows(self._plan, late)
        self._tallies: dict[tuple[str, str], Tally] = {}
        self._seen = seen(record.events)
        self._guilt = guilt(self._plan, self._table, self._windows)
        self._lateness = Lateness(self._plan, self._table, self._windows)
        self._ours: set[tuple[str, str, str]] = set()  # (name, request, window) undecided by us
        self._steady = self._steady_objectives(self._tally)
        self._evidence = self._evidence_by(self._tally)
        self._sparing = self._evidence_by(self._spared)

    def _check(self) -> None:
        known = {fault.fault for fault in self._plan.faults}
        if set(self._scenario.faults) != known:
            raise RecordError("the scenario has other faults than the plan of this run")
        for objective in self._scenario.objectives.values():
            named = set() if objective.metric in PROBED | GAUGES else set(objective.of)
            unknown = [] if self._plan.locustfile else sorted(named - set(self._plan.kinds))
            if unknown:
                raise RecordError(f"the plan of this run has no request {unknown[0]!r}")

    def verdict(self) -> Verdict:
        """Everything, in the order of the scenario."""
        watched = self._watch(self._stable_us())
        cells = self._cells()
        grades = fault_grades(self._record, self._scenario)
        grade = lowest(self._record, self._scenario, grades)
        facts = self._facts(cells, grade)
        word = word_of(exit_code(facts))
        if word is None:
            raise RecordError(f"there is no verdict on this run: {facts.reasons()[0]}")
        asked = asked_of(self._record, "inconclusive")
        code = exit_as_asked(facts, asked)
        said = [f"exit {code:d}, as --inconclusive {asked} asks"] * (code != exit_code(facts))
        reports = [self._fault_report(w, grades[w.life.window.fault]) for w in watched]
        return Verdict(
            verdict=word,
            exit_code=code,
            reasons=(*facts.reasons(), *said),
            objectives=tuple(cells),
            faults=tuple(reports),
            load=load_report(self._plan, self._table, self._windows),
            grade=str(grade),
            episodes=tuple(self._episodes(reports)),
            loops=tuple(self._loops()),
            guilt=(*self._guilt, *facts.late),
        )

    # ------------------------------------------------------------------ objectives

    def _tally(self, objective: Objective, kind: str) -> Tally:
        key = (objective.name, kind)
        if key not in self._tallies:
            kinds = self._plan.kinds
            at = kinds.index(kind) if kind in kinds else _NO_KIND
            self._tallies[key] = Tally(self._table, self._windows, objective, at)
        return self._tallies[key]

    def _spared(self, objective: Objective, kind: str) -> Shares:
        """The same without what may be bad because the harness was late with it."""
        return self._lateness.without(self._tally(objective, kind))

    def _evidence_by(self, tally: Callable[[Objective, str], Shares]) -> Evidence:
        steady = [one for _, one in self._steady_objectives(tally)]
        return Evidence(self._record, self._scenario, self._windows, self._seen, steady, tally)

    def _steady_objectives(
        self, tally: Callable[[Objective, str], Shares]
    ) -> list[tuple[str, Steady]]:
        """(objective, what it means for one kind) of what recovery is recovery of."""
        return [
            (objective.name, Steady(kind, allowed_share(objective), tally(objective, kind)))
            for objective in self._scenario.objectives.values()
            if objective.during == "steady" and objective.metric in TALLIED
            for kind in objective.of
        ]

    def _cells(self) -> list[Cell]:
        cells = [
            cell
            for objective in self._scenario.objectives.values()
            for cell in self._cells_of(objective)
        ]
        steady = [cell.verdict for cell in cells if cell.window == "steady"]
        if Word.INCONCLUSIVE not in steady:
            return cells
        return [
            _tempered(cell, BASELINE_UNDECIDED)
            if cell.window.startswith(("fault:", "recovery:"))
            else cell
            for cell in cells
        ]

    def _cells_of(self, objective: Objective) -> Iterator[Cell]:
        never = never_asked(objective, self._plan)
        for found in self._judged_cells(objective):
            cell = self._as_planned(found, objective)
            whole = cell.request in self._plan.kinds
            yield _tempered(cell, never) if never and not whole else cell

    def _as_planned(self, cell: Cell, objective: Objective) -> Cell:
        """No green on a load that came late by our own doing: it was not the one that is asked."""
        if cell.verdict is not Word.SURVIVED or objective.metric in PROBED | GAUGES:
            return cell
        names = (cell.request,) if cell.request else objective.of or self._plan.kinds
        kinds = [self._plan.kinds.index(name) for name in names if name in self._plan.kinds]
        share = self._lateness.share(kinds, cell.window)
        if self._guilt or share <= HOLLOW_SHARE:
            return cell
        self._ours.add((cell.name, cell.request, cell.window))
        why = f"the harness sent {share:.1%} of its requests over 100 ms late: not the planned load"
        return replace(cell, verdict=Word.INCONCLUSIVE, why=why)

    def _judged_cells(self, objective: Objective) -> Iterator[Cell]:
        if objective.metric is Metric.RECOVERY:
            yield from self._recovery_cells(objective)
        elif objective.metric in TALLIED:
            yield from self._share_cells(objective)
        else:
            cells = left = list(other_cells(self._evidence, objective))
            if self._may_be_ours(cell.verdict for cell in cells):
                left = list(other_cells(self._sparing, objective))
            for cell, spared in zip(cells, left, strict=True):
                found = self._spare(cell, spared.verdict, "the requests")
                yield self._if_proven(replace(found, with_faults=self._with(cell.window)))

    def _share_cells(self, objective: Objective) -> Iterator[Cell]:
        for window in windows_of(objective, self._plan):
            for kind in objective.of:
                yield self._share_cell(objective, kind, window)

    def _share_cell(self, objective: Objective, kind: str, window: str) -> Cell:
        tally = self._tally(objective, kind)
        n, bad = tally.total(window)
        span_us = self._windows.span_us(window)
        effect = 1.0
        if window == "steady" and span_us >= LEAST_US and 0 < bad < n:
            effect = tally.effect(window)
        interval = (lower_bound(bad / effect, n / effect), upper_bound(bad / effect, n / effect))
        judged = tally.judged(window, objective, interval, effect)
        rps = n * SECOND / span_us if span_us else 0.0
        decision = decide(bad, n, allowed_share(objective), rps, effect)
        cell = Cell(
            name=objective.name,
            metric=metric_name(objective),
            request=kind,
            window=window,
            verdict=decision.word,
            limit=shown_limit(objective),
            unit=unit_of(objective),
            observed=judged.observed,
            low=judged.low,
            high=judged.high,
            n=n,
            bad=bad,
            why=decision.why,
            observed_ok=judged.observed_ok,
            with_faults=self._with(window),
            bound="min" if objective.at_least else "max",
        )
        if self._may_be_ours([decision.word]):
            left_n, left_bad = self._spared(objective, kind).total(window)
            left = decide(left_bad, left_n, allowed_share(objective), rps, effect)
            cell = self._spare(cell, left.word, f"{bad - left_bad:,} of the {bad:,} bad requests")
        if judged.undecided:
            cell = _tempered(cell, f"the fate of {judged.undecided} requests is not known")
        return self._if_proven(cell)

    def _may_be_ours(self, words: Iterable[Word]) -> bool:
        """There is a red, and the harness was late at some time; if all over, no red counts."""
        return not self._guilt and Word.FAILED in words and self._lateness.ever()

    def _spare(self, cell: Cell, left: Word, ours: str) -> Cell:
        """A red that does not stand without what the harness itself was late with is none."""
        if cell.verdict is not Word.FAILED or left is Word.FAILED:
            return cell
        why = f"it is not broken without {ours} that the harness itself sent or read late"
        self._ours.add((cell.name, cell.request, cell.window))
        return replace(cell, verdict=Word.INCONCLUSIVE, why=why)

    def _with(self, window: str) -> tuple[str, ...]:
        kind, _, name = window.partition(":")
        return self._windows.overlapping(name) if kind == "fault" else ()

    def _if_proven(self, cell: Cell) -> Cell:
        """What was survived must have happened. A red stays red: the failures are real."""
        kind, _, name = cell.window.partition(":")
        if kind not in {"fault", "recovery"}:
            return cell
        for one in self._windows.repeats(name) or (name,):
            life = self._lives[one]
            if not life.proven:
                return _tempered(cell, f"{one} was not proven active: {life.proof}")
            if kind == "recovery" and (unhealed := self._unhealed(one)):
                return _tempered(cell, unhealed)
        return cell

    # -------------------------------------------------------------------- recovery

    def _groups(self) -> Iterator[tuple[Group, Life]]:
        for group in groups(self._plan):
            for fault in group.faults:
                yield group, self._lives[fault.fault]

    def _watch(self, stable_us: int, evidence: Evidence | None = None) -> list[_Watched]:
        steady = (evidence or self._evidence).steady
        return [
            _Watched(
                life,
                group,
                watch(group, life, self._origin(group), steady, self._windows, stable_us),
            )
            for group, life in self._groups()
        ]

    def _origin(self, group: Group) -> int | None:
        """The last proven heal (one-shots: inject) of a group; None if one is not proven."""
        moments = []
        for fault in group.faults:
            life = self._lives[fault.fault]
            at = life.heal_proven_us if fault.held else life.injected_us
            if at is None:
                return None
            moments.append(at)
        return max(moments)

    def _unhealed(self, name: str) -> str:
        """Why the recovery clock may not start, or ""."""
        group = next(g for g in groups(self._plan) if name in {f.fault for f in g.faults})
        for fault in group.faults:
            life = self._lives[fault.fault]
            if fault.held and life.heal_proven_us is None:
                return f"the heal of {fault.fault} is not proven: {life.heal_proof}"
        return ""

    def _stable_us(self) -> int:
        """Of the recovery objective that watches longest."""
        objectives = [o for o in self._scenario.objectives.values() if o.metric is Metric.RECOVERY]
        longest = max(objectives, key=lambda o: o.limit + o.stable_for_us, default=None)
        return longest.stable_for_us if longest else _DEFAULT_STABLE_US

    def _recovery_cells(self, objective: Objective) -> Iterator[Cell]:
        found = left = self._watch(objective.stable_for_us)
        if self._may_be_ours(recovery_word(w.recovery, objective.limit)[0] for w in found):
            left = self._watch(objective.stable_for_us, self._sparing)
        for watched, spared in zip(found, left, strict=True):
            name, recovery = watched.life.window.fault, watched.recovery
            word, why = recovery_word(recovery, objective.limit)
            if word is Word.FAILED and watched.recovery.risen > SAME_LOAD:
                why = self._note(watched)
            if unhealed := self._unhealed(name):
                word, why = Word.INCONCLUSIVE, unhealed
            cell = Cell(
                name=objective.name,
                metric=metric_name(objective),
                request="",
                window=f"recovery:{name}",
                verdict=word,
                limit=objective.limit / SECOND,
                unit="s",
                observed=_recovered_s(recovery, word),
                low=_seconds(recovery.earliest_after_us),
                high=_seconds(recovery.recovered_after_us),
                n=recovery.n,
                bad=recovery.bad,
                why=why,
                with_faults=tuple(f.fault for f in watched.group.faults if f.fault != name),
            )
            without_ours, _ = recovery_word(spared.recovery, objective.limit)
            yield self._if_proven(self._spare(cell, without_ours, "the requests"))

    def _note(self, watched: _Watched) -> str:
        recovery = watched.recovery
        if recovery.still_broken and recovery.risen > SAME_LOAD:
            return f"not recovered, load rose {recovery.risen - 1:.0%}"
        return ""

    def _metastable(self, watched: _Watched) -> bool:
        """Healed, the load no higher than before, watched long enough, and yet broken."""
        origin_us = self._origin(watched.group)
        limits = [
            max(o.limit, 2 * o.stable_for_us)
            for o in self._scenario.objectives.values()
            if o.metric is Metric.RECOVERY
        ]
        if origin_us is None or not limits or self._guilt:
            return False
        seen_us = watched.group.end_us - watched.group.last_heal_us
        calm = watched.recovery.risen <= SAME_LOAD
        if not (watched.recovery.still_broken and calm and seen_us >= max(limits)):
            return False
        if not self._lateness.ever():
            return True
        spared = self._watch(self._stable_us(), self._sparing)
        name = watched.life.window.fault
        return any(w.recovery.still_broken for w in spared if w.life.window.fault == name)

    # ---------------------------------------------------------------------- faults

    def _fault_report(self, watched: _Watched, grade: Grade) -> FaultReport:
        life, recovery = watched.life, watched.recovery
        fault = self._scenario.faults[life.window.fault]
        return FaultReport(
            name=fault.name,
            kind=fault.kind,
            grade=str(grade),
            target=fault.link or life.hit or fault.service,
            planned_at_s=life.window.inject_us / SECOND,
            injected_at_s=_seconds(life.injected_us),
            active_share=life.active_share,
            proof=life.proof,
            planned_heal_s=life.window.heal_us / SECOND if life.window.held else None,
            healed_at_s=_seconds(life.healed_us),
            heal_proof=life.heal_proof,
            absorbed_after_s=_seconds(recovery.absorbed_after_us),
            recovered_after_s=_seconds(recovery.recovered_after_us),
            error_window_s=_seconds(recovery.error_window_us),
            residual=recovery.residual,
            metastable=self._metastable(watched),
            note=self._note(watched),
            evidence=life.evidence,
            replicas=self._replicas(life.window.fault),
            failures=self._failures(life.window.fault),
            amplification=self._amplification(life.window.fault),
            budget=budget_of(life.window, self._steady, self._windows) if life.proven else None,
        )

    def _amplification(self, name: str) -> float | None:
        every = range(len(self._plan.kinds))
        return amplification(self._table, self._windows, every, f"fault:{name}")[0]

    def _episodes(self, reports: Sequence[FaultReport]) -> Iterator[Episodes]:
        """Of faults that came several times; what was not proven is no episode."""
        for pool in dict.fromkeys(fault.pool for fault in self._plan.faults if fault.pool):
            names = self._windows.repeats(pool)
            mine = [r for r in reports if r.name in names and r.proof == PROVEN]
            measures: dict[str, list[Number]] = {
                "recovered_after_s": [back_after_s(r) for r in mine],
                "error_window_s": [r.error_window_s for r in mine],
                "success": [self._success(f"fault:{r.name}") for r in mine],
            }
            for measure, values in measures.items():
                better = measure == "success"
                if found := episodes(pool, measure, values, more_is_better=better):
                    yield found

    def _success(self, window: str) -> float | None:
        every = range(len(self._plan.kinds))
        ok, bad = (
            sum(counted(self._table, self._windows, every, window, outcome) for outcome in outcomes)
            for outcomes in ((Outcome.OK,), BAD)
        )
        return ok / (ok + bad) if ok + bad else None

    def _loops(self) -> Iterator[Loop]:
        for objective in self._scenario.objectives.values():
            if found := loop_of(objective, self._evidence.steady, self._windows):
                yield found

    def _named_in(self, window: str, named: I64) -> I64:
        """The lines of ``who`` or ``why`` whose requests belong to a window and went bad."""
        slices = self._windows.first_slice[named[:, 1]]
        inside = self._windows.mask(window, slices, named[:, 2])
        sent = (Outcome.FAILED, Outcome.TIMED_OUT, Outcome.ABANDONED)
        return named[inside & np.isin(named[:, 3], [OUTCOME_CODE[outcome] for outcome in sent])]

    def _replicas(self, name: str) -> tuple[ReplicaShare, ...]:
        """Failures by who answered, of services with several replicas, most first."""
        failed: dict[str, int] = {}
        for *_, who, n in self._named_in(f"fault:{name}", self._table.who).tolist():
            replica = self._table.who_names[who]
            failed[replica] = failed.get(replica, 0) + n
        shares = []
        for replica, n in failed.items():
            service = replica.rpartition("-")[0]
            replicas = getattr(self._scenario.target.services.get(service), "replicas", 0)
            of_service = sum(
                m for other, m in failed.items() if other.rpartition("-")[0] == service
            )
            if replicas > 1:
                shares.append(ReplicaShare(replica, n, n / of_service, 1 / replicas))
        return tuple(sorted(shares, key=lambda s: (-s.failed, s.replica)))

    def _failures(self, name: str) -> tuple[tuple[str, int], ...]:
        """Why → requests, most first: classes of failure, and the outcomes that are one."""
        found: dict[str, int] = {}
        for *_, outcome, why, n in self._named_in(f"fault:{name}", self._table.why).tolist():
            if OUTCOMES[outcome - 1] is Outcome.FAILED:
                key = self._table.why_names[why]
                found[key] = found.get(key, 0) + n
        inside = self._windows.mask(f"fault:{name}", self._table.rows[:, 1], self._table.rows[:, 2])
        for outcome in (Outcome.TIMED_OUT, Outcome.ABANDONED, Outcome.EXPIRED):
            n = int(self._table.row_counts[inside, OUTCOME_CODE[outcome] - 1].sum())
            if n:
                found[str(outcome)] = n
        return tuple(sorted(found.items(), key=lambda item: (-item[1], item[0])))

    # ----------------------------------------------------------------------- facts

    def _facts(self, cells: Sequence[Cell], grade: Grade) -> Facts:
        ended = self._record.named(EventName.RUN_ENDED)[-1]
        stops = self._record.named(EventName.STOPPED)
        unproven = [life for life in self._lives.values() if not life.proven]
        return Facts(
            heal_unproven=(
                *(_unproven_heal(life) for life in self._lives.values() if life.heal_owed),
                *left_over(self._record.events),
            ),
            signal=next((e.text("signal") or "SIGINT" for e in stops if _by(e, "signal")), ""),
            refused=(ended.text("detail"),) if ended.text("ended") == "refused" else (),
            stopped=tuple(f"stopped by {e.text('rule')}" for e in stops if _by(e, "stop_if")),
            harness=tuple(self._harness(ended)),
            failed=tuple(_broke(cell) for cell in cells if cell.verdict is Word.FAILED),
            late=tuple(_undecided(cell) for cell in cells if self._is_ours(cell)),
            ungraded=tuple(ungraded(self._record, grade)),
            gaps=(
                *(f"{x.window.fault} was not proven active: {x.proof}" for x in unproven),
                *(["the run was stopped"] if ended.text("ended") == "stopped" else []),
                *self._undelivered(ended),
                *(
                    _undecided(cell)
                    for cell in cells
                    if cell.verdict is Word.INCONCLUSIVE and not self._is_ours(cell)
                ),
            ),
        )

    def _is_ours(self, cell: Cell) -> bool:
        return (cell.name, cell.request, cell.window) in self._ours

    def _undelivered(self, ended: Event) -> list[str]:
        if ended.text("ended") != "complete":
            return []
        missing = absent(self._plan, self._table, self._windows)
        return [*undelivered(self._table), *missing]

    def _harness(self, ended: Event) -> Iterator[str]:
        how = ended.text("ended")
        if how in _BROKE_OFF:
            yield ended.text("detail") or _BROKE_OFF[how]
            return
        if how not in {"complete", "stopped", "refused"}:
            raise RecordError(f"the run ended in a way that this version does not know: {how!r}")
        yield from self._guilt
        if how == "complete":
            yield from missing(self._seen, self._scenario, self._plan)
            wrong = conservation(self._plan, self._table, self._windows)
            yield from (f"the load's own books do not balance: {line}" for line in wrong[:3])


def _by(event: Event, what: str) -> bool:
    return event.text("by") == what


def _unproven_heal(life: Life) -> str:
    hands = f"; by hand: {'; '.join(life.by_hand)}" if life.by_hand else ""
    return f"the heal of {life.window.fault} is not proven: {life.heal_proof}{hands}"


def _tempered(cell: Cell, why: str) -> Cell:
    """Evidence gaps remove greens and never reds."""
    if cell.verdict is Word.FAILED:
        return replace(cell, why=cell.why or f"although {why}")
    also = f"; {cell.why}" if cell.why not in {"", why} else ""
    return replace(cell, verdict=Word.INCONCLUSIVE, why=why + also)


def _seconds(us: int | None) -> float | None:
    return None if us is None else us / SECOND


def _recovered_s(recovery: Recovery, word: Word) -> Number:
    if word is Word.FAILED and recovery.decided and recovery.recovered_after_us is None:
        return "inf"
    return _seconds(recovery.recovered_after_us)


def _place(cell: Cell) -> str:
    whose = f" for {cell.request}" if cell.request else ""
    return f"{whose} during {cell.window}"


def _shown(cell: Cell, value: Number) -> str:
    if value is None:
        return "nothing measured"
    if isinstance(value, str):
        return "never" if cell.unit == "s" else value
    return f"{value * 100:.4g} %" if cell.unit == "share" else f"{value:.4g} {cell.unit}".rstrip()


def _broke(cell: Cell) -> str:
    text = f"{cell.name} broke{_place(cell)}: {cell.metric} {_shown(cell, cell.observed)}"
    why = f" ({cell.why})" if cell.why else ""
    return f"{text}, limit {_shown(cell, cell.limit)}{why}"


def _undecided(cell: Cell) -> str:
    return f"{cell.name} is undecided{_place(cell)}: {cell.why}"
