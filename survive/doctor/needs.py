"""What one scenario needs of this host: what its run would ask before anything is begun."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from survive.catalog import Catalog
from survive.chaos.permission import FLAG, permitted
from survive.contracts import Fault, HandleSpec, Needs, check_host
from survive.doctor.findings import Finding, Level, lack_of
from survive.doctor.host import writable
from survive.doctor.kinds import a_container, isolated, refusal, this_process
from survive.errors import ExitCode, RefusedError
from survive.host.affinity import division_of
from survive.host.command import identity_keys, keys_of
from survive.host.driver import lacks
from survive.host.machine import machine_warnings
from survive.plan.plan import make_plan
from survive.scenario.model import FaultPlan, Scenario, TargetSpec
from survive.scenario.settings import parse_settings
from survive.units import UnitError

RUNS = Path("runs")  # where `survive run` writes unless it is told otherwise


def needs_of(scenario: Scenario, catalog: Catalog, env: Mapping[str, str]) -> list[Finding]:
    """A finding for each thing that it needs, those that are here too."""
    return [
        *_target(scenario.target, catalog, env),
        *_keys(scenario, env),
        *_faults(scenario, catalog),
        *_machine(scenario),
        *_place(),
    ]


def _target(target: TargetSpec, catalog: Catalog, env: Mapping[str, str]) -> Iterator[Finding]:
    name = f"target {target.name}"
    driver = catalog.driver(target.driver)
    found = asyncio.run(lacks(driver, target, env))
    for error in found:
        refused = error.exit_code is ExitCode.REFUSED
        yield Finding(name, Level.MISSING if refused else Level.NOTE, error.message, error.hint)
    if not found:
        yield Finding(name, Level.OK, f"driver {target.driver}")


def _keys(scenario: Scenario, env: Mapping[str, str]) -> Iterator[Finding]:
    target = scenario.target

    def ask() -> None:
        key, _ = keys_of(target, scenario.seed, env, virtual=False)
        identity_keys(target, key or "made up", env)

    if lack := lack_of(ask):
        yield Finding("keys", Level.MISSING, lack.why, lack.hint)


def _faults(scenario: Scenario, catalog: Catalog) -> Iterator[Finding]:
    """What each asks of the host, and the permission of them all."""
    for plan in scenario.faults.values():
        fault = catalog.fault(plan.kind)
        yield _fault(plan, fault, _victim(scenario.target, fault))
    lack = lack_of(lambda: permitted(scenario, catalog.fault, flagged=True, virtual=False))
    if lack:
        yield Finding("permission", Level.MISSING, lack.why, lack.hint)
    elif _privileged(scenario, catalog):
        hint = "the target file allows root to be used; the command line has to, too"
        yield Finding("permission", Level.NOTE, f"the run needs {FLAG}", hint)


def _privileged(scenario: Scenario, catalog: Catalog) -> bool:
    kinds = {plan.kind for plan in scenario.faults.values()}
    return bool(scenario.target.isolation) or any(catalog.fault(k).privileges for k in kinds)


def _fault(plan: FaultPlan, fault: Fault, victim: HandleSpec) -> Finding:
    name = f"fault {plan.name}"
    try:
        settings = parse_settings(fault.settings, plan.settings)
        check_host(fault, settings, victim)
    except RefusedError as error:
        lack = refusal(error, victim)
        return Finding(name, Level.MISSING, lack.why, lack.hint)
    except (UnitError, ValueError) as error:
        return Finding(name, Level.MISSING, str(error))
    return Finding(name, Level.OK, f"{plan.kind} on {plan.link or plan.service or 'the target'}")


def _victim(target: TargetSpec, fault: Fault) -> HandleSpec:
    """What the target's driver would show the fault."""
    if target.driver == "compose":
        return a_container()
    if target.driver != "process":
        return HandleSpec(target.driver, target.entry, 0, "127.0.0.1:0")
    here = isolated(this_process()) if target.isolation else this_process()
    return replace(here, lent=bool(target.toxiproxy) and fault.needs is Needs.LINK)


def _machine(scenario: Scenario) -> Iterator[Finding]:
    for warning in machine_warnings(scenario, make_plan(scenario)):
        yield Finding("load", Level.NOTE, warning)
    division = division_of(scenario, 1, 0)
    if division is not None and division.why:
        yield Finding("affinity", Level.NOTE, f"nothing is pinned: {division.why}")


def _place() -> Iterator[Finding]:
    if not writable(RUNS):
        where = RUNS.absolute()
        yield Finding("runs", Level.MISSING, f"{where} cannot be made", "run elsewhere, or --out")
