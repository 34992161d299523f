"""What crosses the agent's pipe comes out as it went in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chaostools import SECOND, held

from survive.chaos.ledger import LedgerError
from survive.chaos.remote import (
    AgentBugError,
    AgentConfig,
    error_from_json,
    error_to_json,
    fault_to_json,
    target_from_json,
    target_to_json,
)
from survive.errors import HarnessError, RefusedError, UsageError
from survive.host.driver import TargetUnhealthyError
from survive.scenario.model import FaultPlan, Health, Link, Service, TargetSpec
from survive.units import Price

SPEC = TargetSpec(
    "reference",
    "process",
    "gateway",
    {
        "gateway": Service(
            "gateway",
            app="gateway.py:make_app",
            health=Health("/healthz", SECOND),
            metrics="/metrics",
            audit_file="a",
            restart_after_us=5,
            ca="ca.pem",
            env={"A": "${B}"},
        ),
        "own": Service("own", run=("prog", "{port}"), replicas=3, standby=1, gpu="simulated"),
    },
    {"gateway -> own": Link("gateway", "own", "UPSTREAMS")},
    {"model": "demo", "deep": [1, {"x": None}]},
    "${KEY}",
    {"acme": "${KEY}.acme"},
    {"own": Price(2.5, "USD", 3600)},
    ("127.0.0.1", "::1"),
    ("node",),
    weaknesses=("no_timeout",),
    folder=Path("/somewhere"),
    isolation="netns",
    allow_privileged=True,
)


def wire(data):
    return json.loads(json.dumps(data))


def test_a_target():
    assert target_from_json(wire(target_to_json(SPEC))) == SPEC


@pytest.mark.parametrize("start", [None, Path("/repo/scenarios")])
def test_a_config(start):
    config = AgentConfig(
        "run", 42, SPEC, frozenset({"b", "a"}), "key", "token", Path("/s"), start, 12.5
    )
    assert AgentConfig.from_json(wire(config.to_json())) == config


def test_a_fault():
    fault = held("network.latency", link="a -> b", settings={"latency": "300ms"})
    assert FaultPlan(**wire(fault_to_json(fault))) == fault


@pytest.mark.parametrize(
    ("error", "comes_out"),
    [
        (RefusedError("no", hint="why"), RefusedError),
        (UsageError("no", hint=""), UsageError),
        (HarnessError("no", hint="x"), HarnessError),
        (LedgerError("no", hint="x"), HarnessError),
    ],
)
def test_expected_errors_keep_words_and_exit_code(error, comes_out):
    copy = error_from_json(wire(error_to_json(error, "")))
    assert type(copy) is comes_out
    assert (copy.message, copy.hint, copy.exit_code) == (error.message, error.hint, error.exit_code)


def test_an_unhealthy_target_keeps_its_last_lines():
    error = TargetUnhealthyError("inference-1", "it exited with 3", ["one", "two"])
    copy = error_from_json(wire(error_to_json(error, "")))
    assert isinstance(copy, TargetUnhealthyError)
    assert copy.lines() == error.lines() and copy.last_lines == ["one", "two"]


def test_a_bug_keeps_its_traceback():
    copy = error_from_json(wire(error_to_json(KeyError("x"), "Traceback ...")))
    assert isinstance(copy, AgentBugError) and "Traceback" in str(copy)
