"""``survive envelope`` on stacks whose capacity is known by construction (docs/envelope.md).

    python benchmarks/envelope.py            # ten seeds, a quarter of an hour on one core

A request is one prompt of 512 words to embed: a whole step of a simulated GPU and nothing else, so
a replica serves 1 / (time of that step) of them a second, no more and no fewer. All of it is on the
virtual host.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from survive.catalog import builtin_root, load_module

WORDS = 512  # what one step takes of new prompt
_SCENARIO = """\
survive: 1
name: known-capacity
target: reference
seed: 1
requests:
  embed:
    post: /v1/embeddings
    json: {{model: "{{{{ target.model }}}}", input: "{prompt}"}}
    timeout: 2s
load:
  arrivals: uniform
  phases:
    - {{name: warm-up, rate: 40/s, for: 1s, warm_up: true}}
    - {{name: level,   rate: 40/s, for: {seconds}s}}
{faults}objectives:
  answers: {{metric: success,     min: 95%,  during: steady}}
  fast:    {{metric: latency.p90, max: 40ms, during: steady}}
{under_faults}"""
_FAULTS = "faults:\n  lost: {kind: gpu.lost, service: inference, at: level + 1s, for: 4s}\n"
_UNDER = "  carried: {metric: latency.p90, max: 100ms, during: each fault}\n"


def scenario(*, faults: bool = False, seconds: int = 5) -> str:
    """The text of the scenario; with ``faults`` one GPU is lost for four seconds."""
    return _SCENARIO.format(
        prompt=" ".join(["word"] * WORDS),
        seconds=seconds + (6 if faults else 0),
        faults=_FAULTS if faults else "",
        under_faults=_UNDER if faults else "",
    )


def capacity_rps(replicas: int) -> float:
    """What the replicas serve, from the constants of the simulated GPU alone."""
    gpu = load_module(builtin_root() / "targets" / "reference" / "gpu.py")
    profile = gpu.Profile()
    assert profile.max_batched_tokens == WORDS
    return replicas * 1000 / float(profile.prefill_ms(WORDS))


# ------------------------------------------------------------------- measuring


def found(file: Path, *options: str) -> dict[str, Any]:
    """What ``survive envelope FILE --virtual`` prints as JSON."""
    fixed = ("--virtual", "--format", "json")
    with tempfile.TemporaryDirectory(prefix="survive-envelope-") as runs:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "survive",
                "envelope",
                str(file),
                *fixed,
                "--out",
                runs,
                *options,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def rps(bound: dict[str, float] | None) -> float | None:
    return None if bound is None else bound["rps"]


def span(values: list[float]) -> str:
    return f"{min(values):.0f}..{max(values):.0f}" if values else "none"


def bounds(file: Path, seeds: int, sets: tuple[str, ...], start: str, truth: float) -> str:
    """A row: the capacity that is known, and what was found over the seeds."""
    lows, highs, held = [], [], 0
    for seed in range(1, seeds + 1):
        options = [word for one in (*sets, f"seed={seed}") for word in ("--set", one)]
        one = found(file, *options, "--from", start)["envelopes"][0]
        low, high = rps(one["survives"]), rps(one["fails"])
        lows += [low] if low is not None else []
        highs += [high] if high is not None else []
        # A queue that grows by 1 % of its load is too short to be seen in ten seconds.
        held += (
            low is not None and high is not None and low <= truth * 1.01 and high >= truth * 0.99
        )
    return f"{truth:.1f}/s | {span(lows)} | {span(highs)} | {held} of {seeds}"


def capacities(folder: Path, seeds: int) -> Iterator[str]:
    """Uniform arrivals for one, two and three replicas: all is well up to their capacity."""
    yield "| replicas | capacity | survives at ≥ | fails at ≤ | between them |"
    yield "|---:|---:|---|---|---:|"
    file = folder / "known.survive.yaml"
    file.write_text(scenario(seconds=10), encoding="utf-8")
    for replicas in (1, 2, 3):
        sets = (f"target.services.inference.replicas={replicas}",)
        row = bounds(file, seeds, sets, f"{replicas}x", capacity_rps(replicas))
        yield f"| {replicas} | {row} |"


def queue(folder: Path, seeds: int) -> Iterator[str]:
    """Poisson arrivals at one replica: an M/D/1 queue, whose waiting times are known."""
    yield "| phase | known limit | survives at ≥ | fails at ≤ | between them |"
    yield "|---:|---:|---|---|---:|"
    for seconds in (10, 60, 180):
        file = folder / f"queue-{seconds}.survive.yaml"
        file.write_text(scenario(seconds=seconds), encoding="utf-8")
        sets = ("target.services.inference.replicas=1", "load.arrivals=poisson")
        yield f"| {seconds} s | {bounds(file, seeds, sets, '1x', queued_rps(0.040, 0.9))} |"


def queued_rps(limit_s: float, share: float) -> float:
    """The Poisson load at which that share of requests leaves one replica within the limit.

    P(wait ≤ t) of M/D/1 (Erlang 1909): (1 − ρ) Σ (−λ(t − kD))^k / k! · e^{λ(t − kD)}, k ≤ t/D.
    """
    service_s = 1 / capacity_rps(1)
    waits_s = limit_s - service_s

    def within(rate: float) -> float:
        left = [waits_s - k * service_s for k in range(int(waits_s / service_s) + 1)]
        terms = (
            (-rate * t) ** k / math.factorial(k) * math.exp(rate * t) for k, t in enumerate(left)
        )
        return (1 - rate * service_s) * math.fsum(terms)

    low, high = 0.0, 1 / service_s
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) >= share else (low, middle)
    return low


def one_less(folder: Path, seeds: int) -> Iterator[str]:
    """Three replicas, one lost: two thirds are left."""
    yield "| seed | with the fault | without | the fault costs |"
    yield "|---:|---|---|---|"
    file = folder / "lost.survive.yaml"
    file.write_text(scenario(faults=True), encoding="utf-8")
    for seed in range(1, seeds + 1):
        document = found(file, "--headroom", "--from", "2x", "--set", f"seed={seed}")
        bounds = [f"{rps(e['survives'])}..{rps(e['fails'])}/s" for e in document["envelopes"]]
        cost = document["cost_of_faults"]
        said = "not known" if cost is None else f"{cost['low']:.0%}..{cost['high']:.0%}"
        yield f"| {seed} | {' | '.join(bounds)} | {said} |"


def weaknesses() -> Iterator[str]:
    """Every planted weakness in a scenario that finds it, beside the sound stack."""
    yield "| scenario | sound | weakness | with it |"
    yield "|---|---|---|---|"
    for file in sorted((builtin_root() / "scenarios").glob("*.survive.yaml")):
        written = yaml.safe_load(file.read_text(encoding="utf-8"))
        kills = written.get("kills", {})
        profile = ("--profile", "exam") if "exam" in written.get("profiles", {}) else ()
        options = (*profile, "--resolution", "20%", "--to", "8x")
        sound = _told(found(file, *options)) if kills else ""
        for weakness in kills:
            weak = _told(found(file, *options, "--set", f"target.weaknesses=[{weakness}]"))
            yield f"| {written['name']} | {sound} | `{weakness}` | {weak} |"


def _told(document: dict[str, Any]) -> str:
    one = document["envelopes"][0]
    low, high = one["survives"], one["fails"]
    broken = one["limits"][0]["name"] if one["limits"] else ""
    first = f" ({broken})" if broken else ""
    if low is None:
        return f"fails at {high['factor']:g}x{first}" if high else "undecided"
    return f"{low['factor']:g}x..{high['factor']:g}x{first}" if high else f"≥ {low['factor']:g}x"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", choices=["capacities", "queue", "one_less", "weaknesses"])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="survive-envelope-") as scratch:
        folder = Path(scratch)
        os.environ.setdefault("XDG_STATE_HOME", scratch)
        parts = {
            "capacities": capacities(folder, asked.seeds),
            "queue": queue(folder, asked.seeds),
            "one_less": one_less(folder, asked.seeds),
            "weaknesses": weaknesses(),
        }
        for name, lines in parts.items():
            if asked.only in {None, name}:
                print(f"\n{name}\n")
                for line in lines:
                    print(line, flush=True)


if __name__ == "__main__":
    main()
