"""The committed schemas are current, draft 7, and accept what the loader accepts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from survive.catalog import builtin_root
from survive.scenario.schema import file_text, scenario_schema, target_schema
from survive.scenario.tree import plain, read_tree

ROOT = builtin_root()
BOTH = {"scenario.v1.json": scenario_schema, "target.v1.json": target_schema}
SCENARIOS = sorted((ROOT / "scenarios").glob("*.survive.yaml"))
TARGETS = sorted((ROOT / "targets").glob("*.yaml"))


def document(path: Path) -> Any:
    node, wrong = read_tree(path.read_bytes(), path.name)
    assert node is not None and not wrong
    return plain(node)


def validator(schema: dict[str, Any]) -> jsonschema.Draft7Validator:
    return jsonschema.Draft7Validator(schema)


@pytest.mark.parametrize("name", BOTH)
def test_the_committed_file_is_current(name: str) -> None:
    committed = (ROOT / "schema" / name).read_text(encoding="utf-8")
    assert committed == file_text(BOTH[name]()), "run: python -m survive.scenario.schema schema"


@pytest.mark.parametrize("name", BOTH)
def test_it_is_draft_7(name: str) -> None:
    schema = BOTH[name]()
    jsonschema.Draft7Validator.check_schema(schema)
    text = json.dumps(schema)
    assert "prefixItems" not in text and "$defs" not in text


@pytest.mark.parametrize("name", BOTH)
def test_every_field_is_described(name: str) -> None:
    schema = BOTH[name]()
    bare = [key for key, field in fields(schema) if not field.get("description")]
    assert bare == []


def fields(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for model in (schema, *schema["definitions"].values()):
        yield from model.get("properties", {}).items()


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.name)
def test_our_scenarios_pass(path: Path) -> None:
    assert list(validator(scenario_schema()).iter_errors(document(path))) == []


@pytest.mark.parametrize("path", TARGETS, ids=lambda path: path.name)
def test_our_targets_pass(path: Path) -> None:
    assert list(validator(target_schema()).iter_errors(document(path))) == []


def test_free_keys_pass_and_unknown_keys_do_not() -> None:
    target = document(ROOT / "targets" / "reference.yaml")
    target["x-note"] = {"anything": [1]}
    target["services"]["x-common"] = 5
    target["services"]["gateway"]["x-owner"] = "ana"
    assert list(validator(target_schema()).iter_errors(target)) == []
    target["services"]["gateway"]["replica"] = 2
    assert list(validator(target_schema()).iter_errors(target)) != []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("load", "phases", 0, "for"), 3),
        (("load", "phases", 0, "rate"), "400M"),
        (("requests", "chat", "share"), 60),
        (("load", "arrivals"), "random"),
        (("objectives",), {}),
        (("survive",), 2),
    ],
)
def test_it_refuses_what_the_loader_refuses(path: tuple[str | int, ...], value: object) -> None:
    scenario = document(ROOT / "scenarios" / "quickstart.survive.yaml")
    holder = scenario
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = value
    assert list(validator(scenario_schema()).iter_errors(scenario)) != []
