"""Probes, identities and retries in the files: what is built, and every refusal with its place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from survive.chaos.remote import target_from_json, target_to_json
from survive.errors import RefusedError, ScenarioError
from survive.host.command import identity_keys
from survive.host.run import faulted_links
from survive.judge.explain import explain
from survive.load.template import compile_requests
from survive.plan.plan import make_plan
from survive.plan.probing import probe_slots, scraped_services
from survive.scenario.loader import dump_scenario, load_scenario, load_stored
from survive.scenario.model import Metric, Retries, Scenario

TARGET = """\
survive: 1
driver: process
entry: gateway
vars: {model: demo, secret: blue-heron}
auth:
  bearer: "${KEY}"
  identities: {acme: "${KEY}.acme", globex: "${KEY}.globex"}
services:
  gateway: {run: [serve], audit: {file: audit.ndjson}}
  inference: {run: [serve]}
links:
  gateway -> inference: {env: UPSTREAMS}
"""
HEAD = """\
survive: 1
name: probed
target: stack
requests: {search: {get: "/v1/search?q=x", auth: acme, timeout: 1s}}
load: {phases: [{name: steady, rate: 1000/s, for: 60s}]}
objectives: {good: {metric: success, min: 99%, during: run}}
"""
PROBES = """\
probes:
  stranger: {post: /v1/chat, json: {a: 1}, auth: none, every: 1s, expect: {status: [401, 403]}}
  fresh:
    write: {post: /v1/documents, json: {id: "c-{{ canary }}"}}
    read: {get: "/v1/search?q={{canary}}"}
    every: 2s
    within: 3s
  foreign:
    write: {post: /v1/documents, json: {id: "c-{{ canary }}"}, auth: acme}
    read: {get: "/v1/search?q={{ canary }}", auth: globex}
    every: 1s
  secret: {post: /v1/chat, json: {m: "tell {{ target.model }}"}, every: 1s, forbid: "{{ target.secret }}"}
  audit: {get: "/v1/search?q=x", every: 500ms, audit: gateway}
  wire: {link: gateway -> inference, every: 1s}
