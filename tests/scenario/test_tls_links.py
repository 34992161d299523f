"""`tls: true` on a link: what the files alone show to be impossible."""

from __future__ import annotations

import pytest

from survive.catalog import Catalog
from survive.errors import ScenarioError
from survive.scenario.loader import dump_scenario, load_scenario, load_stored

SCENARIO = """\
survive: 1
name: secure
target:
  driver: {driver}
  entry: web
  services:
    web: {{run: [web]}}
    feed: {{run: [feed]}}
    store: {{run: [store]}}
  links:
    web -> store: {{env: STORE, tls: true}}
    feed -> store: {{env: STORE, tls: {feed}}}
    feed -> web: {{env: WEB, tls: {web}}}
  allow: {{faults: [network, protocol]}}
requests: {{get: {{get: /}}}}
load: {{phases: [{{name: all, rate: 40/s, for: 30s}}]}}
faults:
  cut: {{kind: {kind}, link: web -> store, at: 2s, for: 2s}}
objectives: {{fine: {{metric: success, min: 90%, during: run}}}}
"""
SOUND = {"driver": "process", "feed": "true", "web": "false", "kind": "network.partition"}


def loaded(folder, **changed):
    file = folder / "secure.survive.yaml"
    file.write_text(SCENARIO.format(**SOUND | changed))
    return load_scenario(file, catalog=Catalog(folder))


def test_a_tls_link_is_kept_by_a_stored_run(tmp_path):
    scenario = loaded(tmp_path)
    stored = tmp_path / "stored"
    stored.mkdir()
    dump_scenario(scenario, stored)
    for target in (scenario.target, load_stored(stored).target):
        assert [link.tls for link in target.links.values()] == [True, True, False]


@pytest.mark.parametrize(
    ("changed", "wrong"),
    [
        ({"feed": "false"}, "store speaks TLS only"),
        ({"web": "true"}, "the entry is called by the load"),
        ({"kind": "protocol.cut"}, "web -> store is TLS: no proxy reads"),
        ({"kind": "network.slow_close"}, "web -> store is TLS: its peers tell each other"),
    ],
)
def test_what_cannot_be_is_told(tmp_path, changed, wrong):
    with pytest.raises(ScenarioError) as caught:
        loaded(tmp_path, **changed)
    assert any(wrong in problem.message for problem in caught.value.problems)
