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
