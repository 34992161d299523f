"""From outcomes to marks: which weakness was found, which claim holds, what was condemned. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from survive.contracts import Json
from survive.errors import ExitCode
from survive.exam.cells import HEALTHY, Claim, Outcome, Weather


@dataclass(frozen=True, slots=True)
class Tally:
    """How often a cell was what it must be. ``odd``: the reason of the first that was not."""

    good: int
    bad: int  # the opposite: condemned, or got away
    open: int  # inconclusive
    broken: int  # no verdict at all
    odd: str = ""

    @property
    def n(self) -> int:
        """Runs."""
        return self.good + self.bad + self.open + self.broken

    @property
    def holds(self) -> bool:
        """Every run was what it must be, and there was one."""
        return self.n > 0 and self.good == self.n

    def to_json(self) -> dict[str, Json]:
        """Numbers by name."""
        return {
            "n": self.n,
            "good": self.good,
            "bad": self.bad,
            "open": self.open,
            "broken": self.broken,
            "odd": self.odd,
        }


@dataclass(frozen=True, slots=True)
class Row:
    """A claim and its three cells."""

    claim: Claim
    fault: str  # its kinds, for people
    healthy: Tally  # good = survived
    calm: Tally  # good = survived
    weak: Tally  # good = failed, and the claimed objective is among those that broke

    @property
    def holds(self) -> bool:
        """The weakness alone is harmless, the fault alone too, both together are found."""
        return self.healthy.holds and self.calm.holds and self.weak.holds


@dataclass(frozen=True, slots=True)
class Mark:
    """One field of the kill matrix."""

    word: str  # killed | survived | inconclusive | error | condemned (the healthy stack, too)
    objectives: tuple[str, ...] = ()

    @property
    def kills(self) -> bool:
        """The gate went red, and not for the healthy stack."""
        return self.word == "killed"


@dataclass(frozen=True, slots=True)
class Cost:
    """What the runs of a scenario took."""

    scenario: str
    runs: int
    mean_cpu_s: float
    most_cpu_s: float


@dataclass(frozen=True, slots=True)
class Report:
    """The whole exam."""

    weaknesses: tuple[str, ...]  # that must be found
    rows: tuple[Row, ...]
    matrix: Mapping[tuple[str, str], Mark]  # (weakness, scenario); empty if it was not sat
    scenarios: tuple[str, ...]  # columns of the matrix
    skipped: Mapping[str, str] = field(default_factory=dict)  # scenario file → why
    costs: tuple[Cost, ...] = ()
    longest_wall_s: float = 0.0
    runs: int = 0
    host: str = "virtual"
    seeds: int = 1
    moved: tuple[str, ...] = ()  # scenarios that sat on another target than their own
    finders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # weakness → of our own
    unsure: tuple[str, ...] = ()  # of the matrix: scenarios that cannot tell a sound stack alive

    @property
    def cpu_s(self) -> float:
        """Of all runs."""
        return sum(cost.runs * cost.mean_cpu_s for cost in self.costs)

    @property
    def missed(self) -> tuple[str, ...]:
        """Weaknesses that no scenario finds: your gate would miss them."""
        found = {row.claim.weakness for row in self.rows if row.weak.holds}
        found |= {weakness for (weakness, _), mark in self.matrix.items() if mark.kills}
        return tuple(weakness for weakness in self.weaknesses if weakness not in found)

    @property
    def condemned(self) -> tuple[str, ...]:
        """Scenarios that fail on the healthy stack, and claims that fail in calm weather."""
        said = [row.claim.scenario for row in self.rows if row.healthy.bad]
        said += [scenario for (_, scenario), m in self.matrix.items() if m.word == "condemned"]
        said += [
            f"{row.claim.scenario} with {row.claim.weakness} in calm weather"
            for row in self.rows
            if row.calm.bad
        ]
        return tuple(dict.fromkeys(said))

    @property
    def untrue(self) -> tuple[Row, ...]:
        """Claims whose weak stack did not break the claimed objective on every seed."""
        return tuple(row for row in self.rows if not row.weak.holds)

    @property
    def undecided(self) -> tuple[Row, ...]:
        """Rows where a stack that must survive was neither found alive nor condemned."""
        return tuple(
            row
            for row in self.rows
            for tally in (row.healthy, row.calm)
            if not tally.holds and not tally.bad
        )

    @property
    def exit_code(self) -> ExitCode:
        """1 before 3: what was missed is missed however much else is undecided."""
        if self.missed or self.condemned or self.untrue:
            return ExitCode.FAILED
        return ExitCode.INCONCLUSIVE if self.undecided or self.unsure else ExitCode.SURVIVED


def rows_of(
    claims: Iterable[Claim],
    outcomes: Sequence[Outcome],
    seeds: Mapping[str, range],
    faults: Mapping[str, str],
) -> tuple[Row, ...]:
    """The cells of each claim, on the seeds of its scenario."""  # fmt: skip
    by_stack: dict[tuple[str, str, Weather], list[Outcome]] = {}
    for outcome in outcomes:
        cell = outcome.cell
        if cell.seed in seeds[cell.scenario]:
            by_stack.setdefault((cell.scenario, cell.weakness, cell.weather), []).append(outcome)

    def of(claim: Claim, weakness: str, weather: Weather) -> list[Outcome]:
        return by_stack.get((claim.scenario, weakness, weather), [])

    return tuple(
        Row(
            claim,
            faults[claim.scenario],
            _tally(of(claim, HEALTHY, Weather.FAULT), _survived, "failed"),
            _tally(of(claim, claim.weakness, Weather.CALM), _survived, "failed"),
            _tally(
                of(claim, claim.weakness, Weather.FAULT),
                lambda outcome, claim=claim: killed(outcome, claim.objective),  # type: ignore[misc]
                "survived",
            ),
        )
        for claim in claims
    )


def _survived(outcome: Outcome) -> bool:
    return outcome.verdict == "survived" and outcome.exit_code == ExitCode.SURVIVED


def killed(outcome: Outcome, objective: str = "") -> bool:
    """The gate went red, and for the stated reason if one is stated."""
    red = outcome.verdict == "failed" and outcome.exit_code in {ExitCode.FAILED, ExitCode.STOPPED}
    return red and (objective in outcome.failed if objective else bool(outcome.failed))


def _tally(outcomes: Sequence[Outcome], is_good: Callable[[Outcome], bool], opposite: str) -> Tally:
    rest = [outcome for outcome in outcomes if not is_good(outcome)]
    broken = [outcome for outcome in rest if outcome.verdict == "error"]
    undecided = [outcome for outcome in rest if outcome.verdict == "inconclusive"]
    odd = rest[0] if rest else None
    return Tally(
        good=len(outcomes) - len(rest),
        # Red for another reason than the claimed one is no kill either.
        bad=len(rest) - len(broken) - len(undecided),
        open=len(undecided),
        broken=len(broken),
        odd=_odd(odd, opposite) if odd is not None else "",
    )


def _odd(outcome: Outcome, opposite: str) -> str:
    why = "; ".join(outcome.reasons) or outcome.verdict
    wrong = f"only {', '.join(outcome.failed)} broke: " if opposite == "survived" else ""
    return f"seed {outcome.cell.seed}: {wrong if outcome.failed else ''}{why}"


def costs_of(outcomes: Iterable[Outcome]) -> tuple[Cost, ...]:
    """The dearest scenario first."""
    spent: dict[str, list[float]] = {}
    for outcome in outcomes:
        spent.setdefault(outcome.cell.scenario, []).append(outcome.cpu_s)
    costs = [Cost(name, len(s), sum(s) / len(s), max(s)) for name, s in spent.items()]
    return tuple(sorted(costs, key=lambda cost: (-cost.mean_cpu_s, cost.scenario)))


def matrix_of(
    outcomes: Iterable[Outcome], seeds: Mapping[str, range]
) -> dict[tuple[str, str], Mark]:
    """Every weakness under every scenario, on the first seed of each."""
    stormy = _of_matrix(outcomes, seeds)
    condemned = {
        o.cell.scenario for o in stormy if o.cell.weakness == HEALTHY and o.verdict == "failed"
    }
    return {
        (o.cell.weakness, o.cell.scenario): _mark(o, o.cell.scenario in condemned)
        for o in stormy
        if o.cell.weakness != HEALTHY
    }


def unsure_of(outcomes: Iterable[Outcome], seeds: Mapping[str, range]) -> tuple[str, ...]:
    """Scenarios that neither pass nor condemn the healthy stack: such a gate is red for all."""
    healthy = [o for o in _of_matrix(outcomes, seeds) if o.cell.weakness == HEALTHY]
    return tuple(o.cell.scenario for o in healthy if not _survived(o) and o.verdict != "failed")


def _of_matrix(outcomes: Iterable[Outcome], seeds: Mapping[str, range]) -> list[Outcome]:
    first = [o for o in outcomes if o.cell.seed == seeds[o.cell.scenario].start]
    return [outcome for outcome in first if outcome.cell.weather is Weather.FAULT]


def _mark(outcome: Outcome, condemned: bool) -> Mark:
    if condemned:
        return Mark("condemned")
    if killed(outcome):
        return Mark("killed", outcome.failed)
    # Red without a broken objective (stop_if) is red all the same.
    return Mark("killed" if outcome.verdict == "failed" else outcome.verdict, outcome.failed)
