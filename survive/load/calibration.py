"""``survive calibrate``: the load process against servers whose latency is known.

Truth is what happened, not what was asked for: a server reports how long it really held each
answer; for the one that freezes, the schedule of the run is played through lanes that it answers as
it really did. Measured is what a run would record. Free of Locust: the load is its own process.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from survive.errors import HarnessError
from survive.load.known import MODES
from survive.load.template import compile_requests
from survive.load.wire import LoadFailed, Ready, read_messages
from survive.plan.arrivals import Schedule
from survive.plan.model import Plan
from survive.plan.plan import make_plan
from survive.record.hdr import highest_of
from survive.record.samples import Frame, Series
from survive.scenario.loader import load_scenario

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
TOLERANCE = 0.01
FLOOR_MS = 0.3  # loopback and two processes waking up: no error of a percentile below it counts
LANES = 20

_SCENARIO = """\
survive: 1
name: calibrate
about: a server of known latency
target:
  driver: external
  entry: known
  services: {{known: {{url: "{url}"}}}}
  allow: {{hosts: [127.0.0.1]}}
seed: {seed}
requests: {{get: {{get: /, timeout: 10s}}}}
load:
  arrivals: uniform
  lanes: {lanes}
  phases: [{{name: known, rate: {rate}/s, for: {seconds}s}}]
objectives: {{answers: {{metric: success, min: 99%, during: run}}}}
"""


@dataclass(frozen=True, slots=True)
class Point:
    """One percentile, in ms."""

    percentile: float
    true_ms: float
    measured_ms: float

    @property
    def error(self) -> float:
        """Relative to the truth."""
        return self.measured_ms / self.true_ms - 1 if self.true_ms else 0.0

    @property
    def sound(self) -> bool:
        """Within 1 %, or within what two processes need to hear of each other."""
        off_ms = abs(self.measured_ms - self.true_ms)
        return off_ms <= max(FLOOR_MS, TOLERANCE * self.true_ms)


@dataclass(frozen=True, slots=True)
class Calibration:
    """One server. ``series``: what was compared (service_time, or latency from intended start)."""

    mode: str
    n: int
    series: str
    points: tuple[Point, ...]
    send_lag_p99_ms: float

    @property
    def sound(self) -> bool:
        """Every percentile is."""
        return all(point.sound for point in self.points)


def calibrate(
    mode: str, *, rate: int = 200, seconds: int = 8, seed: int = 7, unix: bool = False
) -> Calibration:
    """Run the load process against one known server. HarnessError if either fails.

    ``unix``: over a Unix socket, which costs less than loopback.
    """
    if mode not in MODES:
        raise ValueError(f"no server is called {mode!r}")
    with tempfile.TemporaryDirectory(prefix="survive-calibrate-") as scratch:
        return asyncio.run(_calibrate(mode, rate, seconds, seed, Path(scratch), unix))


async def _calibrate(
    mode: str, rate: int, seconds: int, seed: int, scratch: Path, unix: bool
) -> Calibration:
    socket = [str(scratch / "known.sock")] if unix else []
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "survive.load.known", mode, str(seed), *socket,
        stdout=asyncio.subprocess.PIPE, limit=64 * 1024 * 1024,
    )  # fmt: skip
    assert server.stdout is not None
    try:
        address = json.loads(await asyncio.wait_for(server.stdout.readline(), 10))["address"]
        url = address if unix else f"http://{address}"
        file = scratch / "calibrate.survive.yaml"
        file.write_text(
            _SCENARIO.format(url=url, seed=seed, rate=rate, seconds=seconds, lanes=LANES)
        )
        scenario = load_scenario(file)
        plan = make_plan(scenario)
        document = {
            "plan": plan.to_json(),
            "kinds": [kind.to_json() for kind in compile_requests(scenario, "")],
            "address": address,
        }
        spec = scratch / "load.json"
        spec.write_text(json.dumps(document))
        origin_us, counts = await _load(spec, seconds + 30)
        server.terminate()
        told = json.loads(await asyncio.wait_for(server.stdout.readline(), 10))
        await server.wait()
    finally:
        await _ended(server)
    return _compare(mode, plan, origin_us, counts, told["holds_us"], told["frozen_us"])


async def _load(spec: Path, within_s: float) -> tuple[int, dict[Series, Counter[int]]]:
    """t = 0 in µs of CLOCK_MONOTONIC, and every sample of the load process."""
    control_read, control_write = os.pipe()
    report_read, report_write = os.pipe()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "survive.load.process", "--spec", str(spec),
        "--control", str(control_read), "--report", str(report_write),
        pass_fds=(control_read, report_write),
    )  # fmt: skip
    os.close(control_read)
    os.close(report_write)
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(report_read, "rb", 0)
    )
    counts: dict[Series, Counter[int]] = {series: Counter() for series in Series}
    origin_us = 0
    try:
        async with asyncio.timeout(within_s):
            async for message in read_messages(reader):
                if isinstance(message, Ready):
                    origin_us = time.monotonic_ns() // 1000 + 100_000
                    os.write(control_write, json.dumps({"start": origin_us}).encode() + b"\n")
                elif isinstance(message, Frame):
                    _add(counts, message)
                elif isinstance(message, LoadFailed):
                    raise HarnessError(f"the load cannot run: {message.error}")
            await process.wait()
    except TimeoutError:
        raise HarnessError("the load did not end in time") from None
    finally:
        os.close(control_write)
        transport.close()
        await _ended(process)
    return origin_us, counts


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Whatever happened, it is gone."""
    if process.returncode is None:
        process.kill()
        await process.wait()


