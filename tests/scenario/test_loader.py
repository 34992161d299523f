"""Scenario and target files, end to end: what is built, and every refusal with its place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from survive.catalog import Catalog, builtin_root
from survive.errors import RecordError, ScenarioError
from survive.load.template import compile_requests
from survive.plan.model import Plan
from survive.plan.plan import make_plan
from survive.scenario.loader import dump_scenario, load_scenario, load_stored, to_yaml
from survive.scenario.model import Metric, Scenario
from survive.scenario.tree import plain, read_tree
from survive.units import SECOND, UnitError, duration_us

QUICKSTART = builtin_root() / "scenarios" / "quickstart.survive.yaml"

TEAM_FAULTS = """
from dataclasses import dataclass
from survive.contracts import Grade, Needs
from survive.units import Duration


@dataclass(frozen=True, slots=True)
class Delay:
    by: Duration


@dataclass(frozen=True, slots=True)
class Nothing:
    pass


class Slow:
    kind = "team.slow"
    held = True
    grade = Grade.EMULATED
    layer = "network"
    needs = Needs.LINK
    settings = Delay


class Crash:
    kind = "team.crash"
    held = False
    grade = Grade.REAL
    layer = "node"
    needs = Needs.REPLICA
    settings = Nothing


class Hot:
    kind = "team.hot"
    held = True
    grade = Grade.SIMULATED
    layer = "gpu"
    needs = Needs.GPU
    settings = Nothing
"""

TARGET = """\
survive: 1
driver: process
entry: web
vars: {model: demo}
auth: {bearer: "${KEY}"}
services:
  web: {run: [web, "{port}"], replicas: 2, env: {TOKEN: "${TOKEN}"}}
  model: {run: [model], gpu: simulated, restart: {after: 2s}}
links:
  web -> model: {env: MODEL}
prices: {model: 2.50 USD/h}
allow: {faults: [team]}
"""

SCENARIO = """\
survive: 1
name: small
target: here
requests:
  chat: {share: 60%, post: /chat, json: {stream: true, q: "{{ row.q }}"}, data: rows.jsonl}
  find: {get: "/find?m={{ target.model }}", timeout: 2s}
load:
  phases:
    - {name: low, rate: 10/s, for: 10s}
    - {name: up, ramp_to: 40/s, for: 10s}
    - {name: high, rate: 40/s, for: 60s}
faults:
  slow: {kind: team.slow, link: web -> model, with: {by: 300ms}, at: high + 5s, for: 5s}
  crash: {kind: team.crash, service: web, at: high + 30s}
objectives:
  answers: {metric: success, min: 99%, during: steady}
  first: {metric: ttft.p95, max: 800ms, during: each fault}
  back: {metric: recovery, max: 6s, stable_for: 4s}
stop_if:
  melt: {metric: success, below: 20%, over: 10s}
profiles:
  long: {load.phases.high.for: 10m, target.vars.model: big}
"""


@pytest.fixture
def team(tmp_path: Path) -> Path:
    """A team's own repository, with faults of its own."""
    (tmp_path / ".git").mkdir()
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "team.py").write_text(TEAM_FAULTS)
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "here.yaml").write_text(TARGET)
    (tmp_path / "rows.jsonl").write_text('{"q": "one"}\n{"q": "two"}\n')
    (tmp_path / "small.survive.yaml").write_text(SCENARIO)
    return tmp_path


def load(team: Path, *sets: str, profile: str | None = None) -> Scenario:
    return load_scenario(team / "small.survive.yaml", sets=sets, profile=profile)


def refused(team: Path, *sets: str, profile: str | None = None) -> list[str]:
    with pytest.raises(ScenarioError) as caught:
        load(team, *sets, profile=profile)
    return [line.replace(f"{team}/", "") for line in caught.value.lines()]


def edit(team: Path, old: str, new: str, name: str = "small.survive.yaml") -> None:
    path = team / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


# ---------------------------------------------------------------------------- what is built


def test_the_quickstart_is_what_it_says() -> None:
    scenario = load_scenario(QUICKSTART)
    assert (scenario.name, scenario.seed, scenario.target.name) == ("quickstart", 42, "reference")
    assert {k.name: k.share for k in scenario.requests.values()} == {"chat": 0.6, "search": 0.4}
    assert scenario.requests["chat"].streamed and not scenario.requests["search"].streamed
    assert scenario.gives_up_after_us == 4 * SECOND
    assert [p.name for p in scenario.load.phases] == [
        "warm-up",
        "prototype",
        "growth",
        "production",
    ]
    assert scenario.load.phases[-1].start_rps == Fraction(6 * 10**9, 86_400 * 1000)
    assert scenario.load.phases[2].curve == "exponential"
    assert scenario.load.end_us == 84 * SECOND
    # 69.44/s × 5 s × 1.2
    assert scenario.load.lanes == scenario.load.lanes_needed == 417
    assert scenario.faults["gpu-loss"].at_us == 32 * SECOND
    assert scenario.faults["slow-network"].until_us == 60 * SECOND
    assert scenario.faults["slow-network"].settings == {"latency": "300ms", "jitter": "50ms"}
    ttft = scenario.objectives["fast-first-token"]
    assert (ttft.metric, ttft.percentile, ttft.limit) == (Metric.TTFT, 0.95, 800_000)
    assert ttft.of == ("chat",)
    assert scenario.objectives["answers"].of == ("chat", "search")
    assert scenario.objectives["comes-back"].during == "each fault"
    assert scenario.target.bearer == "${SURVIVE_REFERENCE_KEY}"
    assert scenario.target.services["inference"].replicas == 3
    assert scenario.target.folder.name == "reference"
    assert scenario.warnings == ()


