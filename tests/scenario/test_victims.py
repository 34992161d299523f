"""Whom a fault hits: `count:`, or `share:` of those that serve; and whether it can be proven."""

from __future__ import annotations

import json

import pytest

from survive.catalog import Catalog
from survive.errors import ScenarioError
from survive.judge.explain import explain
from survive.plan.plan import make_plan
from survive.scenario.loader import dump_scenario, load_scenario, load_stored

SCENARIO = """\
survive: 1
name: some
target:
  driver: process
  entry: web
  services:
    web: {{run: [web], replicas: {replicas}{service}}}
    store: {{run: [store]}}
  links: {{web -> store: {{env: STORE}}}}
  allow: {{faults: [network, node, protocol, dependency]}}
requests: {{get: {{get: /}}}}
load: {{phases: [{{name: all, rate: 40/s, for: 30s}}]}}
faults:
  some: {{kind: {kind}, at: 2s, {fault}}}
objectives: {{fine: {{metric: success, min: 90%, during: run}}}}
"""


def loaded(folder, fault, *, kind="node.pause", replicas=4, service=""):
    file = folder / "some.survive.yaml"
    file.write_text(SCENARIO.format(kind=kind, fault=fault, replicas=replicas, service=service))
    return load_scenario(file, catalog=Catalog(folder))


def problems(folder, fault, **more):
    with pytest.raises(ScenarioError) as caught:
        loaded(folder, fault, **more)
    return [(problem.message, problem.hint) for problem in caught.value.problems]


@pytest.mark.parametrize(("share", "replicas", "count"), [
    ("50%", 4, 2), ("50%", 3, 1), ("99%", 3, 2), ("100%", 3, 3), ("1%", 3, 1), ("34%", 1, 1),
    ("29%", 100, 29),  # 0.29 × 100 is 28.999999999999996 in binary
    ("33.4%", 3, 1), ("66.7%", 3, 2),
])  # fmt: skip
def test_a_share_is_rounded_down_and_hits_one_at_least(tmp_path, share, replicas, count):
    scenario = loaded(tmp_path, f"service: web, for: 2s, share: {share}", replicas=replicas)
    assert scenario.faults["some"].count == count
    assert f"hits {count} of web;" in explain(scenario, make_plan(scenario), Catalog().fault)
    dump_scenario(scenario, tmp_path)
    assert load_stored(tmp_path).faults["some"].count == count


def test_spares_that_sleep_are_no_part_of_the_whole(tmp_path):
    scenario = loaded(tmp_path, "service: web, for: 2s, share: 50%", service=", standby: 1")
    assert scenario.faults["some"].count == 1  # of three that serve


def test_each_repeat_hits_as_many(tmp_path):
    scenario = loaded(tmp_path, "service: web, for: 2s, share: 50%, every: 9s, times: 3")
    assert [fault.count for fault in scenario.faults.values()] == [2, 2, 2]


@pytest.mark.parametrize(("kind", "fault", "said", "hint"), [
    ("node.pause", "service: web, for: 2s, share: 50%, count: 2", "count and share say the same",
     "keep one"),
    ("node.pause", "service: web, for: 2s, share: 0%", "hits nobody", "write more"),
    ("node.pause", "service: web, for: 2s, share: 120%", "120%", ""),
    ("node.pause", "service: web, for: 2s, share: 0.5", "0.5", ""),
    ("node.pause", "service: wbe, for: 2s, share: 50%", "unknown service 'wbe'", ""),
    ("network.down", "link: web -> store, for: 2s, share: 50%", "hit as a whole", "remove the key"),
    ("protocol.cut", "link: web -> store, for: 2s, share: 50%", "hit as a whole",
     "a share of the calls is `with: {share: ...}`"),
    ("node.rolling_restart", "service: web, share: 50%", "hits every replica", "remove the key"),
    ("node.rolling_restart", "service: web, count: 2", "hits every replica", "remove the key"),
])  # fmt: skip
def test_what_means_nothing_is_told(tmp_path, kind, fault, said, hint):
    found = problems(tmp_path, fault, kind=kind)
    assert len(found) == 1 and said in found[0][0] and hint in found[0][1], json.dumps(found)


@pytest.mark.parametrize(("hold", "latency", "least"), [
    ("4s", "8s", "5s"), ("2s", "3s", "2.5s"), ("2500ms", "3s", ""), ("200ms", "1s", ""),
])  # fmt: skip
def test_a_fault_that_ends_before_the_first_look_at_it_is_told(tmp_path, hold, latency, least):
    fault = f"link: web -> store, for: {hold}, with: {{latency: {latency}}}"
    if not least:
        assert loaded(tmp_path, fault, kind="network.latency").faults
        return
    [(said, hint)] = problems(tmp_path, fault, kind="network.latency")
    assert said.startswith("one look at this network.latency takes")
    assert hint == f"hold it for {least} or longer"


def test_a_roll_is_told_to_hit_all(tmp_path):
    scenario = loaded(tmp_path, "service: web", kind="node.rolling_restart")
    assert "hits all of web;" in explain(scenario, make_plan(scenario), Catalog().fault)
