"""``make soak-kill``: kill -9 at random moments, drawn by a seed; nothing may be left, ever.

    python tests/matrix/soak.py [--moments 200] [--seed 1] [--jobs 4]

Each run has several faults that overlap. The moment is drawn over the whole life of a run, from
before its agent exists to its last words: one in four while it starts, the others from its t = 0
on, however long this host took until there. Who dies is drawn too: survive, its agent, or both.
Where both die nobody is left to heal, so ``survive heal`` is run, as a CI job's next step would.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import yaml  # noqa: E402 - below the line that finds our own tools, with them
from killtools import Started, heal  # noqa: E402
from matrixtools import stage_for, write_scenario  # noqa: E402

STARTS_S = 1.5  # until t = 0, on an idle host
LASTS_S = 5.0  # from then on: 4 s of load, its end
WHO = ("survive", "agent", "both")
FAULTS = {
    "slow": {"kind": "network.latency", "link": "load -> web", "with": {"latency": "100ms"},
             "at": "300ms", "for": "2s"},
    "hang": {"kind": "node.pause", "service": "web", "at": "600ms", "for": "2s"},
    "gone": {"kind": "node.down", "service": "web", "at": "1200ms", "for": "1500ms"},
    "dead": {"kind": "node.kill", "service": "web", "at": "3s"},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Moment:
    """One kill and what was left of it."""

    number: int
    who: str
    at_s: float  # after its beginning, or after t = 0
    on: int  # faults that were on, as the ledger tells
    state: str  # starting | running | over
    clean_ms: float
    left: tuple[str, ...]


def scenario(folder: Path) -> Path:
    """The matrix's small server, with several faults."""
    stage = stage_for("node.pause", folder)
    stage.build()
    file = write_scenario(stage)
    document = yaml.safe_load(file.read_text())
    document["faults"] = FAULTS
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    target = folder / "targets" / "stack.yaml"
    document = yaml.safe_load(target.read_text())
    document["allow"]["faults"] = ["network", "node"]
    target.write_text(yaml.safe_dump(document))
    return file


def one(number: int, seed: int) -> Moment:
    """Start, wait, kill, look."""
    chance = random.Random(f"{seed}:{number}")
    who, early = chance.choice(WHO), chance.random() < 0.25
    at_s = chance.uniform(0.05, STARTS_S) if early else chance.uniform(0, LASTS_S)
    with tempfile.TemporaryDirectory(prefix="survive-soak-") as name:
        folder = Path(name)
        os.environ["XDG_STATE_HOME"] = str(folder / "state")  # of this worker process
        run = Started(scenario(folder))
        try:
            if not early:
                run.until("phase_started")
            time.sleep(at_s)
            return _kill(run, number, who, at_s)
        finally:
            run.close()


def _kill(run: Started, number: int, who: str, at_s: float) -> Moment:
    over = run.process.poll() is not None
    state = "over" if over else "running" if run.identify() else "starting"
    agent = _agent(run)
    began = time.monotonic()
    if who != "survive" and agent:
        os.kill(agent, signal.SIGKILL)
    if who != "agent" or not agent:
        run.process.kill()
    on = len(run.story().open_injections()) if run.identify() else 0
    run.process.wait(15)  # whose agent died, it heals first
    within_s = 1.0
    if who == "both" and agent:
        done = heal()
        assert done.returncode == 0, done.stdout + done.stderr
    left = run.left(within_s)
    clean_ms = (time.monotonic() - began) * 1000
    check = heal("--check")
    if check.returncode != 0:
        left.append(check.stdout.strip())
    return Moment(number, who, at_s, on, state, clean_ms, tuple(left))


def _agent(run: Started) -> int:
    """Its pid; 0 if there is none (yet, or any more)."""
    try:
        return run.agent()
    except (AssertionError, OSError):
        return 0


def main() -> int:
    """Play all moments; print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--moments", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=4)
    options = parser.parse_args()
    numbers = range(options.moments)
    with ProcessPoolExecutor(options.jobs) as pool:
        moments = []
        for moment in pool.map(one, numbers, [options.seed] * options.moments):
            moments.append(moment)
            if moment.left:
                print(f"moment {moment.number}: {moment}", flush=True)
    print(f"{'killed':8} {'state':9} {'moments':>7} {'faults on':>9} {'slowest':>9} {'left':>5}")
    for (who, state), n in sorted(Counter((m.who, m.state) for m in moments).items()):
        those = [m for m in moments if (m.who, m.state) == (who, state)]
        slowest = max(m.clean_ms for m in those)
        on, left = sum(m.on for m in those), sum(len(m.left) for m in those)
        print(f"{who:8} {state:9} {n:7} {on:9} {slowest:6.0f} ms {left:5}")
    left = sum(len(m.left) for m in moments)
    print(f"{len(moments)} moments, seed {options.seed}: {left} left")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
