"""The scenarios of lost and restarted nodes: the healthy stack survives, every fault proven."""

from __future__ import annotations

import json

import pytest

from survive.catalog import builtin_root
from survive.errors import ExitCode
from survive.host.command import run_scenario


def played(name, out, *, sets=()):
    file = builtin_root() / "scenarios" / f"{name}.survive.yaml"
    code = run_scenario(
        file, target=None, sets=list(sets), profile=None, out=out, form="json", virtual=True
    )
    return code, json.loads(next((out / name).glob("2*/verdict.json")).read_text())


@pytest.mark.parametrize(("name", "kinds"), [
    ("node-loss", ["node.kill", "node.pause", "node.down", "node.kill"]),
    ("rolling-restart", ["network.down", "node.rolling_restart"]),
])  # fmt: skip
def test_the_healthy_stack_survives(name, kinds, tmp_path):
    code, verdict = played(name, tmp_path)
    assert code == ExitCode.SURVIVED, verdict["reasons"]
    assert [fault["kind"] for fault in verdict["faults"]] == kinds
    # A roll begins with its first restart: the later ones are not late.
    assert all(abs(f["injected_at_s"] - f["planned_at_s"]) < 0.25 for f in verdict["faults"])
    assert {fault["proof"] for fault in verdict["faults"]} == {"proven"}


@pytest.mark.parametrize("name", ["rolling-restart"])
def test_a_gateway_that_checks_nobody_does_not(name, tmp_path):
    code, verdict = played(name, tmp_path, sets=["target.weaknesses=[no_health_checks]"])
    assert code == ExitCode.FAILED, verdict["reasons"]