def test_a_team_needs_nothing_but_its_own_folders(team: Path) -> None:
    scenario = load(team)
    assert scenario.faults["slow"].kind == "team.slow"
    assert scenario.objectives["first"].of == ("chat",)
    assert [kind.share for kind in scenario.requests.values()] == pytest.approx([0.6, 0.4])
    low, up, high = scenario.load.phases
    assert (up.start_rps, up.end_rps) == (Fraction(10), Fraction(40)) and not up.constant
    assert (low.start_us, high.start_us) == (0, 20 * SECOND)
    assert scenario.target.services["model"].restart_after_us == 2 * SECOND


def test_without_plugins_no_code_of_the_team_runs(team: Path) -> None:
    (team / "faults" / "team.py").write_text(TEAM_FAULTS + "\nraise SystemError('it ran')\n")
    path = team / "small.survive.yaml"
    with pytest.raises(ScenarioError) as caught:
        load_scenario(path, catalog=Catalog(path, plugins=False))
    assert all("--plugins" in line for line in caught.value.lines())


def test_a_fault_file_that_cannot_be_loaded_is_a_problem_not_a_crash(team: Path) -> None:
    (team / "faults" / "team.py").write_text(TEAM_FAULTS + "\n1 / 0\n")
    assert any("cannot be loaded: division by zero" in line for line in refused(team))


def test_an_inline_target_is_the_same_grammar(team: Path) -> None:
    inline = TARGET.removeprefix("survive: 1\n").replace("\n", "\n  ").rstrip()
    edit(team, "target: here", f"target:\n  {inline}")
    scenario = load(team, "target.vars.model=big")
    assert scenario.target.name == "inline"
    assert scenario.target.vars == {"model": "big"}
    assert scenario.raw_target["survive"] == 1
    edit(team, "entry: web", "entry: wob")
    assert refused(team) == ["small.survive.yaml:5:10: unknown service 'wob' (did you mean 'web'?)"]


def test_a_phase_can_change_the_mix(team: Path) -> None:
    edit(team, "name: low, rate: 10/s", "name: low, share: {find: 80%}, rate: 10/s")
    low, up, _ = load(team).load.phases
    assert low.shares == pytest.approx({"chat": 0.2, "find": 0.8})
    assert up.shares == pytest.approx({"chat": 0.6, "find": 0.4})


def test_kinds_without_a_share_divide_the_rest(team: Path) -> None:
    edit(team, "  find:", "  third: {get: /third}\n  find:")
    shares = {kind.name: kind.share for kind in load(team).requests.values()}
    assert shares == pytest.approx({"chat": 0.6, "third": 0.2, "find": 0.2})


def test_lanes_default_to_what_is_needed_and_fewer_is_a_warning(team: Path) -> None:
    assert load(team).load.lanes == 480  # 40/s × 10 s × 1.2
    few = load(team, "load.lanes=20")
    assert (few.load.lanes, few.load.lanes_needed) == (20, 480)
    assert "20 lanes are fewer than the 480" in few.warnings[0]
    many = load(team, "load.phases.high.rate=9000/s")
    assert (many.load.lanes, many.load.lanes_needed) == (10_000, 108_000)
    assert len(many.warnings) == 1


