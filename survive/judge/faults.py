"""Was a fault really on, and is it really gone? From the events alone (DESIGN §5, law 3).

Command and read-back prove nothing; only observations do, and those that are missing count
against the proof.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from survive.judge.verdict import FaultReport, Number
from survive.plan.model import GUARD_US, FaultWindow, Plan
from survive.record.events import Event, EventName
from survive.units import SECOND

PROVEN = "proven"
ONE_SHOT = "none (one-shot)"
_UNKNOWN_SHARE = 0.2
_GAP_US = 2 * SECOND  # four looks a second are due; a look may take 1 s


@dataclass(frozen=True, slots=True)
class Life:
    """What the record shows of one fault, all its injections together. Times in µs of the run."""

    window: FaultWindow
    proof: str  # PROVEN or why not
    active_share: float | None
    evidence: str
    injected_us: int | None  # when the last of its injections was in place
    healed_us: int | None  # when the last heal had ended
    heal_proven_us: int | None
    heal_proof: str  # PROVEN, ONE_SHOT or why not
    heal_owed: bool  # held, injected (or half), and not proven gone by its own heal: exit 5
    by_hand: tuple[str, ...]
    hit: str  # what was hit, as the events say; "" if they do not

    @property
    def proven(self) -> bool:
        """It was seen to bite for as long as planned."""
        return self.proof == PROVEN

    def late(self, end_us: int) -> list[tuple[int, int]]:
        """Spans [planned, actual) of cuts that came over 250 ms late."""
        spans = []
        if self.injected_us is not None:
            spans.append((self.window.inject_us, self.injected_us))
            if self.window.held:
                healed = end_us if self.healed_us is None else self.healed_us
                spans.append((self.window.heal_us, healed))
        return [(planned, actual) for planned, actual in spans if actual - planned > GUARD_US]


def lives(plan: Plan, events: Iterable[Event]) -> tuple[Life, ...]:
    """One life per planned fault, in the plan's order. RecordError for malformed events."""
    told = list(events)
    ended = [event for event in told if event.name == EventName.RUN_ENDED]
    remains = _remains(ended)
    whole = any(event.text("ended") == "complete" for event in ended)
    return tuple(
        _life(window, [e for e in told if e.text("fault") == window.fault], remains, whole=whole)
        for window in plan.faults
    )


def back_after_s(fault: FaultReport) -> Number:
    """After how long it was back; "inf" if it was watched and never was."""
    unseen = fault.heal_proof not in {PROVEN, ONE_SHOT} or fault.residual is None
    if fault.recovered_after_s is None and not unseen:
        return "inf"
    return fault.recovered_after_s


def heals_owed(plan: Plan, events: Iterable[Event]) -> bool:
    """A fault that was injected is not proven gone: whatever else happened, exit 5."""
    told = list(events)
    return any(life.heal_owed for life in lives(plan, told)) or bool(left_over(told))


def left_over(events: Iterable[Event]) -> list[str]:
    """What a run left that is of no fault it can name: a process, a ledger that cannot be read."""
    found = []
    for event in events:
        left = event.fields.get("unproven_heals") if event.name == EventName.RUN_ENDED else None
        for entry in left if isinstance(left, list) else []:
            if isinstance(entry, dict) and not entry.get("fault"):
                hands = f"; by hand: {entry['by_hand']}" if entry.get("by_hand") else ""
                found.append(f"the run may have left something: {entry.get('why')}{hands}")
    return found


def _remains(ended: Sequence[Event]) -> dict[str, list[str]]:
    """Fault → what is left to do by hand, as the agent said when it stopped."""
    found: dict[str, list[str]] = {}
    for event in ended:
        left = event.fields.get("unproven_heals")
        for entry in left if isinstance(left, list) else []:
            if isinstance(entry, dict):
                found.setdefault(str(entry.get("fault", "")), []).append(
                    str(entry.get("by_hand") or entry.get("why") or "see `survive heal`")
                )
    return found


