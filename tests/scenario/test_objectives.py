"""How each metric's limit is written, and what is said where it is written wrongly."""

from __future__ import annotations

from pathlib import Path

import pytest

from survive.errors import ScenarioError
from survive.scenario.loader import load_scenario
from survive.scenario.model import Hysteresis, Metric

FILE = """\
survive: 1
name: small
target:
  driver: process
  entry: web
  services:
    web: {run: [web, "{port}"], replicas: 2, metrics: /metrics}
    gpu: {run: [gpu], gpu: simulated, metrics: /metrics}
  prices: {gpu: 2.50 USD/h}
requests:
  chat: {share: 60%, post: /chat, json: {stream: true}}
  find: {get: /find}
load:
  phases:
    - {name: a, rate: 50/s, for: 60s}
    - {name: b, rate: 5/s, for: 60s}
    - {name: c, rate: 50/s, for: 60s}
probes:
  stranger: {get: /find, auth: none, every: 1s, expect: {status: [401]}}
objectives:
  answers: {metric: success, min: 99%, during: steady}
  one: {OBJECTIVE}
"""


def load(folder: Path, text: str):
    path = folder / "small.survive.yaml"
    path.write_text(FILE.replace("OBJECTIVE", text))
    return load_scenario(path).objectives["one"]


@pytest.mark.parametrize(
    ("text", "metric", "limit", "of"),
    [
        ("metric: denied, min: 100%, during: run", Metric.DENIED, 1.0, ("stranger",)),
        ("metric: goodput, min: 90/s, during: run", Metric.GOODPUT, 90, ("chat", "find")),
        ("metric: tokens_per_s, min: 1k/s, during: run", Metric.TOKENS_PER_S, 1000, ("chat",)),
        ("metric: amplification, max: 1.5x, during: run", Metric.AMPLIFICATION, 1.5,
         ("chat", "find")),
        ("metric: queue.p95, max: 20, during: run", Metric.QUEUE, 20, ("gpu",)),
        ("metric: replicas, min: 3, of: web, during: run", Metric.REPLICAS, 3, ("web",)),
        ("metric: kv.p95, max: 95%, during: run", Metric.KV, 0.95, ("gpu",)),
        ("metric: cost, max: 3 USD per 1M tokens, during: run", Metric.COST, 3, ("chat",)),
        ("metric: cost, max: 2 USD per 1k answers, during: run", Metric.COST, 2,
         ("chat", "find")),
        ('metric: scale_up, max: 15s, stable_for: 4s, during: "phase:c"', Metric.SCALE_UP, 15e6,
         ("chat", "find")),
    ],
)  # fmt: skip
def test_every_metric_has_its_way_to_be_limited(tmp_path, text, metric, limit, of):
    found = load(tmp_path, text)
    assert (found.metric, found.limit, found.of) == (metric, limit, of)
    assert found.at_least is ("min:" in text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("metric: goodput, min: 90, during: run", "no unit"),
        ("metric: goodput, max: 90/s, during: run", "limited by min"),
        ("metric: leaked, max: 0%, during: run", "found by probes"),
        ("metric: denied, min: 100%, of: strangr, during: run", "did you mean"),
        ("metric: denied.p95, min: 100%, during: run", "no percentiles"),
        ("metric: freshness, max: 3s, during: run", "needs a percentile"),
        ("metric: replicas, min: 3.5, during: run", "not a count"),
        ("metric: cost, max: 3 EUR per 1M tokens, during: run", "paid in USD"),
        ("metric: cost, max: 3 USD, during: run", "not a cost"),
        ("metric: scale_up, max: 15s, stable_for: 4s, during: run", "phase's start"),
        ("metric: queue, max: 3, of: wb, during: run", "did you mean 'web'"),
        ("metric: success, min: 9%, during: run, hysteresis: {before: a, relief: b, again: c}",
         "only recovery"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(tmp_path, text, said):
    with pytest.raises(ScenarioError) as caught:
        load(tmp_path, text)
    assert any(said in str(problem) for problem in caught.value.problems)


def test_the_phases_of_a_loop_go_down_and_come_back(tmp_path):
    base = "metric: recovery, max: 6s, stable_for: 4s, hysteresis: "
    for phases, said in (
        ("{before: a, relief: b, again: x}", "unknown phase 'x'"),
        ("{before: c, relief: b, again: a}", "in order of time"),
        ("{before: a, relief: c, again: c}", "in order of time"),
        ("{before: a, relief: b, again: c}", "no fault to recover from"),  # nothing else
    ):
        with pytest.raises(ScenarioError) as caught:
            load(tmp_path, base + phases)
        assert any(said in str(problem) for problem in caught.value.problems)
    assert Hysteresis("a", "b", "c").relief == "b"
