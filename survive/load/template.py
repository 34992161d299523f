"""Request kinds of a scenario, rendered once per data row before the run.

Nothing is rendered while load runs: a lane only picks the finished request of its row. So a
template costs nothing per request, and a bad row is found before the first request is sent.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias
from urllib.parse import quote

from survive.contracts import Json
from survive.errors import Problem, ScenarioError, Where
from survive.load.checks import AnswerCheck
from survive.scenario.lengths import LENGTHS, preset_rows
from survive.scenario.model import Expect, ProbeCall, RequestKind, Retries, Scenario
from survive.scenario.traces import with_lengths
from survive.transport import Headers, Request

MAX_ROWS = 1_000_000
MAX_DATA_BYTES = 256 * 1024 * 1024

_PLACEHOLDER = re.compile(r"\{\{\s*(target|row)\.([A-Za-z_][A-Za-z0-9_-]*)\s*\}\}")
_CANARY = re.compile(r"\{\{\s*canary\s*\}\}")
_ANY_BRACES = re.compile(r"\{\{.*?\}\}")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_FORBIDDEN = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")  # never inside a header value
_UNSAFE_PATH = re.compile(r"[\x00-\x20\x7f]|[^\x00-\x7e]")

Row: TypeAlias = Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class CompiledKind:
    """One request kind, ready to send: one rendered request per data row (one if no data)."""

    name: str
    timeout_us: int
    streamed: bool
    expect_status: frozenset[int]
    stream_complete: bool
    requests: list[Request]
    retries: Retries = field(default_factory=Retries)
    check: AnswerCheck | None = None

    def to_json(self) -> dict[str, Json]:
        """Plain data for the spec file; bodies are text, since only JSON bodies exist."""
        return {
            "name": self.name,
            "timeout_us": self.timeout_us,
            "streamed": self.streamed,
            "expect_status": [*sorted(self.expect_status)],
            "stream_complete": self.stream_complete,
            "retries": asdict(self.retries),
            "check": None if self.check is None else asdict(self.check),
            "requests": [
                [r.method, r.path, [[k, v] for k, v in r.headers], r.body.decode()]
                for r in self.requests
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CompiledKind:
        """The inverse of to_json. Raises KeyError/TypeError/ValueError on damaged data."""
        requests = [
            Request(method, path, tuple((k, v) for k, v in headers), body.encode())
            for method, path, headers, body in data["requests"]
        ]
        if not requests:
            raise ValueError(f"kind {data['name']!r} has no requests")
        return cls(
            name=data["name"],
            timeout_us=data["timeout_us"],
            streamed=data["streamed"],
            expect_status=frozenset(data["expect_status"]),
            stream_complete=data["stream_complete"],
            requests=requests,
            retries=Retries(**data["retries"]),
            check=AnswerCheck.from_json(data["check"]),
        )


def compile_requests(
    scenario: Scenario, bearer: str, identities: Mapping[str, str] = MappingProxyType({})
) -> list[CompiledKind]:
    """Every kind of the scenario in its order, rendered; ``bearer`` "" = no authorization.

    ``identities``: the keys that ``auth: NAME`` may ask for.

    Raises ScenarioError with every problem of every data file and template.
    """
    problems: list[Problem] = []
    keys = {**identities, "bearer": bearer, "none": ""}
    kinds = []
    for kind in scenario.requests.values():
        rows = _rows(scenario.folder, kind, problems)
        requests = [
            request
            for number, row in enumerate(rows, start=1)
            if (request := _render_request(scenario, kind, keys, row, number, problems))
        ]
        kinds.append(
            CompiledKind(
                name=kind.name,
                timeout_us=kind.timeout_us,
                streamed=kind.streamed,
                expect_status=kind.expect.status,
                stream_complete=kind.expect.stream_complete,
                requests=requests,
                retries=scenario.retries,
                check=_check_of(kind.expect),
            )
        )
    if problems:
        raise ScenarioError(problems)
    return kinds


def _check_of(expect: Expect) -> AnswerCheck | None:
    if expect.tokens is None and not expect.json:
        return None
    return AnswerCheck(expect.tokens, expect.json, expect.has)


# ------------------------------------------------------------------------------------ data


def _rows(folder: Path, kind: RequestKind, problems: list[Problem]) -> list[Row]:
    if kind.data is None:
        return [{}]
    if str(kind.data) in LENGTHS:
        return [*preset_rows(str(kind.data))]
    path = kind.data if kind.data.is_absolute() else folder / kind.data
    try:
        if path.stat().st_size > MAX_DATA_BYTES:
            raise ValueError(f"is larger than {MAX_DATA_BYTES >> 20} MiB")
        text = path.read_text(encoding="utf-8-sig")
        rows = _csv_rows(text) if path.suffix == ".csv" else _jsonl_rows(path, text, problems)
        if not rows:
            raise ValueError("has no rows")
        if len(rows) > MAX_ROWS:
            raise ValueError(f"has more than {MAX_ROWS} rows")
    except (OSError, ValueError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        problems.append(Problem(Where(str(path)), f"data of request {kind.name!r}: {why}"))
        return []
    return rows


def _csv_rows(text: str) -> list[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(f"line {reader.line_num} has not as many fields as the header")
        rows.append(with_lengths(row))
    return rows


def _jsonl_rows(path: Path, text: str, problems: list[Problem]) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(Problem(Where(str(path), number, 1), f"not JSON: {error}"))
            continue
        if not isinstance(row, dict):
            problems.append(Problem(Where(str(path), number, 1), "a row must be a JSON object"))
            continue
        rows.append(with_lengths(row))
    return rows


# ------------------------------------------------------------------------------- rendering


@dataclass(frozen=True, slots=True)
class _Values:
    """What placeholders stand for in one rendering."""

    target: Mapping[str, Json]
    row: Row
    canary: str = ""  # "" = no probe: {{ canary }} is then no placeholder

    def value(self, found: re.Match[str]) -> Json:
        table = self.target if found[1] == "target" else self.row
        if found[2] not in table:
            raise ValueError(f"{found[0]} has no value")
        return table[found[2]]

    def text(self, template: str, quoted: bool = False) -> str:
        """A template as text; values percent-encoded if ``quoted``."""
        if self.canary:
            template = _CANARY.sub(self.canary, template)
        rest = _PLACEHOLDER.sub("", template)
        if odd := _ANY_BRACES.search(rest):
            raise ValueError(f"{odd[0]!r} is neither {{{{ target.x }}}} nor {{{{ row.x }}}}")

        def put(found: re.Match[str]) -> str:
            shown = _as_text(self.value(found))
            return quote(shown, safe="") if quoted else shown

        return _PLACEHOLDER.sub(put, template)

    def json(self, template: Json) -> Json:
        """A template with its placeholders filled in; a lone placeholder keeps its type."""
        if isinstance(template, str):
            alone = _PLACEHOLDER.fullmatch(template.strip())
            return self.value(alone) if alone else self.text(template)
        if isinstance(template, Mapping):
            return {key: self.json(value) for key, value in template.items()}
        if isinstance(template, list | tuple):
            return [self.json(value) for value in template]
        return template


def _as_text(value: Json) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _render_request(
    scenario: Scenario,
    kind: RequestKind,
    keys: Mapping[str, str],
    row: Row,
    number: int,
    problems: list[Problem],
) -> Request | None:
    try:
        return _request(kind, _Values(scenario.target.vars, row), _key(kind.auth, keys))
    except (ValueError, UnicodeEncodeError) as error:
        where = Where(str(kind.data), 0, 0) if kind.data else Where(scenario.name)
        problem = Problem(where, f"request {kind.name!r}, row {number}: {error}")
        problems.append(problem)
        return None


def render_call(
    call: ProbeCall, target_vars: Mapping[str, Json], keys: Mapping[str, str], canary: str
) -> Request:
    """One call of a probe. ``keys``: by identity. Raises ValueError if it cannot be sent."""
    return _request(call, _Values(target_vars, {}, canary), _key(call.auth, keys))


def render_text(template: str, target_vars: Mapping[str, Json]) -> str:
    """A text that no request holds, like what no answer may hold. Raises ValueError."""
    return _Values(target_vars, {}).text(template)


def _key(auth: str, keys: Mapping[str, str]) -> str:
    if auth == "none":
        return ""
    if auth not in keys:
        raise ValueError(f"the target has no identity {auth!r}")
    return keys[auth]


def _request(call: RequestKind | ProbeCall, values: _Values, key: str) -> Request:
    path = values.text(call.path, quoted=True)
    if not path.startswith("/") or _UNSAFE_PATH.search(path):
        raise ValueError(f"{path!r} is not a path that can be sent")
    body = b""
    if call.json is not None:
        body = json.dumps(values.json(call.json), ensure_ascii=False, allow_nan=False).encode()
    return Request(call.method.upper(), path, _headers(call, values, key), body)


def _headers(kind: RequestKind | ProbeCall, values: _Values, bearer: str) -> Headers:
    headers = [(name.lower(), values.text(value)) for name, value in kind.headers]
    given = {name for name, _ in headers}
    if kind.json is not None and "content-type" not in given:
        headers.append(("content-type", "application/json"))
    if kind.streamed and "accept" not in given:
        headers.append(("accept", "text/event-stream"))
    if bearer and "authorization" not in given:
        headers.append(("authorization", f"Bearer {bearer}"))
    for name, value in headers:
        if not _TOKEN.fullmatch(name) or name in {"host", "content-length", "transfer-encoding"}:
            raise ValueError(f"header {name!r} cannot be set")
        if _FORBIDDEN.search(value):
            raise ValueError(f"the value of header {name!r} holds a control character")
        value.encode("latin-1")
    return tuple(headers)
