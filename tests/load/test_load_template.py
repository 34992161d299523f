"""Templates are rendered once a row, before the run, and bad rows are said with their place."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest

from survive.contracts import Json
from survive.errors import ScenarioError
from survive.load.http1 import encode
from survive.load.template import CompiledKind, compile_requests
from survive.scenario.model import Expect, LoadSpec, Phase, RequestKind, Scenario, TargetSpec

CHAT: Json = {
    "model": "{{ target.model }}",
    "stream": True,
    "n": "{{ row.n }}",
    "messages": [{"role": "user", "content": "say: {{ row.prompt }} x{{ row.n }}"}],
}


def scenario(folder: Path, **changes: object) -> Scenario:
    fields: dict[str, object] = {
        "name": "chat", "share": 1.0, "method": "post", "path": "/v1/chat", "json": CHAT,
        "data": Path("rows.jsonl"), "expect": Expect(frozenset({200}), True), "timeout_us": 5,
    }  # fmt: skip
    kind = RequestKind(**(fields | changes))  # type: ignore[arg-type]
    phase = Phase("p", 0, 1, Fraction(1), Fraction(1))
    return Scenario(
        "s", "", 1, TargetSpec("t", "process", "gateway", {}, {}, vars={"model": "demo"}),
        {"chat": kind}, None, LoadSpec("poisson", Fraction(1), 1, 1, (phase,)), {}, {}, {}, folder,
    )  # fmt: skip


def test_values_are_escaped_and_a_lone_placeholder_keeps_its_type(tmp_path: Path) -> None:
    rows = [{"prompt": 'a "quote"\n\\ {{ target.model }}', "n": 3}, {"prompt": "你", "n": [1]}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    (kind,) = compile_requests(scenario(tmp_path), "key")
    first, second = (json.loads(r.body) for r in kind.requests)
    assert first["model"] == "demo"
    assert first["n"] == 3
    # A value is data: placeholders inside it are not looked at.
    assert first["messages"][0]["content"] == 'say: a "quote"\n\\ {{ target.model }} x3'
    assert second["n"] == [1]
    assert second["messages"][0]["content"] == "say: 你 x[1]"
    assert (kind.streamed, kind.stream_complete) == (True, True)
    headers = dict(kind.requests[0].headers)
    assert headers["authorization"] == "Bearer key"
    assert headers["content-type"] == "application/json"


def test_parts_of_a_url_are_percent_encoded_and_csv_is_read(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text('query,x\n"a b&c/d?é",1\n', encoding="utf-8-sig")
    made = scenario(
        tmp_path, method="get", path="/search?q={{ row.query }}&k=1", json=None, data=Path("q.csv")
    )
    (kind,) = compile_requests(made, "")
    assert kind.requests[0].path == "/search?q=a%20b%26c%2Fd%3F%C3%A9&k=1"
    assert "authorization" not in dict(kind.requests[0].headers)
    wire = encode(kind.requests[0], "127.0.0.1:80")
    assert wire.startswith(b"GET /search?q=a%20b%26c%2Fd%3F%C3%A9&k=1 HTTP/1.1\r\nhost: 127")
    assert wire.endswith(b"\r\n\r\n")


def test_spec_file_round_trip(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "é\\ud83d\\ude00", "n": 1}')
    (kind,) = compile_requests(scenario(tmp_path), "key")
    assert CompiledKind.from_json(json.loads(json.dumps(kind.to_json()))) == kind


@pytest.mark.parametrize(
    ("rows", "changes", "said"),
    [
        ("", {}, "has no rows"),
        ('{"prompt": "a"}', {}, "{{ row.n }} has no value"),
        ("[1]\nnope", {}, "a row must be a JSON object"),
        ('{"prompt": "a", "n": NaN}', {}, "Out of range float"),
        ('{"prompt": "\\ud800", "n": 1}', {}, "surrogates not allowed"),
        ('{"prompt": "a", "n": 1}', {"data": Path("none.jsonl")}, "No such file"),
        ('{"prompt": "a", "n": 1}', {"path": "/a b"}, "not a path"),
        ('{"prompt": "a", "n": 1}', {"json": "{{ env.x }}"}, "is neither"),
        ('{"prompt": "a\\nb: c", "n": 1}', {"headers": (("x", "{{ row.prompt }}"),)}, "control"),
        ('{"prompt": "a", "n": 1}', {"headers": (("Host", "x"),)}, "cannot be set"),
    ],
)
def test_what_cannot_be_sent_is_said_before_the_run(
    tmp_path: Path, rows: str, changes: dict[str, object], said: str
) -> None:
    (tmp_path / "rows.jsonl").write_text(rows)
    with pytest.raises(ScenarioError) as caught:
        compile_requests(scenario(tmp_path, **changes), "key")
    assert said in "\n".join(caught.value.lines())


def test_the_key_is_in_no_error_message(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}')
    with pytest.raises(ScenarioError) as caught:
        compile_requests(scenario(tmp_path), "s3cret")
    assert "s3cret" not in "\n".join(caught.value.lines())
