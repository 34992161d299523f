"""What needs root is refused unless the target file and the command line both say yes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from chaostools import config, tiny_target
from click.testing import CliRunner

from survive.catalog import Catalog
from survive.chaos.permission import permitted
from survive.chaos.remote import AgentConfig
from survive.cli import cli
from survive.errors import RefusedError
from survive.scenario.loader import load_scenario

FAULT = '''
from dataclasses import dataclass
from survive.contracts import Grade, Needs

@dataclass(frozen=True, slots=True)
class Nothing:
    """None."""

class Rooted:
    kind = "node.rooted"
    held = True
    grade = Grade.REAL
    layer = "node"
    needs = Needs.REPLICA
    privileges = "root (CAP_EVERYTHING)"
    keeps_down = False
    certifies = "-"
    does_not_certify = "-"
    settings = Nothing

    def preflight(self, settings, victims):
        raise AssertionError("asked what to hit, without permission")
'''

SCENARIO = """
survive: 1
name: rooted
target:
  driver: process
  {isolation}
  entry: web
  services: {{web: {{run: ["false"]}}}}
  allow: {{faults: [node], privileged: {allowed}}}
requests: {{page: {{get: /, timeout: 1s}}}}
load: {{phases: [{{name: flat, rate: 10/s, for: 9s}}]}}
faults: {{one: {{kind: {kind}, service: web, at: 1s, for: 1s}}}}
objectives: {{answers: {{metric: success, min: 95%, during: run}}}}
"""


@pytest.fixture
def scenario(tmp_path):
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "rooted.py").write_text(FAULT)

    def write(*, allowed=True, isolation="", kind="node.rooted"):
        file = tmp_path / "rooted.survive.yaml"
        text = SCENARIO.format(allowed=str(allowed).lower(), isolation=isolation, kind=kind)
        file.write_text(text)
        return file

    return write


def asked(file, *, flagged, virtual=False):
    catalog = Catalog(file)
    loaded = load_scenario(file, target=None, sets=(), profile=None, catalog=catalog)
    return permitted(loaded, catalog.fault, flagged=flagged, virtual=virtual)


@pytest.mark.parametrize("virtual", [False, True])
def test_a_privileged_fault_needs_both(scenario, virtual):
    for allowed in (False, True):
        for flagged in (False, True):
            file = scenario(allowed=allowed)
            if allowed and flagged:
                assert asked(file, flagged=True, virtual=virtual)
                continue
            with pytest.raises(RefusedError) as error:
                asked(file, flagged=flagged, virtual=virtual)
            said = "\n".join(error.value.lines())
            assert "root (CAP_EVERYTHING)" in said and "'one' (node.rooted)" in said
            assert ("`privileged: true`" in said) is not allowed
            assert ("--allow-privileged" in said) is not flagged


def test_namespaces_need_both_where_they_are_made(scenario):
    file = scenario(isolation="isolation: netns", kind="node.pause")
    assert asked(file, flagged=True)
    assert not asked(file, flagged=False, virtual=True)
    with pytest.raises(RefusedError, match="isolation 'netns'"):
        asked(file, flagged=False)


def test_without_privileged_faults_nobody_asks_for_the_flag(scenario):
    assert not asked(scenario(allowed=False, kind="node.pause"), flagged=False)
    assert not asked(scenario(allowed=False, kind="node.pause"), flagged=True)


def test_only_the_process_driver_isolates(scenario):
    file = scenario(isolation="isolation: netns", kind="node.pause")
    file.write_text(file.read_text().replace("driver: process", "driver: external"))
    result = CliRunner().invoke(cli, ["validate", str(file)])
    assert "driver external cannot isolate" in "\n".join(result.exception.lines())


def test_the_command_refuses_with_6_and_makes_nothing(scenario, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "survive", "run", str(scenario(allowed=False))],
        cwd=tmp_path,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 6, done.stderr
    assert "--allow-privileged" in done.stderr and "`privileged: true`" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_what_the_agent_is_told_crosses_the_pipe(tmp_path):
    spec = replace(tiny_target(tmp_path, "t"), isolation="netns", allow_privileged=True)
    told = config(tmp_path, spec, "run-1")
    assert not told.privileged
    for sent in (told, replace(told, privileged=True)):
        assert AgentConfig.from_json(sent.to_json()) == sent
