"""Who may import whom (ARCHITECTURE.md), read from the syntax trees."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONTRACTS = {
    "survive.address",
    "survive.errors",
    "survive.units",
    "survive.clock",
    "survive.transport",
    "survive.contracts",
    "survive.catalog",
}

# A folder may import itself, these, and nothing else of survive.
ALLOWED = {
    "survive/scenario": CONTRACTS | {"survive.plan.plan"},  # pure: do the windows fit?
    "survive/plan": CONTRACTS | {"survive.scenario"},
    "survive/record": CONTRACTS | {"survive.plan", "survive.scenario"},
    "survive/judge": CONTRACTS | {"survive.plan", "survive.record", "survive.scenario"},
    "survive/load": CONTRACTS | {"survive.plan", "survive.record", "survive.scenario"},
    "survive/chaos": CONTRACTS
    | {"survive.plan", "survive.scenario", "survive.host.driver", "survive.host.sockets"}
    | {"survive.tls"},
    "survive/probe": CONTRACTS
    | {"survive.plan", "survive.scenario", "survive.load.template", "survive.host.sockets"}
    | {"survive.chaos.handles", "survive.tls"},
    "survive/chaostoolkit": CONTRACTS
    | {"survive.chaos", "survive.host.sockets", "survive.scenario"},
    "faults": CONTRACTS,
    "reporters": CONTRACTS | {"survive.record", "survive.judge", "survive.plan", "survive.output"},
    "targets/reference": CONTRACTS,
}
# Drivers are the host's hands: they may use its transports, handles and process tools.
ALLOWED["targets"] = CONTRACTS | {
    "survive.host",
    "survive.chaos",
    "survive.scenario",
    "survive.tls",
}

HEAVY = {"locust", "gevent"}
PYDANTIC_AT = "survive/scenario"


def imports(path):
    """(module, is it for types only or late) of every absolute import in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def files(folder):
    nested = {f for f in ALLOWED if f != folder and f.startswith(folder + "/")}
    for path in sorted((ROOT / folder).rglob("*.py")):
        relative = path.relative_to(ROOT).as_posix()
        if not any(relative.startswith(inner + "/") for inner in nested):
            yield path


def within(module, allowed):
    return any(module == name or module.startswith(name + ".") for name in allowed)


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_a_folder_imports_only_what_it_may(folder):
    own = folder.replace("/", ".")
    bad = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files(folder)
        for module in imports(path)
        if within(module, {"survive", "faults", "targets", "reporters"})
        and module != "survive"
        and not within(module, ALLOWED[folder] | {own})
    ]
    assert bad == []


def test_survive_imports_nothing_from_the_folders_that_teams_extend():
    bad = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in (ROOT / "survive").rglob("*.py")
        for module in imports(path)
        if within(module, {"faults", "targets", "reporters", "scenarios", "survive_ext"})
    ]
    assert bad == []


def test_locust_and_gevent_live_in_the_load_process_only():
    allowed = {
        f"survive/load/{name}.py"
        for name in ("process", "lanes", "locust_host", "fabric", "worker", "journeys")
    }
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in ("survive", "faults", "targets", "reporters")
        for path in (ROOT / folder).rglob("*.py")
        for module in imports(path)
        if within(module, HEAVY)
    }
    assert found <= allowed
    assert "survive/load/process.py" in found


def test_pydantic_lives_where_yaml_enters():
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in ("survive", "faults", "targets", "reporters")
        for path in (ROOT / folder).rglob("*.py")
        for module in imports(path)
        if within(module, {"pydantic"})
    }
    assert found
    assert all(name.startswith(PYDANTIC_AT) for name in found)


CLOCK_CALLS = {
    ("time", "time"),
    ("time", "sleep"),
    ("datetime", "now"),
    ("random", "random"),
    ("asyncio", "sleep"),
    ("time", "monotonic"),
    ("os", "urandom"),
}


@pytest.mark.parametrize(
    "folder",
    ["survive/judge", "survive/plan", "survive/record", "faults", "targets/reference", "reporters"],
)
def test_time_and_chance_come_from_the_clock_and_the_seed(folder):
    bad = []
    for path in files(folder):
        if path.parent.name == "proxy":  # a process of its own, in real time only
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and (node.value.id, node.attr) in CLOCK_CALLS
            ):
                bad.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.value.id}.{node.attr}")
    assert bad == []