def _add(counts: dict[Series, Counter[int]], frame: Frame) -> None:
    for key, found in frame.sets:
        for index, count in zip(found.indices, found.counts, strict=True):
            counts[key.series][index] += count


def _compare(
    mode: str,
    plan: Plan,
    origin_us: int,
    counts: dict[Series, Counter[int]],
    holds_us: list[int],
    frozen_us: list[int] | None,
) -> Calibration:
    if frozen_us is None:
        series, truth = Series.SERVICE_TIME, sorted(holds_us)
    else:
        series = Series.LATENCY
        from_us, until_us = (moment - origin_us for moment in frozen_us)
        calm = sorted(hold for hold in holds_us if hold < (until_us - from_us) / 4)
        truth = sorted(_played(plan, (from_us, until_us), calm[len(calm) // 2]))
    measured = counts[series]
    return Calibration(
        mode=mode,
        n=measured.total(),
        series=str(series),
        points=tuple(
            Point(p, _rank(truth, p) / 1000, _of_counts(measured, p) / 1000) for p in PERCENTILES
        ),
        send_lag_p99_ms=_of_counts(counts[Series.SEND_LAG], 99.0) / 1000,
    )


def _played(plan: Plan, frozen: tuple[int, int], hold_us: int) -> Iterator[int]:
    """Latency of each arrival, if lanes take them in order and the server freezes as it did."""
    free = [0] * plan.lanes
    for block in Schedule.of(plan).blocks():
        for intended in block.intended_us.tolist():
            begins = max(intended, heapq.heappop(free))
            answer = begins + hold_us
            if frozen[0] <= answer < frozen[1]:
                answer = frozen[1]
            heapq.heappush(free, answer)
            yield answer - intended


def _rank(values: Sequence[int], percentile: float) -> int:
    """Nearest rank of sorted values."""
    return values[max(1, -(-len(values) * round(percentile * 10) // 1000)) - 1]


def _of_counts(counts: Counter[int], percentile: float) -> int:
    """The same of histogram buckets."""
    due = max(1, -(-counts.total() * round(percentile * 10) // 1000))
    for index in sorted(counts):
        due -= counts[index]
        if due <= 0:
            return highest_of(index)
    raise HarnessError("the load recorded nothing")