def test_arrivals_can_be_those_of_a_trace(team: Path) -> None:
    azure = "2023-11-16 18:15:4{}.5,{},44\n"
    rows = "".join(azure.format(at, 100 + at) for at in (1, 2, 3, 7))
    (team / "calls.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    edit(team, "  phases:", "  arrivals: {trace: calls.csv}\n  phases:")
    edit(team, 'row.q }}"}, data: rows.jsonl', 'row.input_tokens }}"}, data: calls.csv')
    scenario = load(team)
    assert scenario.load.trace_us == (0, 1_000_000, 2_000_000, 6_000_000)
    assert scenario.load.arrivals == "trace cv 0.71"
    kinds = compile_requests(scenario, "")
    assert [json.loads(request.body)["q"] for request in kinds[0].requests] == [101, 102, 103, 107]
    plan = make_plan(scenario)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert sum(map(sum, plan.planned)) == pytest.approx(10 * 10 + 25 * 10 + 40 * 60, abs=4)


def test_a_ramp_can_go_in_steps_and_a_spike_is_not_steady(team: Path) -> None:
    edit(team, "ramp_to: 40/s", "ramp_to: 40/s, steps: 3")
    edit(team, "    - {name: high", "    - {name: flash, spike: 200/s, for: 2s}\n    - {name: high")
    spec = load(team).load
    _, up, flash, high = spec.phases
    assert (up.curve, up.steps, up.constant) == ("steps", 3, False)
    assert [up.step_rps(n) for n in (1, 2, 3)] == [20, 30, 40]
    assert (flash.start_rps, flash.end_rps, flash.spike, flash.constant) == (200, 200, True, False)
    assert high.constant
    assert spec.lanes_needed == 2400  # 200/s × 10 s × 1.2


def test_a_phase_can_swing_and_its_crest_sizes_the_lanes(team: Path) -> None:
    edit(team, "rate: 10/s", "rate: 100/s, curve: sine, swing: 50%, period: 5s")
    spec = load(team).load
    low = spec.phases[0]
    assert (low.curve, low.swing, low.period_us, low.constant) == ("sine", 0.5, 5_000_000, False)
    assert (low.start_rps, low.end_rps, spec.lanes_needed) == (100, 100, 1800)  # 150/s × 10 s × 1.2


@pytest.mark.parametrize(
    ("written", "planned", "lanes"),
    [
        ("uniform", "uniform", 480),
        ("azure-conv", "azure-conv", 480),
        ("azure-code", "azure-code", 1192),  # 400 + 3 × 13.2 × √400
        ("{bursty: {cv: 3}}", "bursty cv 3", 580),
        ("{bursty: {cv: 2.5}}", "bursty cv 2.5", 550),
    ],
)
def test_arrivals_come_in_bursts_and_those_need_more_lanes(
    team: Path, written: str, planned: str, lanes: int
) -> None:
    edit(team, "  phases:", f"  arrivals: {written}\n  phases:")
    spec = load(team).load
    assert (spec.arrivals, spec.lanes_needed) == (planned, lanes)


def test_keys_that_begin_with_x_are_free_at_every_level(team: Path) -> None:
    edit(team, "name: small", "x-team: {anything: [1]}\nname: small")
    edit(team, "  crash:", "  x-base: 5\n  crash:")
    edit(team, "metric: success, min", "x-why: because, metric: success, min")
    assert "x-base" not in load(team).faults


def test_headers_and_bodies_keep_keys_that_begin_with_x(team: Path) -> None:
    edit(team, 'get: "/find', 'headers: {X-Tenant: a}, get: "/find')
    edit(team, "{stream: true", "{x-seed: 1, stream: true")
    scenario = load(team)
    assert scenario.requests["find"].headers == (("x-tenant", "a"),)
    assert isinstance(scenario.requests["chat"].json, dict)
    assert scenario.requests["chat"].json["x-seed"] == 1


# ------------------------------------------------------------------------------- refusals

F = "small.survive.yaml"
T = "targets/here.yaml"
# Old text, new text, file; and then: the line, what stands at the place, what is said.
ONE = [
    ("name: small", "name: a/b", F, 2, "a/b", "'a/b' is not a name"),
    ("survive: 1", "survive: 2", F, 1, "2", "2 is not a version"),
    (
        "target: here",
        "target: ther",
        F,
        3,
        "ther",
        "there is no target 'ther' (did you mean 'here'?)",
    ),
    ("target: here", "target: ../here", F, 3, "../here", "there is no target '../here'"),
    ("target: here", "target: 5", F, 3, "5", "expected text, not 5"),
    ("target: here\n", "", F, 1, "survive:", "the file has no 'target' (add `target:`)"),
    ("share: 60%", "share: 60", F, 5, "60", "60 has no unit; write it like 60%"),
    ("share: 60%", "share: 160%", F, 5, "160%", "'160%' is over 100%"),
    ("share: 60%", "share: 100%", F, 6, "find:", "the other kinds leave no share for it"),
    (
        "timeout: 2s",
        "timeout: 2s, share: 50%",
        F,
        4,
        "requests:",
        "shares sum to 110%, which is over 100%",
    ),
    ("timeout: 2s", "timeout: 2s, share: 30%", F, 4, "requests:", "shares sum to 90%, not 100%"),
    ("timeout: 2s", "timeout: 2", F, 6, "2", "2 has no unit"),
    ("timeout: 2s", "timeout: 0s", F, 6, "0s", "'0s' is zero"),
    (
        "timeout: 2s",
        "timout: 2s",
        F,
        6,
        "timout:",
        "unknown key 'timout' of find (did you mean 'timeout'",
    ),
    ("timeout: 2s", "timeout: 2s, post: /x", F, 6, "find:", "request 'find' has get and post"),
    ('get: "/find?m={{ target.model }}", ', "", F, 6, "find:", "request 'find' has no method"),
    (
        "target.model",
        "target.modell",
        F,
        6,
        '"/find?m={{ target',
        "the target has no var 'modell' (did you mean",
    ),
    (
        "target.model",
        "targt.model",
        F,
        6,
        '"/find?m={{ targt.',
        "{{ targt.model }} is not a template",
    ),
    ("/find?", "find?", F, 6, '"find?m={{ target.', "'find?m={{ target.model }}' is not a path"),
    ("/find?", "/fi\\r\\nnd?", F, 6, '"/fi\\r\\nnd?m={{ ta', "holds a control character"),
    (
        "data: rows.jsonl",
        "data: none.jsonl",
        F,
        5,
        "none.jsonl",
        "none.jsonl: there is no such file",
    ),
    (
        "data: rows.jsonl",
        "data: small.survive.yaml",
        F,
        5,
        "small.survive.yaml",
        "small.survive.yaml: is neither",
    ),
    (", data: rows.jsonl", "", F, 5, "chat:", "{{ row.q }} needs rows"),
    ("post: /chat", "post: /chat, expect: {status: 99}", F, 5, "99", "99 is less than 100"),
    (
        "timeout: 2s",
        "expect: {stream: complete}",
        F,
        6,
        "stream:",
        "this request does not ask for a str",
    ),
    (
        "timeout: 2s",
        "expect: {tokens: 0}",
        F,
        6,
        "0",
        "0 is less than 1",
    ),
    ("timeout: 2s", "expect: {has: a..b}", F, 6, "a..b", "'a..b' is no place"),
    ("rate: 10/s", "rate: 10", F, 9, "10", "10 has no unit; write it like 400M/day or 50/s"),
    ("rate: 10/s", "rate: 0/s", F, 9, "0/s", "'0/s' is zero"),
    ("rate: 10/s", "rate: 11M/s", F, 9, "11M/s", "11,000,000/s after scale is over 10M/s"),
    ("rate: 10/s", "ramp_to: 10/s", F, 9, "ramp_to:", "the first phase has no rate to ramp from"),
    (
        "rate: 10/s",
        "rate: 10/s, ramp_to: 9/s",
        F,
        9,
        "{name: low",
        "phase 'low' has rate and ramp_to",
    ),
    (
        "rate: 10/s, ",
        "",
        F,
        9,
        "{name: low",
        "phase 'low' has none of rate, ramp_to, spike and users",
    ),
    ("rate: 10/s", "rate: 10/s, curve: linear", F, 9, "curve:", "only a ramp has a curve"),
    ("ramp_to: 40/s", "curve: cubic, ramp_to: 40/s", F, 10, "cubic", "'cubic' is not 'linear'"),
    ("name: up", "name: low", F, 10, "low", "a second phase is called 'low'"),
    ("ramp_to: 40/s, for: 10s", "ramp_to: 40/s", F, 10, "{name: up", "phase 2 has no 'for'"),
    (
        "rate: 40/s, for: 60s",
        "rate: 40/s, for: 24h",
        F,
        8,
        "phases:",
        "the load lasts 86420s, over 24h",
    ),
    ("  phases:", "  arrivals: {trace: no.csv}\n  phases:", F, 8, "no.csv", "no.csv: No such file"),
    ("rate: 10/s", "rate: 10/s, steps: 3", F, 9, "steps:", "only a ramp has steps"),
    ("ramp_to: 40/s", "ramp_to: 40/s, steps: 1", F, 10, "1", "1 is less than 2"),
    (
        "ramp_to: 40/s",
        "ramp_to: 40/s, steps: 3, curve: linear",
        F,
        10,
        "curve:",
        "a ramp in steps has no curve",
    ),
    ("rate: 10/s", "rate: 10/s, spike: 9/s", F, 9, "{name: low", "has rate and spike"),
    ("rate: 40/s", "spike: 40M/s", F, 11, "40M/s", "is over 10M/s"),
    ("10/s", "10/s, curve: sine, period: 5s", F, 9, "curve:", "a sine needs a swing"),
    ("10/s", "10/s, period: 5s", F, 9, "period:", "only a sine has a period"),
    (
        "rate: 10/s, for: 10s",
        "rate: 10/s, curve: sine, swing: 50%, period: 4s, for: 10s",
        F,
        9,
        "10s",
        "10s is not a whole number of periods of 4s",
    ),
    (
        "rate: 10/s",
        "curve: sine, swing: 100%, period: 5s, rate: 10/s",
        F,
        9,
        "100%",
        "100% is not between 0% and 100%",
    ),
    ("  phases:", "  arrivals: azure\n  phases:", F, 8, "azure", "'azure' is not 'poisson'"),
    (
        "  phases:",
        "  arrivals: {bursty: {cv: 0.5}}\n  phases:",
        F,
        8,
        "0.5",
        "0.5 is less than 1",
    ),
    ("  phases:", "  arrivals: {bursty: {}}\n  phases:", F, 8, "{}", "bursty has no 'cv'"),
    (
        "  phases:",
        "  arrivals: {burst: 1, bursty: {cv: 2}}\n  phases:",
        F,
        8,
        "burst:",
        "unknown key 'burst' of arrivals (did you mean 'bursty'?)",
    ),
    ("  phases:", "  arrivals: {bursty: 3}\n  phases:", F, 8, "3", "expected a map, not 3"),
    ("for: 10s}", "for: 10s, share: {fnd: 1%}}", F, 9, "fnd:", "unknown request 'fnd'"),
    (
        "team.slow",
        "team.slo",
        F,
        13,
        "team.slo",
        "unknown fault kind 'team.slo' (did you mean 'team.slow",
    ),
    ("team.slow", "gpu.lost", F, 13, "gpu.lost", "target 'here' does not allow 'gpu' faults"),
    (
        "web -> model, with",
        "web -> modl, with",
        F,
        13,
        "web -> modl",
        "unknown link 'web -> modl' (did you m",
    ),
    (
        "link: web -> model, ",
        "",
        F,
        13,
        "slow:",
        "team.slow needs `link:` (one of: web -> model, load",
    ),
    (
        "link: web -> model",
        "link: web -> model, count: 2",
        F,
        13,
        "count:",
        "a link is hit as a whole",
    ),
    (
        "link: web",
        "service: web, link: web",
        F,
        13,
        "service:",
        "team.slow acts on a link, not on a serv",
    ),
    ("by: 300ms", "by: 300", F, 13, "300", "300 has no unit; write it like 300ms"),
    ("by: 300ms", "by: 300ms, too: 1", F, 13, "too:", "team.slow has no setting 'too'"),
    ("with: {by: 300ms}, ", "", F, 13, "slow:", "team.slow: 'by' is missing; write it like 300ms"),
    (
        "at: high + 5s",
        "at: hihg + 5s",
        F,
        13,
        "hihg + 5s",
        "unknown phase 'hihg' (did you mean 'high'?)",
    ),
    (
        "at: high + 5s",
        "at: high",
        F,
        13,
        "high",
        "'high' is a phase, not a moment (write high + 0s)",
    ),
    ("at: high + 5s", "at: 5", F, 13, "5", "5 has no unit; write it like 30s or production + 8s"),
    ("at: high + 5s", "at: soon", F, 13, "soon", "'soon' is not a moment"),
    ("at: high + 5s", "at: 80s", F, 13, "80s", "begins at 80s, after the load has ended (80s)"),
    (", for: 5s}", "}", F, 13, "slow:", "team.slow is held, so it needs a time"),
    ("service: web", "for: 3s, service: web", F, 14, "for:", "team.crash happens at once and has"),
    ("service: web", "service: wbe", F, 14, "wbe", "unknown service 'wbe' (did you mean 'web'?)"),
    ("service: web", "service: web, count: 3", F, 14, "3", "3 is more than the 2 replicas of web"),
    (
        "team.crash, service: web",
        "team.hot, for: 1s, service: web",
        F,
        14,
        "web",
        "'web' has no GPU",
    ),
    (
        "high + 30s",
        "high + 15s",
        F,
        13,
        "slow:",
        "the recovery of 'slow' is watched until 40s, past 'c",
    ),
    (
        "high + 30s",
        "high + 55s",
        F,
        14,
        "crash:",
        "the recovery of 'crash' is watched until 85s, past t",
    ),
    ("5s, for: 5s", "5s, for: 56s", F, 13, "56s", "ends at 81s, after the load (80s)"),
    (
        "metric: success, min",
        "metric: sucess, min",
        F,
        16,
        "sucess",
        "unknown metric 'sucess' (did you",
    ),
    (
        "metric: success, min",
        "metric: latency.p9, min",
        F,
        16,
        "latency.p9",
        "'p9' is not a percentile",
    ),
    (
        "metric: success, min",
        "metric: success.p95, min",
        F,
        16,
        "success.p95",
        "success has no percentiles",
    ),
    ("min: 99%", "max: 99%", F, 16, "max:", "success is limited by min, not max"),
    ("min: 99%", "min: 99", F, 16, "99", "99 has no unit; write it like 99%"),
    ("min: 99%", "min: 99%, max: 5s", F, 16, "max:", "both min and max"),
    ("min: 99%, ", "", F, 16, "answers:", "has no limit (write min: 99%)"),
    (", during: steady", "", F, 16, "answers:", "objective 'answers' does not say when"),
    (
        "during: steady",
        "during: stedy",
        F,
        16,
        "stedy",
        "unknown window 'stedy' (did you mean 'steady'",
    ),
    (
        "during: steady",
        "during: phase:hgh",
        F,
        16,
        "phase:",
        "unknown phase 'hgh' (did you mean 'high'?)",
    ),
    (
        "during: steady",
        "during: fault:slo",
        F,
        16,
        "fault:",
        "unknown fault 'slo' (did you mean 'slow'?)",
    ),
    ("during: steady", "during: run", F, 18, "back:", "there is no objective to come back to"),
    (
        "during: steady",
        "during: steady, stable_for: 3s",
        F,
        16,
        "stable_for:",
        "only recovery and scale_up have stable_for",
    ),
    ("max: 800ms", "max: 800ms, of: find", F, 17, "find", "ttft is of streams, and 'find' is not"),
    (
        "max: 800ms",
        "max: 800ms, of: caht",
        F,
        17,
        "caht",
        "unknown request 'caht' (did you mean 'c",
    ),
    (", stable_for: 4s", "", F, 18, "back:", "recovery needs `stable_for:`"),
    ("max: 6s", "max: 6s, during: run", F, 18, "during:", "recovery means each fault"),
    ("below: 20%", "below: 0%", F, 20, "0%", "0% is never undercut"),
    (
        "load.phases.high",
        "load.phases.hihg",
        F,
        22,
        "load.phases.hihg.f",
        "nothing is called 'hihg' in load.phase",
    ),
    (
        "profiles:",
        "kills: {no_timeot: first}\nprofiles:",
        F,
        21,
        "no_timeot:",
        "unknown weakness 'no_timeot' (did you mean 'no_timeout'?)",
    ),
    (
        "profiles:",
        "kills: {no_timeout: frist}\nprofiles:",
        F,
        21,
        "frist",
        "unknown objective 'frist' (did you mean 'first'?)",
    ),
    (
        "profiles:",
        'claims: {"400M → 6B requests a day": frist}\nprofiles:',
        F,
        21,
        "frist",
        "unknown objective 'frist' (did you mean 'first'?)",
    ),
    ("load:\n", "load: 5\nx-old:\n", F, 7, "5", "expected a map, not 5"),
    ("faults:\n", "faults:\n  empty:\n", F, 13, "empty:", "'empty' has no value"),
    (
        "driver: process",
        "driver: proces",
        T,
        2,
        "proces",
        "unknown driver 'proces' (did you mean 'proc",
    ),
    (
        "driver: process",
        "driver: external",
        T,
        7,
        "run:",
        "driver external starts nothing, so 'run'",
    ),
    ("entry: web", "entry: wbe", T, 3, "wbe", "unknown service 'wbe' (did you mean 'web'?)"),
    ("${KEY}", "secret", T, 5, '"secret"', "a secret must not stand in a file"),
    (
        "${KEY}",
        "${KEY:-secret}",
        T,
        5,
        '"${KEY:-secret}"',
        "${KEY:-secret} is not the name of a variable (secr",
    ),
    ("model: demo", 'model: "${M}"', T, 4, '"${M}"', "${M} cannot stand here"),
    (
        "run: [model]",
        "run: [model], app: a.py:b",
        T,
        8,
        "model:",
        "service 'model' has app and run",
    ),
    ("run: [model]", "app: nope.py:make", T, 8, "nope.py:", "there is no file 'nope.py'"),
    ("run: [model]", "app: nope", T, 8, "nope", "'nope' is not a file and a function"),
    ("run: [model]", "url: http://x", T, 8, "url:", "'url' is for driver external, not process"),
    ("run: [model], ", "", T, 8, "model:", "service 'model' has no app, run or url"),
    ("replicas: 2", "replicas: 0", T, 7, "0", "0 is less than 1"),
    ("gpu: simulated", "gpu: h100", T, 8, "h100", "'h100' is not 'simulated'"),
    (
        "web -> model:",
        "web -> modell:",
        T,
        10,
        "web -> modell:",
        "unknown service 'modell' (did you mean 'mod",
    ),
    ("web -> model:", "web to model:", T, 10, "web to model:", "'web to model' is not a link"),
    ("web -> model:", "load -> web:", T, 10, "load -> web:", "the link load -> web is implied"),
    ("{env: MODEL}", "{env: MO-DEL}", T, 10, "MO-DEL", "'MO-DEL' is not the name"),
    ("prices: {model", "prices: {modle", T, 11, "modle:", "unknown service 'modle'"),
    ("2.50 USD/h", "2.50", T, 11, "2.50", "2.5 has no unit; write it like 2.50 USD/h"),
    (
        "allow:",
        "weaknesses: [no_timeout]\nallow:",
        T,
        12,
        "weaknesses:",
        "weaknesses are planted in services t",
    ),
    ("TOKEN: ", "1TOKEN: ", T, 7, "1TOKEN:", "'1TOKEN' is not the name of a variable"),
]


@pytest.mark.parametrize("case", ONE, ids=lambda case: f"{case[0]}|{case[1]}".replace("\n", " "))
def test_one_mistake_is_said_at_its_place(
    team: Path, case: tuple[str, str, str, int, str, str]
) -> None:
    old, new, file, line, token, said = case
    edit(team, old, new, file)
    with pytest.raises(ScenarioError) as caught:
        load(team)
    text = (team / file).read_text().splitlines()
    for problem in caught.value.problems:
        where = problem.where
        here = where.file == str(team / file) and where.line == line
        if here and text[line - 1][where.column - 1 :].startswith(token) and said in str(problem):
            return
    pytest.fail(str(caught.value.lines()))


def test_ten_mistakes_in_two_files_are_ten_problems_on_their_lines(team: Path) -> None:
    for old, new in [
        ("name: small", "name: small one"),  # 2
        ("share: 60%", "share: 60"),  # 5
        ("timeout: 2s", "timout: 2s"),  # 6
        ("rate: 10/s", "rate: ten"),  # 9
        ("by: 300ms", "bye: 300ms"),  # 13, twice: by is missing too
        ("service: web", "service: wbe"),  # 14
        ("during: steady", "during: steadily"),  # 16
        ("metric: ttft.p95", "metric: ttft"),  # 17
    ]:
        edit(team, old, new)
    edit(team, "entry: web", "entry: wbe", T)  # 3
    edit(team, "replicas: 2", "replicas: two", T)  # 7
    lines = [line.split(":") for line in refused(team)]
    places = [(parts[0], int(parts[1])) for parts in lines]
    here = [line for file, line in places if file == F]
    assert here == [2, 5, 6, 9, 13, 13, 14, 16, 17, 18], refused(team)
    assert [line for file, line in places if file == T] == [3, 7]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("metric: ttft.p95", "metrc: ttft.p95", ["has no 'metric'", "unknown key 'metrc'"]),
        ("metric: ttft.p95", "metric: p95", ["unknown metric 'p95' (of what? like latency.p95"]),
        ("with: {by: 300ms}", "by: 300ms", ["'by' is missing", "it stands under `with:`"]),
        ("rate: 10/s", "rate: 10/s, warm_up: yes", ["'yes' is a boolean in YAML 1.1"]),
        ("timeout: 2s", "timeout: 1m30s", ["'1m30s' is not a duration; write 90s"]),
    ],
)
def test_one_slip_is_told_once_and_with_what_was_meant(
    team: Path, old: str, new: str, said: list[str]
) -> None:
    edit(team, old, new)
    lines = refused(team)
    assert len(lines) == len(said), lines
    assert all(word in line for word, line in zip(said, lines, strict=True)), lines


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1:30", "90s"),
        ("1h30m", "90m"),
        ("1 h 30 min", "90m"),
        ("42 seconds", "42s"),
        ("2 days", "48h"),
        ("1.5 hrs", "90m"),
        ("300 parsecs", ""),
        ("8e2ms", ""),
        ("1:99", ""),
        ("", ""),
    ],
)
def test_a_time_as_others_write_it_is_said_back_never_guessed(written: str, meant: str) -> None:
    with pytest.raises(UnitError) as caught:
        duration_us(written)
    assert str(caught.value).endswith(f"write {meant}" if meant else "like 300ms, 8s or 10m")


