"""Addresses of services that run already: what the files alone show to be wrong."""

from __future__ import annotations

import pytest

from survive.catalog import Catalog
from survive.errors import ScenarioError
from survive.scenario.loader import load_scenario

SCENARIO = """\
survive: 1
name: reached
target:
  driver: external
  entry: web
  services: {{web: {{{web}}}}}
  allow: {{hosts: [localhost], faults: [network, protocol]}}
requests: {{get: {{get: /}}}}
load: {{phases: [{{name: all, rate: 40/s, for: 30s}}]}}
faults:
  cut: {{kind: {kind}, link: load -> web, at: 2s, for: 2s}}
objectives: {{fine: {{metric: success, min: 90%, during: run}}}}
"""
SECURE = "url: 'https://localhost:8443', ca: ca.pem"


def loaded(folder, web=SECURE, kind="network.partition"):
    (folder / "ca.pem").write_text("")
    file = folder / "reached.survive.yaml"
    file.write_text(SCENARIO.format(web=web, kind=kind))
    return load_scenario(file, catalog=Catalog(folder))


def test_an_https_address_and_its_authority(tmp_path):
    web = loaded(tmp_path).target.services["web"]
    assert (web.url, web.ca) == ("https://localhost:8443", "ca.pem")
    assert loaded(tmp_path, "url: 'unix:/run/web.sock'").target.services["web"].ca == ""


@pytest.mark.parametrize(
    ("web", "kind", "wrong"),
    [
        ("url: 'ftp://localhost'", "network.partition", "is not a base address"),
        ("url: 'unix:web.sock'", "network.partition", "is not a base address"),
        ("url: 'http://localhost', ca: ca.pem", "network.partition", "only an https url"),
        ("url: 'https://localhost', ca: no.pem", "network.partition", "there is no file 'no.pem'"),
        (SECURE, "protocol.cut", "load -> web is TLS: no proxy reads"),
    ],
)
def test_what_cannot_be_is_told(tmp_path, web, kind, wrong):
    with pytest.raises(ScenarioError) as caught:
        loaded(tmp_path, web, kind)
    assert any(wrong in problem.message for problem in caught.value.problems)