def _life(
    window: FaultWindow, events: list[Event], remains: dict[str, list[str]], *, whole: bool
) -> Life:
    injected = _of(events, EventName.FAULT_INJECTED)
    healed = _of(events, EventName.FAULT_HEALED)
    proofs = _of(events, EventName.HEAL_PROVEN)
    ids = _ids(events)
    looks = {i: [e for e in _of(events, EventName.FAULT_OBSERVED) if e.text("injection") == i]
             for i in ids}  # fmt: skip
    problem, outside = _proof(window, injected, healed, looks)
    if whole and not problem:  # of a run that was stopped, everything was healed early
        problem = _too_early(window, healed)
    heal_problem = _heal_proof(window, ids, injected, proofs, looks, remains)
    active = [e for e in outside if e.text("active") == "yes"]
    return Life(
        window=window,
        proof=problem or PROVEN,
        active_share=len(active) / len(outside) if outside else None,
        evidence=active[-1].text("evidence") if active else "",  # the last one has counted most
        injected_us=_injected_us(window, injected),
        healed_us=_healed_us(ids, injected, healed),
        heal_proven_us=max((e.t_us for e in proofs), default=None) if not heal_problem else None,
        heal_proof=heal_problem or (PROVEN if window.held else ONE_SHOT),
        heal_owed=window.held
        and bool(heal_problem)
        and (bool(injected) or window.fault in remains),
        by_hand=_by_hand(window.fault, proofs, remains),
        hit=", ".join(dict.fromkeys(e.text("target") for e in injected if e.text("target"))),
    )


def _injected_us(window: FaultWindow, injected: list[Event]) -> int | None:
    """When all that was due at the cut had been hit.

    What a rolling fault hits later has a time of its own, and is neither late nor a new begin.
    """
    due = [e for e in injected if e.fields.get("planned_us") == window.inject_us]
    return max((e.integer("ended_us") for e in due or injected), default=None)


def _of(events: Iterable[Event], name: EventName) -> list[Event]:
    return [event for event in events if event.name == name]


def _ids(events: Iterable[Event]) -> list[str]:
    return list(dict.fromkeys(e.text("injection") for e in events if e.text("injection")))


def _healed_us(ids: Sequence[str], injected: list[Event], healed: list[Event]) -> int | None:
    """When the last injection was healed; None as long as one is not."""
    done = {event.text("injection") for event in healed}
    owed = {event.text("injection") for event in injected}
    if not healed or owed - done:
        return None
    return max(event.integer("ended_us") for event in healed if event.text("injection") in ids)


def _proof(
    window: FaultWindow,
    injected: list[Event],
    healed: list[Event],
    looks: dict[str, list[Event]],
) -> tuple[str, list[Event]]:
    """(why it is not proven or "", the observations that count)."""
    if not injected:
        return "it was never injected", []
    problems, counted = [], []
    for event in injected:
        mine = looks.get(event.text("injection"), [])
        problem, outside = _injection_proof(window, event, healed, mine)
        counted += outside
        if problem:
            problems.append(problem)
    missing = [i for i in looks if i not in {event.text("injection") for event in injected}]
    if missing:
        problems.append(f"{', '.join(missing)} was never injected")
    return (problems[0] if problems else ""), counted


def _injection_proof(
    window: FaultWindow, injected: Event, healed: list[Event], looks: list[Event]
) -> tuple[str, list[Event]]:
    if error := injected.text("error"):
        return f"inject failed: {error}", []
    if problem := _baseline(looks):
        return problem, []
    began, ended = injected.integer("began_us"), injected.integer("ended_us")
    after = [e for e in looks if e.text("stage") != "before"]
    if not window.held:
        seen = [e for e in after if e.t_us >= began]
        if any(e.text("active") == "yes" for e in seen):
            return "", [e for e in seen if e.text("active") == "yes"]
        return "it was never seen to bite", seen
    heal_began = [
        e.integer("began_us") for e in healed if e.text("injection") == injected.text("injection")
    ]
    if problem := _too_late(window, ended):
        return problem, []
    start_us = max(window.inject_us + GUARD_US, ended)
    until_us = min([window.heal_us, *heal_began])
    during = [e for e in after if e.text("stage") == "during" and start_us <= e.t_us <= until_us]
    return _held_proof(during, start_us, until_us), during


