"""What the harness knows of its machine."""

from __future__ import annotations

import resource
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from survive.host import machine
from survive.plan.plan import make_plan
from survive.scenario.loader import load_scenario

SCENARIO = Path(__file__).resolve().parents[2] / "scenarios/quickstart.survive.yaml"


def test_a_bare_timer_is_late_by_something() -> None:
    p50, p99 = machine.wake_noise_us(for_s=0.02)
    assert 0 <= p50 <= p99 < 10_000_000


def test_lanes_that_the_machine_cannot_carry_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(make_plan(load_scenario(SCENARIO)), lanes=5_000)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(machine, "local_ports", lambda: 4_000)
    fds, ports = machine.limits_warnings(plan, unix=False)
    assert "5,064 file descriptors" in fds and "4,096" in fds
    assert "4,000 (net.ipv4.ip_local_port_range)" in ports
    assert machine.limits_warnings(plan, unix=True) == [fds]
    assert machine.limits_warnings(replace(plan, lanes=4_000), unix=False) == []


CLOSING = """
survive: 1
name: closing
target:
  driver: external
  entry: web
  services: {{web: {{url: "http://{host}:9"}}}}
  allow: {{hosts: [{host}]}}
requests:
  once: {{share: 25%, get: /, headers: {{connection: close}}}}
  kept: {{get: /}}
load:
  phases: [{{name: flat, rate: 400/s, for: 90s}}, {{name: up, ramp_to: 800/s, for: 30s}}]
objectives: {{answers: {{metric: success, min: 50%, during: run}}}}
"""


@pytest.mark.parametrize(
    ("host", "reuse", "held_s"),
    [("10.9.9.9", "2", 60), ("10.9.9.9", "1", 1), ("127.0.0.1", "2", 1), ("127.0.0.1", "0", 60)],
)
def test_ports_that_closed_connections_can_hold_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str, reuse: str, held_s: int
) -> None:
    (tmp_path / ".git").mkdir()
    file, sysctl = tmp_path / "closing.survive.yaml", tmp_path / "reuse"
    file.write_text(CLOSING.format(host=host))
    sysctl.write_text(reuse)
    monkeypatch.setattr(machine, "_REUSE", sysctl)
    scenario = load_scenario(file)
    plan = make_plan(scenario)
    held = 200 * held_s  # a quarter of the 800/s at the top
    monkeypatch.setattr(machine, "local_ports", lambda: held)
    assert machine.churn_warnings(scenario, plan) == []
    monkeypatch.setattr(machine, "local_ports", lambda: held - 1)
    (said,) = machine.churn_warnings(scenario, plan)
    assert said.startswith("`connection: close` of once makes up to 200 new connections a second;")
    assert f"keeps its local port {held_s} s, which can take {held:,} ports" in said


def test_the_share_of_a_run_in_which_somebody_waited_for_a_core(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pressure = tmp_path / "cpu"
    monkeypatch.setattr(machine, "_PRESSURE", pressure)
    assert machine.Stalls().share() is None  # a kernel without PSI
    pressure.write_text("some avg10=1.00 avg60=1.00 avg300=1.00 total=1000\n")
    stalls = machine.Stalls()
    assert stalls.share() == 0.0
    pressure.write_text(f"some avg10=1.00 avg60=1.00 avg300=1.00 total={sys.maxsize}\n")
    assert stalls.share() == 1.0
