"""Data files and templates: whether every row has what the requests ask of it."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from survive.catalog import nearest
from survive.errors import Problem, Where
from survive.scenario.traces import with_lengths

MAX_BYTES = 256 << 20  # as the load process reads it whole
SUFFIXES = (".jsonl", ".ndjson", ".csv")

_VARIABLE = re.compile(r"\s*(row|target)\.([A-Za-z_][A-Za-z0-9_-]*)\s*")
_BRACES = re.compile(r"\{\{(.*?)(\}\}|$)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Variable:
    """One ``{{ source.name }}``; ``source`` is "" if it is not of that form."""

    text: str
    source: str = ""
    name: str = ""


def variables(text: str) -> Iterator[Variable]:
    """Every template in a text, bad ones too."""
    for found in _BRACES.finditer(text):
        inner = _VARIABLE.fullmatch(found[1]) if found[2] else None
        yield Variable(found[0][:60], inner[1], inner[2]) if inner else Variable(found[0][:60])


def data_problem(path: Path, fields: set[str]) -> Problem | None:
    """The first thing that is wrong with a data file; ``fields`` must be in every row."""
    where = Where(str(path))
    if path.suffix not in SUFFIXES:
        return Problem(where, "is neither .jsonl nor .csv", "one JSON object a line, or CSV")
    try:
        if not path.is_file():
            return Problem(where, "there is no such file", "data files stand beside the scenario")
        if path.stat().st_size > MAX_BYTES:
            return Problem(where, f"is larger than {MAX_BYTES >> 20} MiB")
        rows = _csv_rows(path) if path.suffix == ".csv" else _json_rows(path)
        return _rows_problem(where, rows, fields)
    except UnicodeDecodeError:
        return Problem(where, "is not UTF-8 text")
    except csv.Error as error:
        return Problem(where, f"is not CSV: {error}")
    except OSError as error:
        return Problem(where, f"cannot be read: {error.strerror or error}")


def _rows_problem(file: Where, rows: Iterator[tuple[int, Any]], fields: set[str]) -> Problem | None:
    empty = True
    for line, row in rows:
        empty = False
        where = Where(file.file, line, 1)
        if isinstance(row, _Bad):
            return Problem(where, row.why)
        for name in sorted(fields):
            if name not in row:
                return Problem(where, f"the row has no {name!r}", nearest(name, [*row]))
    return Problem(file, "holds no rows", "at least one is needed") if empty else None


@dataclass(frozen=True, slots=True)
class _Bad:
    why: str


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, _Bad(f"not JSON: {error}"[:120])
                return
            yield (
                number,
                with_lengths(row) if isinstance(row, dict) else _Bad("the row is not an object"),
            )


def _csv_rows(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        for row in reader:
            whole = None not in row and None not in row.values()
            yield (
                reader.line_num,
                with_lengths(row) if whole else _Bad("the row and the header differ in length"),
            )