"""  # noqa: E501


def load(folder: Path, text: str, target: str = TARGET) -> Scenario:
    """The scenario of these texts."""
    (folder / "targets").mkdir(exist_ok=True)
    (folder / "targets" / "stack.yaml").write_text(target)
    file = folder / "probed.survive.yaml"
    file.write_text(HEAD + text)
    return load_scenario(file)


def problems(folder: Path, text: str, target: str = TARGET) -> list[str]:
    """What is wrong with these texts, as ``line:column: message``."""
    with pytest.raises(ScenarioError) as refused:
        load(folder, text, target)
    return [f"{p.where.line}:{p.where.column}: {p.message}" for p in refused.value.problems]


def test_the_metric_follows_from_the_keys(tmp_path: Path) -> None:
    probes = load(tmp_path, PROBES).probes
    assert {name: str(probe.metric) for name, probe in probes.items()} == {
        "stranger": "denied",
        "fresh": "freshness",
        "foreign": "isolated",
        "secret": "leaked",
        "audit": "audited",
        "wire": "encrypted",
    }
    stranger, fresh, foreign = probes["stranger"], probes["fresh"], probes["foreign"]
    assert stranger.ask is not None and fresh.read is not None
    assert foreign.write is not None and foreign.read is not None
    assert stranger.ask.auth == "none" and stranger.ask.status == {401, 403}
    assert (fresh.every_us, fresh.within_us, fresh.read.method) == (2_000_000, 3_000_000, "GET")
    assert (foreign.write.auth, foreign.read.auth) == ("acme", "globex")
    assert probes["audit"].service == "gateway" and probes["wire"].link == "gateway -> inference"
    assert probes["secret"].forbid == "{{ target.secret }}"


def test_a_stored_scenario_has_the_same_probes(tmp_path: Path) -> None:
    scenario = load(tmp_path, PROBES + "clients: {retries: {max: 2, backoff: 200ms..4s}}\n")
    stored = tmp_path / "run"
    stored.mkdir()
    dump_scenario(scenario, stored)
    again = load_stored(stored)
    assert again.probes == scenario.probes
    assert again.retries == Retries(2, 200_000, 4_000_000, True)
    assert again.target.identities == {"acme": "${KEY}.acme", "globex": "${KEY}.globex"}


def test_a_lone_backoff_is_first_and_last(tmp_path: Path) -> None:
    text = "clients: {retries: {max: 1, backoff: 1s, honour_retry_after: false}}\n"
    assert load(tmp_path, text).retries == Retries(1, 1_000_000, 1_000_000, False)
    assert load(tmp_path, "clients: {retries: {max: 1}}\n").retries == Retries(1)


@pytest.mark.parametrize(
    ("probe", "said"),
    [
        ("{get: /x, every: 1s, forbid: a, audit: gateway}", "'audit' does not go with forbid"),
        ("{link: gateway -> inference, get: /x, every: 1s}", "'get' does not go with link"),
        ("{write: {post: /x, json: '{{ canary }}'}, every: 1s}", "has no 'read'"),
        ("{read: {get: /x}, every: 1s}", "has no 'write'"),
        ("{write: {post: /x}, read: {get: /x}, every: 1s}", "writes no {{ canary }}"),
        ("{every: 1s}", "has no method"),
        ("{get: /x, post: /x, every: 1s}", "has get and post"),
        ("{get: /x}", "has no 'every'"),
        ("{get: /x, every: 10ms}", "is shorter than 50ms"),
        ("{get: /x, every: 1s, expect: {status: 200}}", "200 is no refusal"),
        ("{get: /x, every: 1s, forbid: a, expect: {status: 401}}", "'expect' does not go with"),
        ("{get: /x, every: 1s, auth: acmee}", "no identity 'acmee'"),
        ("{get: /x, every: 1s, audit: inference}", "'inference' names no audit log"),
        ("{get: /x, every: 1s, audit: gatewy}", "unknown service 'gatewy'"),
        ("{link: gateway -> store, every: 1s}", "unknown link"),
        ("{get: '/x?{{ row.a }}', every: 1s}", "a probe has no rows"),
        ("{get: '/x?{{ canarie }}', every: 1s}", "is not a template of a probe"),
        ("{get: /x, every: 1s, forbid: '{{ target.secrt }}'}", "no var 'secrt'"),
        ("{get: /x, every: 1s, forbid: ' '}", "is empty"),
    ],
)
def test_a_wrong_probe_is_refused_at_its_place(tmp_path: Path, probe: str, said: str) -> None:
    found = problems(tmp_path, f"probes:\n  one: {probe}\n")
    assert len(found) == 1
    assert said in found[0] and found[0].startswith("8:"), found


def test_identities_come_from_the_environment(tmp_path: Path) -> None:
    open_secret = TARGET.replace('"${KEY}.acme"', "hunter2")
    assert "a secret must not stand in a file" in problems(tmp_path, "", open_secret)[0]
    taken = TARGET.replace("globex:", "none:")
    assert "'none' is a word of its own" in problems(tmp_path, "", taken)[0]
    assert "no identity 'acme'" in problems(tmp_path, "", TARGET.replace("acme:", "acm:"))[0]


@pytest.mark.parametrize("backoff", ["8s..1s", "5", "1s..", "0s..1s", "a..b"])
def test_a_backoff_is_a_span_of_time(tmp_path: Path, backoff: str) -> None:
    found = problems(tmp_path, f"clients: {{retries: {{max: 1, backoff: {backoff}}}}}\n")
    assert len(found) == 1 and found[0].startswith("7:")


def test_many_probes_are_load_themselves(tmp_path: Path) -> None:
    assert load(tmp_path, PROBES).warnings == ()
    fast = load(tmp_path, "probes: {x: {get: /x, every: 50ms}, z: {get: /x, every: 50ms}}\n")
    assert "4% of the planned load" in fast.warnings[-1]
    assert fast.probes["x"].metric is Metric.DENIED


def test_an_identity_gets_the_key_that_the_run_made_up(tmp_path: Path) -> None:
    target = load(tmp_path, "").target
    assert identity_keys(target, "made-up", {})["acme"] == "made-up.acme"
    other = replace(target, identities={"acme": "${OTHER}"})
    assert identity_keys(other, "made-up", {"OTHER": "theirs"}) == {"acme": "theirs"}
    with pytest.raises(RefusedError, match="OTHER is not set"):
        identity_keys(other, "made-up", {})
    assert target_from_json(target_to_json(target)).identities == target.identities


def test_a_request_is_sent_with_the_key_of_its_identity(tmp_path: Path) -> None:
    scenario = load(tmp_path, "")
    (kind,) = compile_requests(scenario, "k", {"acme": "k.acme"})
    assert ("authorization", "Bearer k.acme") in kind.requests[0].headers


def test_explain_lists_probes_with_what_they_find_and_how_often(tmp_path: Path) -> None:
    scenario = load(tmp_path, PROBES)
    told = explain(scenario, make_plan(scenario), lambda _: pytest.fail("there are no faults"))
    assert "  stranger: denied, every 1s, 60 probings" in told
    assert "  fresh: freshness, every 2s, 30 probings, never within 3s counts" in told
    assert "globex must not read what acme wrote" in told
    assert "  audit: audited, every 500ms, 120 probings, in the audit log of gateway" in told
    assert "  wire: encrypted, every 1s, 60 probings, on gateway -> inference" in told


def test_probes_are_shifted_against_each_other(tmp_path: Path) -> None:
    slots = probe_slots(load(tmp_path, PROBES))
    assert len({start for starts in slots.values() for start in starts}) == sum(
        len(starts) for starts in slots.values()
    )
    assert faulted_links(load(tmp_path, PROBES)) == {"gateway -> inference"}


def test_metrics_are_read_only_if_something_asks_for_them(tmp_path: Path) -> None:
    said = TARGET.replace("inference: {run: [serve]}", "inference: {run: [serve], metrics: /m}")
    assert scraped_services(load(tmp_path, "", said)) == ()
    assert [s.name for s in scraped_services(load(tmp_path, PROBES, said))] == ["inference"]
