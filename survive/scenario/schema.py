"""JSON Schemas (draft 7) of the two files, for editors and pre-commit hooks.

They accept whatever the loader accepts; the loader says more. ``python -m survive.scenario.schema
FOLDER`` writes the committed files.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from survive.scenario.models import ScenarioModel, TargetFileModel

DRAFT = "http://json-schema.org/draft-07/schema#"


def scenario_schema() -> dict[str, Any]:
    """The schema of ``*.survive.yaml``."""
    return _schema(ScenarioModel, "survive scenario")


def target_schema() -> dict[str, Any]:
    """The schema of ``targets/*.yaml``."""
    return _schema(TargetFileModel, "survive target")


def file_text(schema: dict[str, Any]) -> str:
    """As it is committed."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _schema(model: type[BaseModel], title: str) -> dict[str, Any]:
    raw = model.model_json_schema(by_alias=True, ref_template="#/definitions/{model}")
    definitions = raw.pop("$defs", {})
    schema = _tidy({**raw, "definitions": definitions})
    return {"$schema": DRAFT, **schema, "title": title}


def _tidy(node: Any) -> Any:
    """Drop generated titles and nulls, allow ``x-*`` keys, keep ``$ref`` beside a description."""
    if isinstance(node, list):
        return [_tidy(item) for item in node]
    if not isinstance(node, dict):
        return node
    if isinstance(node.get("default"), dict) and None in node["default"].values():
        node = {key: value for key, value in node.items() if key != "default"}
    if isinstance(node.get("title"), str):
        node = {key: value for key, value in node.items() if key != "title"}
    if node.get("default", ...) is None:
        node = {key: value for key, value in node.items() if key != "default"}
    node = {key: _tidy(value) for key, value in node.items()}
    node = _without_null(node)
    if isinstance(node.get("$ref"), str) and len(node) > 1:
        # Draft 7 ignores everything beside $ref, and so would an editor's hover text.
        node = {"allOf": [{"$ref": node.pop("$ref")}], **node}
    return _with_free_keys(node) if node.get("type") == "object" else node


def _with_free_keys(node: dict[str, Any]) -> dict[str, Any]:
    """``x-*`` keys are free in models and in maps from names to models."""
    patterns = node.pop("patternProperties", {})
    for pattern, below in patterns.items():  # pydantic's way to say: names like this
        node = {**node, "additionalProperties": below, "propertyNames": {"pattern": pattern}}
    below = node.get("additionalProperties")
    if below is False or (isinstance(below, dict) and "$ref" in below):
        node["patternProperties"] = {"^x-": {}}
    return node


def _without_null(node: dict[str, Any]) -> dict[str, Any]:
    """A key that may be left out is not written with an empty value."""
    options = node.get("anyOf")
    if not isinstance(options, list):
        return node
    kept = [option for option in options if option != {"type": "null"}]
    rest = {key: value for key, value in node.items() if key != "anyOf"}
    return {**kept[0], **rest} if len(kept) == 1 else {**rest, "anyOf": kept}


def write(folder: Path) -> None:
    """Write both files."""
    (folder / "scenario.v1.json").write_text(file_text(scenario_schema()), encoding="utf-8")
    (folder / "target.v1.json").write_text(file_text(target_schema()), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