def test_a_broken_target_hides_nothing_of_the_scenario(team: Path) -> None:
    edit(team, "driver: process", "driver: [", T)
    edit(team, "share: 60%", "share: 60")
    lines = refused(team)
    assert any(line.startswith(T + ":") and "not YAML" in line for line in lines)
    assert any(line.startswith(F + ":5:17") for line in lines)


def test_missing_files_are_problems(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError) as caught:
        load_scenario(tmp_path / "none.survive.yaml")
    assert "cannot be read: no such file" in caught.value.lines()[0]
    with pytest.raises(ScenarioError) as caught:
        load_scenario(tmp_path)
    assert "cannot be read: is a directory" in caught.value.lines()[0]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("", "holds no rows"),
        ('{"q": 1}\n{"p": 1}\n', "rows.jsonl:2:1: the row has no 'q'"),
        ('{"q": 1}\n[1]\n', "rows.jsonl:2:1: the row is not an object"),
        ('{"q": 1}\n\n{"q"', "rows.jsonl:3:1: not JSON"),
    ],
)
def test_every_row_has_what_the_requests_ask(team: Path, rows: str, said: str) -> None:
    (team / "rows.jsonl").write_text(rows)
    assert any(said in line for line in refused(team))


def test_rows_may_be_csv(team: Path) -> None:
    edit(team, "rows.jsonl", "rows.csv")
    (team / "rows.csv").write_text("q,p\none,1\ntwo,2\n")
    assert load(team).requests["chat"].data == Path("rows.csv")
    (team / "rows.csv").write_text("q,p\none,1\ntwo\n")
    assert any("rows.csv:3:1: the row and the header differ" in line for line in refused(team))


