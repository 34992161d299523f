"""The strict reader: hostile YAML ends in a problem with a place, never in an exception."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from survive.scenario.tree import MAX_BYTES, plain, read_tree, read_value


def problems(text: str | bytes) -> list[str]:
    data = text.encode() if isinstance(text, str) else text
    return [str(problem) for problem in read_tree(data, "f")[1]]


def bomb(levels: int) -> str:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for level in range(levels):
        here, below = chr(98 + level), chr(97 + level)
        lines.append(f"{here}: &{here} [{', '.join([f'*{below}'] * 9)}]")
    return "\n".join(lines)


HOSTILE: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "f:1:1: the file is empty"),
    "only a comment": ("# nothing\n", "the file is empty"),
    "too large": (b"a" * (MAX_BYTES + 1), "larger than 1024 KiB"),
    "not utf-8": (b"a: b\nc: \xff", "f:2:4: not UTF-8: byte 0xff"),
    "nul": ("a: b\n  \x00", "f:2:3: control character U+0000"),
    "line separator": ("a: b\u2028c", "f:1:5: control character U+2028"),
    "python tag": ("a: !!python/object/apply:os.system [x]", "f:1:4: tag !!python/object"),
    "own tag": ("a: !secret b", "f:1:4: tag !secret is not allowed"),
    "tag on a key": ("!!str a: b", "tag !!str is not allowed"),
    "alias bomb": (bomb(9), "too large once its aliases are expanded"),
    "text bomb": (f"a: &a {'x' * 9999}\nb: [{', '.join(['*a'] * 999)}]", "too large once"),
    "alias to itself": ("a: &x [*x]", "f:1:8: alias *x holds itself"),
    "alias to nothing": ("a: *x", "f:1:4: alias *x has no anchor"),
    "deep flow": ("[" * 5000, "f:1:65: nested deeper than 64 levels"),
    "deep block": ("".join(" " * i + "a:\n" for i in range(99)), "nested deeper than 64"),
    "deep by alias": (
        f"a: &a {'[' * 40}{']' * 40}\nb: {'[' * 40}*a{']' * 40}",
        "f:2:44: nested deeper",
    ),
    "twice": ("a: 1\nb: 2\na: 3", "f:3:1: key 'a' is there twice (first on line 1)"),
    "merge": ("a: &a {x: 1}\nb:\n  <<: *a", "f:3:3: merge keys (<<) are not allowed"),
    "two documents": ("a: 1\n---\nb: 2", "f:2:1: a second document"),
    "directive": ("%YAML 1.1\n---\na: 1", "directives are not allowed"),
    "old boolean": ("a: yes", "f:1:4: 'yes' is a boolean in YAML 1.1"),
    "old boolean key": ("on: 1", "f:1:1: key 'on' is a boolean in YAML 1.1"),
    "octal": ("a: 0o17", "read as different numbers"),
    "old octal": ("a: 017", "read as different numbers"),
    "hex": ("a: 0xff", "read as different numbers"),
    "exponent": ("a: 1e3", "read as different numbers"),
    "infinity": ("a: .inf", "read as different numbers"),
    "endless number": ("a: " + "9" * 5000, "a number of 5000 characters"),
    "number key": ("200: a", "f:1:1: key 200 is not text"),
    "null key": ("~: a", "f:1:1: key ~ is not text"),
    "map as key": ("? {a: 1}\n: b", "a list or map as a key"),
    "unquoted template": ("a: {{ row.x }}", "f:1:4: {{ }} without quotes is a map to YAML"),
    "template in a flow map": ("{a: /v?q={{ row.x }}}", "quote the template"),
    "operator": ("max: >= 5", "operators are not written"),
    "tab": ("a:\n\tb: 1", "indent with spaces, not tabs"),
    "open quote": ('a: "b\nc: d\n', "a quote is not closed"),
    "open flow": ("a: [1, 2\nb: 3", "f:2:2: not YAML"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_yaml_has_a_problem_that_says_what_and_where(name: str) -> None:
    text, expected = HOSTILE[name]
    assert any(expected in problem for problem in problems(text)), problems(text)


def test_the_values_are_those_of_the_core_schema() -> None:
    text = 'a: [true, False, null, ~, 12, -3, 1.50, 1:30, 300ms, "yes", "0x1", 2024-01-01, "", -]'
    node, wrong = read_tree(text.replace(", -]", "]").encode(), "f")
    assert not wrong and node is not None
    assert plain(node) == {
        "a": [True, False, None, None, 12, -3, 1.5, "1:30", "300ms", "yes", "0x1", "2024-01-01", ""]
    }


def test_every_key_and_value_keeps_its_place() -> None:
    node, _ = read_tree("é: {b: 1}\nc:\n  - d\n  -   e: f\n".encode(), "f")
    assert node is not None
    second = node.get("c")
    assert second is not None and isinstance(second.value, list)
    assert str(node.key_where("c")) == "f:2:1"
    assert str(second.value[0].where) == "f:3:5"
    assert str(second.value[1].key_where("e")) == "f:4:7"
    first = node.get("é")
    assert first is not None and str(first.key_where("b")) == "f:1:5"


def test_windows_line_ends_and_a_byte_order_mark_are_harmless() -> None:
    node, wrong = read_tree(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n", "f")
    assert not wrong and node is not None and plain(node) == {"a": 1, "b": 2}
    assert str(node.key_where("b")) == "f:2:1"


def test_an_anchor_may_be_used_again() -> None:
    node, wrong = read_tree(b"x-a: &a {b: 1}\nc: *a\nd: *a\n", "f")
    assert not wrong and node is not None
    assert plain(node) == {"x-a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1}}


def test_a_value_of_the_command_line_is_read_by_the_same_rules() -> None:
    node, wrong = read_value("[no_timeout]", "--set x")
    assert not wrong and node is not None and plain(node) == ["no_timeout"]
    assert str(read_value("yes", "--set x")[1][0]).startswith("--set x: 'yes' is a boolean")
    node, wrong = read_value("", "--set x")
    assert node is not None and node.value is None and not wrong


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    node, wrong = read_tree(data, "f")
    assert node is not None or wrong


@settings(max_examples=300)
@given(st.text(alphabet="ab: -[]{},&*!|>\"'#%@`\n\t<?~01.\x00é", max_size=60))
def test_any_yaml_like_text_is_read_or_refused(text: str) -> None:
    node, wrong = read_tree(text.encode(), "f")
    assert node is not None or wrong
    for problem in wrong:
        assert "\n" not in str(problem)
