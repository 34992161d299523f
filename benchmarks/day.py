"""Judging a day: a table of 86,400 s made by hand, judged with its time and memory measured.

``python -m benchmarks.day`` builds (minutes) and judges; DESIGN §10 asks for 5 s and 300 MB.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np

from survive.judge.judge import judge
from survive.plan.model import Plan
from survive.plan.plan import slices
from survive.record.reader import Record
from survive.record.samples import Key, Outcome, Series
from survive.record.table import TableBuilder
from survive.record.writer import TABLE, seals
from survive.scenario.model import (
    LoadSpec,
    Metric,
    Objective,
    Phase,
    RequestKind,
    Scenario,
    Service,
    TargetSpec,
)
from survive.units import MS, SECOND

DAY_US = 86_400 * SECOND
KINDS = ("chat", "search")
_TIMED = {
    "chat": (Series.SERVICE_TIME, Series.TTFT, Series.ITL, Series.TPOT, Series.TOKENS),
    "search": (Series.SERVICE_TIME,),
}
_PER_SECOND = 25  # requests of each kind


def scenario() -> Scenario:
    """Two kinds at 50/s for a day, three objectives on them."""
    phase = Phase("day", 0, DAY_US, Fraction(50), Fraction(50), shares=dict.fromkeys(KINDS, 0.5))
    services = {"gateway": Service("gateway", app="g.py:make_app")}
    objectives = (
        Objective("answers", Metric.SUCCESS, 0.99, None, KINDS, "steady"),
        Objective("first", Metric.TTFT, 800.0 * MS, 0.95, ("chat",), "steady"),
        Objective("all", Metric.LATENCY, 900.0 * MS, 0.99, KINDS, "run"),
    )
    return Scenario(
        name="day",
        about="",
        seed=1,
        target=TargetSpec("made", "process", "gateway", services, {}),
        requests={
            "chat": RequestKind("chat", 0.5, "POST", "/", json={"stream": True}),
            "search": RequestKind("search", 0.5, "GET", "/"),
        },
        gives_up_after_us=None,
        load=LoadSpec("poisson", Fraction(1), 100, 100, (phase,)),
        faults={},
        objectives={objective.name: objective for objective in objectives},
        stop_if={},
        folder=Path(),
    )


def build(folder: Path) -> None:
    """plan, events and table of such a day; every second of every series has its own values."""
    import json

    from survive.record.events import encode
    from survive.record.samples import Counts

    phase = scenario().load.phases[0]
    plan = Plan(
        1, "day", "made", 1, "poisson", "1", KINDS, (10 * SECOND,) * 2, (True, False), None, 100,
        (phase,), (), (), slices(DAY_US, [DAY_US], ()), DAY_US, ((_PER_SECOND * 86_400,) * 2,),
    )  # fmt: skip
    random = np.random.default_rng(1)
    builder = TableBuilder(plan)
    for at in range(len(plan.slices)):
        for kind in KINDS:
            for series in (Series.LATENCY, *_TIMED[kind], Series.LANE_WAIT, Series.SEND_LAG,
                           Series.ATTEMPT):  # fmt: skip
                drawn = np.unique(random.integers(9000, 15000, _PER_SECOND), return_counts=True)
                small = series in {Series.LANE_WAIT, Series.SEND_LAG, Series.TOKENS}
                counts = Counts([40], [_PER_SECOND]) if small else Counts(
                    drawn[0].tolist(), drawn[1].tolist()
                )  # fmt: skip
                outcome = Outcome.OK if series is Series.LATENCY or series in _TIMED[kind] else ""
                builder.add(Key(at, kind, -1, series, outcome), counts)
    (folder / "plan.json").write_text(json.dumps(plan.to_json()))
    ended = {"ended": "complete", "detail": ""}
    (folder / "events.ndjson").write_bytes(
        encode("run_started", {"host": "real"}, 0) + encode("run_ended", ended, DAY_US)
    )
    (folder / "latency.hlog").write_bytes(b"")
    builder.finish().save(folder / TABLE, seals(folder))


def measure(folder: Path) -> None:
    """Load and judge in this process, and say what it took."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.perf_counter()
    verdict = judge(Record.load(folder), scenario())
    took = time.perf_counter() - began
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = (folder / TABLE).stat().st_size / 1e6
    print(
        f"{verdict.verdict}: judged in {took:.2f} s, {most:.0f} MB at most "
        f"({before:.0f} before), {TABLE} {size:.1f} MB"
    )


def main() -> None:
    """Build here, judge in a process of its own: its peak is the judge's."""
    if len(sys.argv) > 1:
        measure(Path(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory() as name:
        build(Path(name))
        subprocess.run([sys.executable, "-m", "benchmarks.day", name], check=True)


if __name__ == "__main__":
    main()