# ------------------------------------------------------------------------------ overrides


def test_set_reaches_every_part(team: Path) -> None:
    scenario = load(
        team,
        "faults.slow.with.by=1s",
        "load.phases.high.for=90s",
        "load.scale=1/2",
        "clients.gives_up_after=3s",
        "target.vars.model=big",
        "target.services.web.replicas=5",
        "objectives.answers={metric: success, min: 95%, during: run}",
        "objectives.extra={metric: latency.p99, max: 1s, during: steady}",
    )
    assert scenario.faults["slow"].settings == {"by": "1s"}
    assert scenario.load.end_us == 110 * SECOND
    assert scenario.load.phases[0].start_rps == 5
    assert scenario.gives_up_after_us == 3 * SECOND
    assert scenario.target.vars == {"model": "big"}
    assert scenario.target.services["web"].replicas == 5
    assert scenario.objectives["answers"].limit == 0.95
    assert list(scenario.objectives) == ["answers", "first", "back", "extra"]
    assert scenario.raw["faults"]["slow"]["with"] == {"by": "1s"}
    assert scenario.raw_target["vars"] == {"model": "big"}


def test_set_does_not_reach_another_use_of_an_alias(team: Path) -> None:
    edit(team, "with: {by: 300ms}", "with: &by {by: 300ms}")
    again = "  again: {kind: team.slow, link: web -> model, with: *by, at: high + 6s, for: 4s}\n"
    edit(team, "  crash:", again + "  crash:")
    scenario = load(team, "faults.slow.with.by=1s")
    assert scenario.faults["again"].settings == {"by": "300ms"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense", "--set nonsense: is not path=value"),
        ("=1", "--set =1: is not path=value"),
        ("faults.slwo.with.by=1s", "nothing is called 'slwo'"),
        ("faults.slow.wth.by=1s", "did you mean 'with'?"),
        ("load.phases.hihg.for=1s", "did you mean 'high'?"),
        ("load.phases.high.for=9", "--set load.phases.high.for=9: 9 has no unit"),
        ("load.phases.high.for=yes", "'yes' is a boolean in YAML 1.1"),
        ("seed.x=1", "seed.x leads through a plain value"),
        ("name.x=1", "name.x leads through a plain value"),
        ("target.entri=web", "did you mean 'entry'?"),
        ("target.entry=wbe", "--set target.entry=wbe: unknown service 'wbe'"),
        ("objectives.answrs=5", "did you mean 'answers'?"),
        ("name=", "--set name=: 'name' has no value"),
    ],
)
def test_a_wrong_set_is_said_with_its_text(team: Path, text: str, said: str) -> None:
    lines = refused(team, text)
    assert any(said in line for line in lines), lines


