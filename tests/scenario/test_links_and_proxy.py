"""A fault may be on several links; a target may name a Toxiproxy server. Both survive storing."""

from __future__ import annotations

from pathlib import Path

import pytest

from survive.catalog import Catalog
from survive.errors import ScenarioError
from survive.scenario.loader import dump_scenario, load_scenario, load_stored

SCENARIO = """\
survive: 1
name: cut
target:
  driver: process
  entry: web
  proxy: {toxiproxy: %s}
  services:
    web: {run: [web]}
    model: {run: [model]}
  links:
    web -> model: {env: MODEL}
  allow: {faults: [network]}
requests: {get: {get: /}}
load: {phases: [{name: all, rate: 40/s, for: 30s}]}
faults:
  cut: {kind: network.partition, link: %s, at: 2s, for: 2s}
objectives: {fine: {metric: success, min: 90%%, during: run}}
"""


def loaded(folder: Path, proxy: str, link: str):
    file = folder / "cut.survive.yaml"
    file.write_text(SCENARIO % (proxy, link))
    return load_scenario(file, catalog=Catalog(folder))


def test_several_links_and_a_proxy_of_ones_own(tmp_path):
    scenario = loaded(tmp_path, '"127.0.0.1:8474"', "[web -> model, load -> web]")
    assert scenario.faults["cut"].links == ("web -> model", "load -> web")
    assert scenario.target.toxiproxy == "127.0.0.1:8474"
    stored = tmp_path / "stored"
    stored.mkdir()
    dump_scenario(scenario, stored)
    again = load_stored(stored)
    assert again.faults["cut"].links == scenario.faults["cut"].links
    assert again.target.toxiproxy == "127.0.0.1:8474"


@pytest.mark.parametrize(("proxy", "link", "wrong"), [
    ('"127.0.0.1:1"', "[web -> model, web -> modl]", "unknown link 'web -> modl'"),
    ('"127.0.0.1:1"', "[web -> model, web -> model]", "names a link twice"),
    ('"127.0.0.1:1"', "[]", "names no link"),
    ("nowhere", "web -> model", "is not host:port"),
])  # fmt: skip
def test_mistakes_are_told(tmp_path, proxy, link, wrong):
    with pytest.raises(ScenarioError) as caught:
        loaded(tmp_path, proxy, link)
    assert any(wrong in problem.message for problem in caught.value.problems)


def test_one_link_stays_one(tmp_path):
    scenario = loaded(tmp_path, '"${TOXI}"', "web -> model")
    assert scenario.faults["cut"].link == "web -> model"
    assert scenario.target.toxiproxy == "${TOXI}"
