"""JSON Schemas (draft 7) of the documents that we write, made from their dataclasses.

``python -m survive.judge.schema FOLDER`` writes the committed files. Fields may be added within a
version (docs/stability.md), so unknown ones are legal.
"""

from __future__ import annotations

import inspect
import json
import sys
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from survive.judge.comparison import Comparison
from survive.judge.verdict import Number, Verdict

DRAFT = "http://json-schema.org/draft-07/schema#"
DOCUMENTS = {
    "verdict": (Verdict, "verdict.json"),
    "diff": (Comparison, "survive diff --format json"),
}
_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null"}
_NUMBER = {
    "description": "a number; text where it has none; null where nothing was measured",
    "anyOf": [{"type": "number"}, {"enum": ["inf", "-inf"]}, {"type": "null"}],
}


def document_schema(what: str) -> dict[str, Any]:
    """The schema of one of DOCUMENTS. KeyError: there is none of that name."""
    made_of, title = DOCUMENTS[what]
    definitions: dict[str, Any] = {}
    whole = _object(made_of, definitions)
    return {"$schema": DRAFT, "title": title, **whole, "definitions": definitions}


def _object(made_of: type, definitions: dict[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(made_of)
    names = [field.name for field in fields(made_of)]
    return {
        "description": inspect.cleandoc(made_of.__doc__ or ""),
        "type": "object",
        "properties": {name: _of(hints[name], definitions) for name in names},
        "required": names,
    }


def _of(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of one annotation. TypeError for one that no document of ours has."""
    if hint == Number:
        return _NUMBER
    if hint in _PLAIN:
        return {"type": _PLAIN[hint]}
    if get_origin(hint) in {Union, UnionType}:
        return {"anyOf": [_of(one, definitions) for one in get_args(hint)]}
    if get_origin(hint) is tuple:
        return _array(get_args(hint), definitions)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {"enum": [one.value for one in hint]}
    if isinstance(hint, type) and is_dataclass(hint):
        if hint.__name__ not in definitions:
            definitions[hint.__name__] = {}  # known from here on, should it hold itself
            definitions[hint.__name__] = _object(hint, definitions)
        return {"$ref": f"#/definitions/{hint.__name__}"}
    raise TypeError(f"no schema for {hint!r}")


def _array(items: tuple[Any, ...], definitions: dict[str, Any]) -> dict[str, Any]:
    if len(items) == 2 and items[1] is Ellipsis:
        return {"type": "array", "items": _of(items[0], definitions)}
    fixed = [_of(item, definitions) for item in items]
    return {"type": "array", "items": fixed, "minItems": len(fixed), "maxItems": len(fixed)}


def write(folder: Path) -> None:
    """Write every file."""
    for what in DOCUMENTS:
        text = json.dumps(document_schema(what), indent=2, ensure_ascii=False) + "\n"
        (folder / f"{what}.v1.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