def _baseline(looks: list[Event]) -> str:
    before = [e.text("active") for e in looks if e.text("stage") == "before"]
    if not before:
        return "nobody looked before inject"
    if "yes" in before:
        return "it looked active before inject already"
    return "" if set(before) == {"no"} else "its baseline before inject is unknown"


def _too_late(window: FaultWindow, ended_us: int) -> str:
    """A fault that was on for the last moment of its window has not shown what the window says."""
    span_us = window.heal_us - window.inject_us
    late_us = ended_us - window.inject_us
    if late_us - GUARD_US <= max(min(_GAP_US, span_us // 2), _UNKNOWN_SHARE * span_us):
        return ""
    return f"it was in place {late_us / SECOND:.1f} s late, of the {span_us / SECOND:g} s planned"


def _too_early(window: FaultWindow, healed: list[Event]) -> str:
    """A window that goes on when its fault is gone says nothing of the fault."""
    began = [event.integer("began_us") for event in healed] if window.held else []
    early_us = window.heal_us - min(began, default=window.heal_us)
    return f"it was healed {early_us / SECOND:.1f} s early" if early_us > GUARD_US else ""


def _held_proof(during: list[Event], start_us: int, until_us: int) -> str:
    if not during:
        return "nobody looked while it was planned on"
    for event in during:
        if event.text("active") == "no":
            return f"it was seen inactive at {event.t_us / SECOND:.1f} s: {event.text('evidence')}"
    unknown = sum(event.text("active") != "yes" for event in during)
    if unknown > _UNKNOWN_SHARE * len(during):
        return f"{unknown} of {len(during)} looks could not tell"
    gap = _longest_gap(during, start_us, until_us)
    if gap > max(_GAP_US, _UNKNOWN_SHARE * (until_us - start_us)):
        return f"nobody looked for {gap / SECOND:.1f} s of its time"
    return ""


def _longest_gap(looks: list[Event], start_us: int, until_us: int) -> int:
    """The longest time between a look's end and the begin of the next one; looks may overlap."""
    longest, seen_us = 0, start_us
    for begin_us, end_us in sorted((_began_us(look), look.t_us) for look in looks):
        longest = max(longest, begin_us - seen_us)
        seen_us = max(seen_us, end_us)
    return max(longest, until_us - seen_us)


def _began_us(look: Event) -> int:
    """Older records tell only when a look ended."""
    return look.integer("began_us") if "began_us" in look.fields else look.t_us


def _heal_proof(
    window: FaultWindow,
    ids: Sequence[str],
    injected: list[Event],
    proofs: list[Event],
    looks: dict[str, list[Event]],
    remains: dict[str, list[str]],
) -> str:
    """Why the heal is not proven, or "" (also for one-shots, which have none)."""
    if not window.held:
        return ""
    if not injected:
        # An agent that died in the middle of it left a line in its ledger, and no event.
        begun = "; it may have been half done" if window.fault in remains else ""
        return f"it was never injected{begun}"
    for injection in ids:
        mine = [event for event in proofs if event.text("injection") == injection]
        if problem := _one_heal(mine, looks[injection]):
            return f"{injection}: {problem}" if len(ids) > 1 else problem
    if window.fault in remains:
        return "the agent could not prove it when it stopped"
    return ""


def _one_heal(proofs: list[Event], looks: list[Event]) -> str:
    if not proofs:
        return "no heal was recorded"
    last = proofs[-1]
    if not last.true("proven"):
        return last.text("evidence") or "it was still seen active"
    if not all(event.true("by_own_heal") for event in proofs):
        return "its own heal did not do it: " + (last.text("evidence") or "a later rung did")
    after = [event.text("active") for event in looks if event.text("stage") == "after"]
    if after and after[-1] != "no":
        return f"its last look after heal says {after[-1]!r}"
    return ""


def _by_hand(name: str, proofs: list[Event], remains: dict[str, list[str]]) -> tuple[str, ...]:
    said = [event.text("by_hand") for event in proofs if event.text("by_hand")]
    # The agent's last word: what went with the target meanwhile needs no hand any more.
    return tuple(dict.fromkeys(remains.get(name) or said))
