"""The verdict, as it is written to ``verdict.json`` and read by every reporter."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum

from survive.contracts import Json
from survive.errors import ExitCode

Number = float | str | None  # a number, "inf", or nothing measured


class Word(StrEnum):
    """Three verdicts; ``worst`` composes them: failed beats inconclusive beats survived."""

    SURVIVED = "survived"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class Cell:
    """One objective × request kind × window: the unit of judgement.

    Shares as 0..1; latencies in ms; other times in s. ``observed`` of a percentile objective is
    that percentile with failures as +infinity ("inf"), ``observed_ok`` that of successes alone;
    ``low``/``high`` the two-sided 90 % interval of ``observed``; ``n``/``bad`` the share judged.
    """

    name: str
    metric: str  # "ttft.p95"
    request: str  # a request kind, a probe or a service; "" = all together
    window: str  # "fault:gpu-loss"
    verdict: Word
    limit: float
    unit: str  # share | ms | s | per s | x | "" (a count) | "USD per 1M tokens"
    observed: Number
    low: Number
    high: Number
    n: int
    bad: int
    why: str = ""  # one sentence where the verdict is not plain from the numbers
    observed_ok: Number = None
    with_faults: tuple[str, ...] = ()  # other faults that were open in this window
    bound: str = "max"  # the limit is a min or a max


@dataclass(frozen=True, slots=True)
class ReplicaShare:
    """Who failed: one replica's share of the failures against its fair share (1 / replicas)."""

    replica: str
    failed: int
    share: float
    fair: float

    @property
    def factor(self) -> float:
        """Black-hole factor: 1 = fair."""
        return self.share / self.fair if self.fair else 0.0


@dataclass(frozen=True, slots=True)
class Budget:
    """What one incident like this fault costs of 30 days' error budget, and would it page.

    Of the steady objective that it costs most. Formulas stand in `survive/judge/budget.py`.
    """

    objective: str
    request: str
    bad: int  # requests, from inject to the end of its watch
    share: float  # of the 30-day budget; 1 = all of it
    burn_1h: float  # burn rate over the worst hour: 1 = the budget lasts just 30 days
    burn_5m: float
    pages: bool


@dataclass(frozen=True, slots=True)
class Episodes:
    """One measure of a fault over its repeats ``x#1``, ``x#2``, ...: what runs differ by."""

    fault: str
    measure: str  # recovered_after_s | error_window_s | success
    values: tuple[Number, ...]  # in order of time; None = never, or not measured
    median: Number
    worst: Number
    low: Number  # 90 % interval of the median over such episodes, by rank; None = no such rank
    high: Number
    confidence: float  # what that interval really holds


@dataclass(frozen=True, slots=True)
class Loop:
    """What lowering the load did to a system that stayed broken: well | broken | undecided."""

    objective: str
    rps: float
    relief_rps: float
    before: str
    relief: str
    again: str
    hysteresis: bool  # the same load carries both states, and relief leads from one to the other
    told: str


@dataclass(frozen=True, slots=True)
class FaultReport:
    """What one fault did, when, how it was proven, and how the target came back. Times in s."""

    name: str
    kind: str
    grade: str
    target: str  # what was hit: "inference-1", "gateway -> inference"
    planned_at_s: float
    injected_at_s: float | None
    active_share: float | None  # of the observations outside the guards
    proof: str  # "proven" or why not
    planned_heal_s: float | None
    healed_at_s: float | None
    heal_proof: str  # "proven", "none (one-shot)" or why not
    absorbed_after_s: float | None
    recovered_after_s: float | None
    error_window_s: float | None
    residual: float | None
    metastable: bool
    note: str = ""  # "not recovered, load rose 40 %"
    evidence: str = ""  # one observation while active, in words
    replicas: tuple[ReplicaShare, ...] = ()
    failures: tuple[tuple[str, int], ...] = ()  # why → count, most first
    amplification: float | None = None  # attempts ÷ intents while it was on
    budget: Budget | None = None  # None = no steady objective, or not proven


@dataclass(frozen=True, slots=True)
class Spread:
    """p50, p99, max in ms."""

    p50: Number
    p99: Number
    max: Number


@dataclass(frozen=True, slots=True)
class Stalls:
    """Turns of the load's loop over 10 ms; ``preempted``: those while others had the core."""

    over_10_ms: int = 0
    over_100_ms: int = 0
    preempted: int = 0
    longest_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class People:
    """Who made the load of a closed model."""

    most: int
    present: float  # of the time that they were planned for, the share in which they were there


@dataclass(frozen=True, slots=True)
class LoadReport:
    """Conservation and the harness's own health, whole run.

    ``model`` is open or closed. A closed one (users who wait for their answers) plans no number
    of requests, and its latencies leave out the time in which users could not ask.
    """

    planned: int | None
    sent: int
    expired: int
    unsent: int
    lost: int
    ok: int
    failed: int
    timed_out: int
    abandoned: int
    in_flight: int
    attempts: int
    offered_rps: float | None
    achieved_rps: float
    lane_wait_ms: Spread
    send_lag_ms: Spread
    starved_s: int  # seconds in which the harness was the bottleneck
    stalls: Stalls = Stalls()
    model: str = "open"
    users: People | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement of one run."""

    verdict: Word
    exit_code: ExitCode
    reasons: tuple[str, ...]
    objectives: tuple[Cell, ...]
    faults: tuple[FaultReport, ...]
    load: LoadReport
    grade: str  # lowest grade of all faults and of the target; "real" if none
    episodes: tuple[Episodes, ...] = ()  # of faults that came at least three times
    loops: tuple[Loop, ...] = ()  # of recovery objectives with `hysteresis:`
    guilt: tuple[str, ...] = ()  # why the harness, not the target, was the bottleneck
    version: int = 1

    def to_json(self) -> dict[str, Json]:
        """The document of verdict.json; numbers to 4 significant digits."""
        document = plain(asdict(self))
        assert isinstance(document, dict)
        return document


def significant(value: float, digits: int = 4) -> float:
    """A number as reports and verdict.json show it; integers stay exact."""
    return float(f"{value:.{digits}g}")


def plain(value: object) -> Json:
    """As JSON carries it; numbers to 4 significant digits."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, StrEnum):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return significant(value)
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return str(value)