def test_a_profile_is_laid_on_before_set(team: Path) -> None:
    assert load(team, profile="long").load.end_us == 620 * SECOND
    assert load(team, profile="long").target.vars == {"model": "big"}
    assert load(team, "load.phases.high.for=61s", profile="long").load.end_us == 81 * SECOND
    assert refused(team, profile="lang") == [
        "--profile lang: unknown profile 'lang' (did you mean 'long'?)"
    ]


def test_a_scenario_says_which_weakness_breaks_which_objective(team: Path) -> None:
    assert load(team).kills == {}
    edit(team, "profiles:", "kills: {no_timeout: first, x-note: later}\nprofiles:")
    assert load(team).kills == {"no_timeout": "first"}


def test_a_scenario_says_which_claim_an_objective_measures(team: Path) -> None:
    assert load(team).claims == {}
    edit(team, "profiles:", "claims: {audit logging: first}\nprofiles:")
    assert load(team).claims == {"audit logging": "first"}


def test_another_target_can_be_asked_for(team: Path) -> None:
    shutil.copy(team / T, team / "targets" / "other.yaml")
    path = team / "small.survive.yaml"
    scenario = load_scenario(path, target="other")
    assert (scenario.target.name, scenario.raw["target"]) == ("other", "other")
    with pytest.raises(ScenarioError) as caught:
        load_scenario(path, target="othr")
    assert "--target othr: there is no target 'othr' (did you mean 'other'?)" in str(
        caught.value.lines()[0]
    )


