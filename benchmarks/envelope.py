"""``survive envelope`` on stacks whose capacity is known by construction (docs/envelope.md).

    python benchmarks/envelope.py            # ten seeds, some minutes on one core

A request is one prompt of 512 words to embed: a whole step of a simulated GPU and nothing else, so
a replica serves 1 / (time of that step) of them a second, no more and no fewer. All of it is on the
virtual host.
"""

from __future__ import annotations

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
