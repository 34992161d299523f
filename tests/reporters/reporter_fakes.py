"""Hand-made runs and verdicts: what the reporters are shown, with nothing of the engine."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from survive.catalog import builtin_root, load_module
from survive.errors import ExitCode
from survive.judge.verdict import (
    Cell,
    FaultReport,
    LoadReport,
    ReplicaShare,
    Spread,
    Verdict,
    Word,
)
from survive.plan.model import FaultWindow, Plan
from survive.scenario.model import Phase

S = 1_000_000
FOLDER = Path("runs/quickstart/20261122T001544Z-42")


def module(name: str) -> Any:
    """A reporter file, loaded as the catalog loads it."""
    return load_module(builtin_root() / "reporters" / f"{name}.py")


@dataclass(frozen=True, slots=True)
class FakeEvent:
    t_us: int
    name: str
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class FakeSecond:
    t_s: float
    n: int
    ok: int
    bad: int
    p50_ms: float | str | None
    p99_ms: float | str | None


@dataclass(frozen=True, slots=True)
class FakeRun:
    plan: Plan
    rows: tuple[FakeSecond, ...] = ()
    events: tuple[FakeEvent, ...] = ()
    manifest: dict[str, Any] = field(default_factory=dict)
    folder: Path = FOLDER

    why: tuple[tuple[str, int], ...] = ()

    def seconds(self, kind: str | None) -> tuple[FakeSecond, ...]:
        assert kind is None
        return self.rows

    def failures(self) -> tuple[tuple[str, int], ...]:
        return self.why


def phase(name: str, start_s: float, end_s: float, start: float, end: float, **more: Any) -> Phase:
    return Phase(name, round(start_s * S), round(end_s * S), Fraction(start), Fraction(end), **more)


PHASES = (
    phase("warm-up", 0, 3, 4.63, 4.63, warm_up=True),
    phase("prototype", 3, 10, 4.63, 4.63),
    phase("growth", 10, 24, 4.63, 69.4, curve="exponential"),
    phase("production", 24, 84, 69.4, 69.4),
)
FAULTS = (
    FaultWindow("gpu-loss", True, 32 * S, 40 * S, 50 * S),
    FaultWindow("slow-network", True, 52 * S, 60 * S, 70 * S),
)


def plan(**changes: Any) -> Plan:
    made = Plan(
        version=1,
        name="quickstart",
        target="reference",
        seed=42,
        arrivals="poisson",
        scale="1/1000",
        kinds=("chat", "search"),
        timeouts_us=(5 * S, 2 * S),
        streamed=(True, False),
        gives_up_after_us=4 * S,
        lanes=418,
        phases=PHASES,
        faults=FAULTS,
        marks=(32 * S, 52 * S),
        slices=tuple((s * S, (s + 1) * S) for s in range(84)),
        end_us=84 * S,
        planned=((8, 6), (20, 12), (200, 136), (2498, 1666)),
    )
    return replace(made, **changes)


def _rps(at_s: float) -> float:
    for part in PHASES:
        if part.start_us <= at_s * S < part.end_us:
            share = (at_s * S - part.start_us) / (part.end_us - part.start_us)
            return float(part.start_rps) * float(part.end_rps / part.start_rps) ** share
    raise AssertionError(at_s)


def seconds() -> tuple[FakeSecond, ...]:
    """84 s of a stack that loses a third of its capacity, then slows down."""
    chance = random.Random(7)
    rows = []
    for t in range(84):
        mean = _rps(t + 0.5)
        n = max(0, round(chance.gauss(mean, math.sqrt(mean))))
        bad = min(n, 14) if t == 32 else min(n, 3) if t == 33 else 0
        p99: float | str = 180 + 40 * chance.random() + mean
        if t in (32, 33):
            p99 = "inf"
        elif 34 <= t < 41:
            p99 = 310 + 30 * chance.random()
        elif 52 <= t < 61:
            p99 = 640 + 60 * chance.random()
        rows.append(FakeSecond(float(t), n, n - bad, bad, 90.0, p99 if n else None))
    return tuple(rows)


def run_events() -> tuple[FakeEvent, ...]:
    started = {"scenario": "quickstart", "target": "reference", "seed": 42, "host": "real"}
    usage = {"target_cores": 0.7213, "harness_cores": 0.2149, "wake_up_ms_p99": 0.112,
             "cpu_stalled_share": 0.0413}  # fmt: skip
    ended = {"ended": "complete", "detail": "", "usage": usage, "unproven_heals": []}
    return (FakeEvent(-2 * S, "run_started", started), FakeEvent(84_412_000, "run_ended", ended))


def cell(name: str, window: str, request: str = "chat", **changes: Any) -> Cell:
    made = Cell(
        name=name,
        metric="success",
        request=request,
        window=window,
        verdict=Word.SURVIVED,
        limit=0.99,
        unit="share",
        observed=1.0,
        low=0.9976,
        high=1.0,
        n=1234,
        bad=0,
    )
    bound = "min" if changes.get("unit", "share") == "share" else "max"
    return replace(made, bound=bound, **changes)


def ttft(window: str, **changes: Any) -> Cell:
    timed = {
        "metric": "ttft.p95",
        "limit": 800.0,
        "unit": "ms",
        "observed": 141.3,
        "low": 138.1,
        "high": 146.6,
        "observed_ok": 141.3,
    }
    return cell("fast-first-token", window, **{**timed, **changes})


def recovery(fault: str, **changes: Any) -> Cell:
    back = {
        "request": "",
        "metric": "recovery",
        "limit": 6.0,
        "unit": "s",
        "observed": 0.0,
        "low": 0.0,
        "high": 0.0,
        "n": 712,
    }
    return cell("comes-back", f"recovery:{fault}", **{**back, **changes})


def cells() -> tuple[Cell, ...]:
    degrade = {"limit": 0.9}
    return (
        cell("answers", "steady", n=1214),
        cell("answers", "steady", "search", n=834, bad=1, observed=0.9988, low=0.9943, high=0.9999),
        ttft("steady", n=1214, bad=2),
        cell(
            "degrade-not-die", "fault:gpu-loss", n=342, bad=17, observed=0.9503, low=0.926,
            high=0.9683, **degrade,
        ),
        cell("degrade-not-die", "fault:gpu-loss", "search", n=221, low=0.9865, **degrade),
        cell("degrade-not-die", "fault:slow-network", n=336, low=0.9911, **degrade),
        cell("degrade-not-die", "fault:slow-network", "search", n=219, low=0.9864, **degrade),
        recovery("gpu-loss"),
        recovery("slow-network", n=708),
    )  # fmt: skip


def gpu_loss(**changes: Any) -> FaultReport:
    made = FaultReport(
        name="gpu-loss",
        kind="gpu.lost",
        grade="simulated",
        target="inference-1",
        planned_at_s=32.0,
        injected_at_s=32.013,
        active_share=1.0,
        proof="proven",
        planned_heal_s=40.0,
        healed_at_s=40.021,
        heal_proof="proven",
        absorbed_after_s=2.0,
        recovered_after_s=0.0,
        error_window_s=2.0,
        residual=0.0,
        metastable=False,
        evidence="one-token call to inference-1 failed: status 503",
        replicas=(
            ReplicaShare("inference-1", 17, 1.0, 1 / 3),
            ReplicaShare("inference-0", 0, 0.0, 1 / 3),
        ),
        failures=(("incomplete", 12), ("status:502", 5)),
    )
    return replace(made, **changes)


def slow_network(**changes: Any) -> FaultReport:
    made = gpu_loss(
        name="slow-network",
        kind="network.latency",
        grade="emulated",
        target="gateway -> inference",
        planned_at_s=52.0,
        injected_at_s=52.006,
        planned_heal_s=60.0,
        healed_at_s=60.009,
        absorbed_after_s=0.0,
        error_window_s=0.0,
        evidence="round trip 318 ms through the link, 1.2 ms straight to the replica",
        replicas=(),
        failures=(),
    )
    return replace(made, **changes)


def load(**changes: Any) -> LoadReport:
    made = LoadReport(
        planned=4546,
        sent=4546,
        expired=0,
        unsent=0,
        lost=0,
        ok=4528,
        failed=17,
        timed_out=1,
        abandoned=0,
        in_flight=0,
        attempts=4551,
        offered_rps=54.12,
        achieved_rps=54.09,
        lane_wait_ms=Spread(0.0, 0.0, 0.012),
        send_lag_ms=Spread(0.061, 0.284, 2.413),
        starved_s=0,
    )
    return replace(made, **changes)


def verdict(**changes: Any) -> Verdict:
    made = Verdict(
        verdict=Word.SURVIVED,
        exit_code=ExitCode.SURVIVED,
        reasons=(),
        objectives=cells(),
        faults=(gpu_loss(), slow_network()),
        load=load(),
        grade="simulated",
    )
    return replace(made, **changes)


def run(**changes: Any) -> FakeRun:
    made = FakeRun(plan(), seconds(), run_events(), {"host": "real"})
    return replace(made, **changes)


def failed() -> Verdict:
    """The quickstart with ``no_health_checks``: a third of the chats die on one replica."""
    broken = cell(
        "degrade-not-die", "fault:gpu-loss", n=342, bad=133, observed=0.6111, low=0.5657,
        high=0.6551, limit=0.9, verdict=Word.FAILED,
    )  # fmt: skip
    slow = ttft(
        "steady", observed="inf", low=1240.0, high="inf", observed_ok=152.7, bad=75, n=1214,
        verdict=Word.FAILED,
    )  # fmt: skip
    back = recovery("gpu-loss", observed="inf", high=None, low=None, verdict=Word.FAILED)
    kept = [c for c in cells() if c.name == "answers" or "slow" in c.window]
    fault = gpu_loss(
        absorbed_after_s=None,
        recovered_after_s=None,
        error_window_s=18.0,
        residual=0.213,
        metastable=True,
        replicas=(
            ReplicaShare("inference-1", 104, 0.782, 1 / 3),
            ReplicaShare("inference-0", 15, 0.113, 1 / 3),
        ),
        failures=(("incomplete", 61), ("status:502", 40), ("timed_out", 18), ("reset", 14)),
    )
    return verdict(
        verdict=Word.FAILED,
        exit_code=ExitCode.FAILED,
        reasons=(
            "degrade-not-die broke for chat during fault:gpu-loss: success 61.11 %, limit 90 %",
            "comes-back broke during recovery:gpu-loss: recovery inf, limit 6 s",
            "fast-first-token broke for chat during steady: ttft.p95 inf, limit 800 ms",
        ),
        objectives=(*kept[:2], broken, *kept[2:], back, slow),
        faults=(fault, slow_network()),
    )


def inconclusive() -> Verdict:
    """The inject was sabotaged: the fault was never seen."""
    why = "slow-network was not proven active: 31 of 31 observations said no"
    unsure = [
        replace(c, verdict=Word.INCONCLUSIVE, why=why) if "slow" in c.window else c for c in cells()
    ]
    fault = slow_network(
        proof="31 of 31 observations said no",
        active_share=0.0,
        evidence="",
        absorbed_after_s=None,
        recovered_after_s=None,
    )
    return verdict(
        verdict=Word.INCONCLUSIVE,
        exit_code=ExitCode.INCONCLUSIVE,
        reasons=(why, f"comes-back is undecided during recovery:slow-network: {why}"),
        objectives=tuple(unsure),
        faults=(gpu_loss(), fault),
    )