# --------------------------------------------------------------------------------- stored


def test_a_stored_run_needs_nothing_else(
    team: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    away = tmp_path_factory.mktemp("run")
    scenario = load(team, "load.phases.high.for=90s", profile="long")
    dump_scenario(scenario, away)
    shutil.rmtree(team)
    stored = load_stored(away)
    assert stored.load == scenario.load
    assert stored.requests == scenario.requests
    assert stored.faults == scenario.faults
    assert stored.objectives == scenario.objectives
    assert stored.stop_if == scenario.stop_if
    assert (stored.name, stored.seed, stored.about) == ("small", 1, "")
    assert stored.target.services == scenario.target.services
    assert stored.target.bearer == "${KEY}"
    assert (stored.raw, stored.raw_target) == (scenario.raw, scenario.raw_target)
    text = (away / "scenario.yaml").read_text()
    (away / "scenario.yaml").write_text(text.replace("min: 99%", "min: 42%"))
    assert load_stored(away).objectives["answers"].limit == 0.42
    (away / "scenario.yaml").write_text(text.replace("min: 99%", "min: 42"))
    with pytest.raises(ScenarioError, match="1 problem"):
        load_stored(away)
    (away / "target.yaml").unlink()
    with pytest.raises(RecordError, match="is missing"):
        load_stored(away)


def test_the_quickstart_can_be_stored(tmp_path: Path) -> None:
    scenario = load_scenario(QUICKSTART)
    dump_scenario(scenario, tmp_path)
    assert load_stored(tmp_path).objectives == scenario.objectives


TEXT = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=20)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | TEXT
    | st.sampled_from(
        ["yes", "y", "on", "1e3", "0x1", "1:30", "null", "~", "", "<<", "- a", "a\nb"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(PLAIN)
def test_what_is_written_is_read_back(value: object) -> None:
    if isinstance(value, dict | list) and any(
        bad in to_yaml(value) for bad in ("\u2028", "\u2029", "\ufeff")
    ):
        return
    node, wrong = read_tree(to_yaml({"a": value}).encode(), "f")
    merge = isinstance(value, dict) and "<<" in value
    assert node is not None and (merge or not wrong), (wrong, to_yaml({"a": value}))
    assert merge or plain(node) == {"a": value}


# ----------------------------------------------------------------------------------- fuzz

LINES = [*SCENARIO.splitlines(), "a: [", "x: !!python/name:os", "? {}", "- - -", "<<: *a"]
PATHS = [
    "survive",
    "seed",
    "target",
    "requests",
    "requests.chat",
    "requests.chat.share",
    "requests.chat.json",
    "requests.chat.post",
    "requests.chat.data",
    "requests.chat.expect",
    "requests.chat.headers",
    "clients",
    "clients.retries",
    "clients.retries.backoff",
    "probes",
    "probes.x",
    "probes.x.write",
    "probes.x.expect",
    "load",
    "load.phases",
    "load.phases.high",
    "load.phases.high.for",
    "load.phases.high.share",
    "load.lanes",
    "faults",
    "faults.slow",
    "faults.slow.with",
    "faults.slow.at",
    "faults.slow.link",
    "faults.crash.count",
    "objectives",
    "objectives.first",
    "objectives.first.of",
    "objectives.first.metric",
    "objectives.first.max",
    "objectives.first.during",
    "stop_if",
    "profiles",
    "profiles.long",
    "target.driver",
    "target.entry",
    "target.services",
    "target.services.web",
    "target.services.web.run",
    "target.services.web.env",
    "target.links",
    "target.vars",
    "target.prices",
    "target.allow",
    "target.allow.faults",
    "target.weaknesses",
    "target.auth",
    "target.auth.identities",
    "target.auth.identities.x",
    "target.services.web.health",
    "target.services.web.url",
]
WORDS = ["5", "null", "[]", "{}", "-1", "1e9", "yes", '""', "{{ x }}", "99%", "10s", "a.b", "${A}"]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_mangled_files_are_a_scenario_or_a_scenario_error(team: Path, data: st.DataObject) -> None:
    lines: Sequence[str] = SCENARIO.splitlines()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(lines) - 1))
        how = data.draw(st.integers(0, 2))
        if how == 0:
            lines = [*lines[:at], *lines[at + 1 :]]
        elif how == 1:
            lines = [*lines[:at], data.draw(st.sampled_from(LINES)), *lines[at:]]
        else:
            head, colon, _ = lines[at].rpartition(":")
            word = data.draw(st.sampled_from(WORDS))
            lines = [*lines[:at], f"{head}{colon} {word}", *lines[at + 1 :]]
    path = team / "small.survive.yaml"
    path.write_text("\n".join(lines))
    try:
        load_scenario(path)
    except ScenarioError as error:
        assert error.problems
        assert all("Traceback" not in line and "broken" not in line for line in error.lines())


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(path=st.data())
def test_any_value_anywhere_is_a_scenario_or_a_scenario_error(
    team: Path, path: st.DataObject
) -> None:
    """One value of either file becomes something else; also a way to see each message once."""
    sets = path.draw(st.sampled_from(PATHS))
    word = path.draw(st.sampled_from([*WORDS, "[5]", "{a: 5}", "[[]]", "{a: {b: []}}", "true", ""]))
    try:
        load(team, f"{sets}={word}")
    except ScenarioError as error:
        assert error.problems
        assert all("broken" not in line for line in error.lines()), error.lines()
