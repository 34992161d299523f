"""A strict reader for the YAML that people check in: every key and value keeps its place.

It works on PyYAML's event stream with a stack of its own, so depth and size are bounded before
anything is built. The values are those of the YAML 1.2 core schema, less whatever two readers
could take for two things: YAML 1.1 booleans, octal, hex and exponents are errors, not guesses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import yaml

from survive.contracts import Json
from survive.errors import Problem, Where

MAX_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_NODES = 100_000  # after aliases are expanded
MAX_TEXT = 4 << 20  # characters of all scalars, after aliases are expanded
MAX_NUMBER = 30  # characters of a number

Path: TypeAlias = tuple[str | int, ...]
Scalar: TypeAlias = "str | int | float | bool | None"

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "True", "TRUE"})
_FALSE = frozenset({"false", "False", "FALSE"})
_OLD_BOOLEANS = frozenset(
    form
    for word in ("yes", "no", "on", "off", "y", "n")
    for form in (word, word.capitalize(), word.upper())
)
_INT = re.compile(r"-?(0|[1-9][0-9]*)")
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)\.[0-9]+")
# What YAML 1.1 or 1.2 readers would take for a number and this grammar does not write.
_ODD_NUMBER = re.compile(
    r"[-+]?(0[0-9]+|0x[0-9a-fA-F]+|0o[0-7]+|0b[01]+|[0-9]*\.?[0-9]+\.?[eE][-+]?[0-9]+|\.[0-9]+"
    r"|[0-9]+\.)|\+[0-9.]+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
# Control characters, the line breaks that only YAML 1.1 knows, and what is no character at all.
_BINARY = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]"
)
_OPERATOR = re.compile(r"(^|[:\[{,]\s+)(>=?|<=?|==?|!=)\s*[0-9]")


@dataclass(slots=True, eq=False)
class Node:
    """One value and where it stands. ``value`` is a scalar, a list of nodes or a map.

    ``size`` counts nodes and ``text`` characters, of the expanded subtree; ``height`` levels.
    """

    value: Scalar | list[Node] | dict[str, Entry]
    where: Where
    size: int = 1
    text: int = 0
    height: int = 1

    def get(self, key: str) -> Node | None:
        """The value under a key, or None if this is no map or has no such key."""
        entry = self.value.get(key) if isinstance(self.value, dict) else None
        return entry.node if entry else None

    def key_where(self, key: str) -> Where:
        """Where a key stands; the map itself if it is absent."""
        entry = self.value.get(key) if isinstance(self.value, dict) else None
        return entry.where if entry else self.where


@dataclass(slots=True)
class Entry:
    """One key of a map: where the key stands, and its value."""

    where: Where
    node: Node


def at(node: Node, *path: str | int) -> Node:
    """The deepest node that exists along a path."""
    for step in path:
        following = step_into(node, step)
        if following is None:
            break
        node = following
    return node


def step_into(node: Node, step: str | int) -> Node | None:
    """The value under a key or index; None if there is none."""
    if isinstance(step, str):
        return node.get(step)
    if isinstance(node.value, list) and 0 <= step < len(node.value):
        return node.value[step]
    return None


def plain(node: Node) -> Any:
    """The value as plain dicts, lists and scalars. Depth is bounded by the reader."""
    if isinstance(node.value, dict):
        return {key: plain(entry.node) for key, entry in node.value.items()}
    if isinstance(node.value, list):
        return [plain(item) for item in node.value]
    return node.value


def unshared(node: Node) -> Node:
    """A copy in which aliases are copies too, so that one use can change without the others."""
    if isinstance(node.value, dict):
        entries = {k: Entry(e.where, unshared(e.node)) for k, e in node.value.items()}
        return Node(entries, node.where)
    if isinstance(node.value, list):
        return Node([unshared(item) for item in node.value], node.where)
    return Node(node.value, node.where)


def graft(value: Json | Mapping[str, Any], where: Where) -> Node:
    """A tree of plain data, all of it at one place."""
    if isinstance(value, Mapping):
        return Node({str(k): Entry(where, graft(v, where)) for k, v in value.items()}, where)
    if isinstance(value, list):
        return Node([graft(item, where) for item in value], where)
    return Node(value, where)


def strings(node: Node, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Every string value below a node, with its path from there."""
    if isinstance(node.value, str):
        yield path, node.value
    elif isinstance(node.value, dict):
        for key, entry in node.value.items():
            yield from strings(entry.node, (*path, key))
    elif isinstance(node.value, list):
        for index, item in enumerate(node.value):
            yield from strings(item, (*path, index))


def read_scalar(text: str) -> tuple[Scalar, str]:
    """The value of an unquoted scalar, and what is wrong with it ("" = nothing)."""
    if text in _NULL:
        return None, ""
    if text in _TRUE or text in _FALSE:
        return text in _TRUE, ""
    if text in _OLD_BOOLEANS:
        return text, f"{text!r} is a boolean in YAML 1.1 and text in YAML 1.2"
    if _INT.fullmatch(text) and len(text) <= MAX_NUMBER:
        return int(text), ""
    if _DECIMAL.fullmatch(text) and len(text) <= MAX_NUMBER:
        return float(text), ""
    if _INT.fullmatch(text) or _DECIMAL.fullmatch(text):
        return text, f"a number of {len(text)} characters"
    if _ODD_NUMBER.fullmatch(text):
        return text, f"{text!r} is read as different numbers by different tools"
    return text, ""


def _hint_for(text: str) -> str:
    if text in _OLD_BOOLEANS:
        truth = text.lower() in {"yes", "on", "y"}
        return f'write {"true" if truth else "false"}, or "{text}" in quotes for text'
    return "write a plain decimal, or put it in quotes if it is text"


class _StopReading(Exception):  # noqa: N818 - control flow inside this file only
    """Nothing after this can be trusted; the problem is already noted."""


@dataclass(slots=True)
class _Frame:
    """A list or map that is still open."""

    node: Node
    anchor: str | None
    flow: bool
    key: tuple[str, Where] | None = None


class _Reader:
    """Builds the tree of one document from events."""

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self.lines = text.split("\n")
        self.problems: list[Problem] = []
        self.stack: list[_Frame] = []
        self.anchors: dict[str, Node] = {}
        self.root: Node | None = None
        self.nodes = 0
        self.characters = 0
        self.documents = 0

    def problem(self, where: Where, message: str, hint: str = "") -> None:
        self.problems.append(Problem(where, message, hint))

    def stop(self, where: Where, message: str, hint: str = "") -> None:
        self.problem(where, message, hint)
        raise _StopReading

    def where(self, mark: Any) -> Where:
        return Where(self.file, mark.line + 1, mark.column + 1)

    # ------------------------------------------------------------------------ events

    def feed(self, event: Any) -> None:
        where = self.where(event.start_mark)
        match event:
            case yaml.DocumentStartEvent():
                self.documents += 1
                if self.documents > 1:
                    self.stop(where, "a second document", "one file holds one document: remove ---")
                if event.tags or event.version:
                    self.problem(where, "YAML directives are not allowed", "remove the % line")
            case yaml.ScalarEvent():
                self.scalar(event, where)
            case yaml.AliasEvent():
                self.alias(str(event.anchor), where)
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                self.open(event, where)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                self.close()

    def scalar(self, event: Any, where: Where) -> None:
        tagged = self.refuse_tag(event, where)
        text: str = event.value
        quoted = not event.implicit[0] or tagged
        if self.awaits_key():
            self.take_key(text, where, quoted)
            return
        value: Scalar = text
        if not quoted:
            value, wrong = read_scalar(text)
            if wrong:
                self.problem(where, wrong, _hint_for(text))
        self.add(Node(value, where, text=len(text)), event.anchor)

    def open(self, event: Any, where: Where) -> None:
        self.refuse_tag(event, where)
        if self.awaits_key():
            self.refuse_key(event, where)
        if len(self.stack) >= MAX_DEPTH:
            self.stop(where, f"nested deeper than {MAX_DEPTH} levels")
        mapping = isinstance(event, yaml.MappingStartEvent)
        node = Node({} if mapping else [], where)
        self.stack.append(_Frame(node, event.anchor, bool(event.flow_style)))

    def close(self) -> None:
        frame = self.stack.pop()
        self.add(frame.node, frame.anchor)

    def alias(self, anchor: str, where: Where) -> None:
        if self.awaits_key():
            self.stop(where, "an alias as a key", "write the key out")
        node = self.anchors.get(anchor)
        if node is None:
            open_ = any(frame.anchor == anchor for frame in self.stack)
            self.stop(where, f"alias *{anchor} " + ("holds itself" if open_ else "has no anchor"))
            return
        if len(self.stack) + node.height > MAX_DEPTH:
            self.stop(where, f"nested deeper than {MAX_DEPTH} levels")
        self.count(node.size, node.text, where)
        self.attach(node)

    # ------------------------------------------------------------------------- nodes

    def add(self, node: Node, anchor: str | None) -> None:
        """A finished node joins its parent; containers were counted by their parts."""
        leaf = not isinstance(node.value, dict | list)
        self.count(1, node.text if leaf else 0, node.where)
        if anchor is not None:
            self.anchors[anchor] = node
        self.attach(node)

    def count(self, nodes: int, characters: int, where: Where) -> None:
        self.nodes += nodes
        self.characters += characters
        if self.nodes > MAX_NODES or self.characters > MAX_TEXT:
            self.stop(
                where,
                "too large once its aliases are expanded",
                f"at most {MAX_NODES} values and {MAX_TEXT >> 20} MiB of text",
            )

    def attach(self, node: Node) -> None:
        if not self.stack:
            self.root = node
            return
        frame = self.stack[-1]
        parent = frame.node
        parent.size += node.size
        parent.text += node.text
        parent.height = max(parent.height, node.height + 1)
        if isinstance(parent.value, list):
            parent.value.append(node)
        elif isinstance(parent.value, dict) and frame.key is not None:
            key, where = frame.key
            frame.key = None
            if key in parent.value:
                first = parent.value[key].where
                self.problem(where, f"key {key!r} is there twice", f"first on line {first.line}")
            elif key != "<<":
                parent.value[key] = Entry(where, node)

    # -------------------------------------------------------------------------- keys

    def awaits_key(self) -> bool:
        if not self.stack:
            return False
        frame = self.stack[-1]
        return isinstance(frame.node.value, dict) and frame.key is None

    def take_key(self, text: str, where: Where, quoted: bool) -> None:
        self.count(1, len(text), where)
        self.stack[-1].node.size += 1
        self.stack[-1].node.text += len(text)
        if not quoted:
            self.check_key(text, where)
        self.stack[-1].key = (text, where)

    def check_key(self, text: str, where: Where) -> None:
        if text == "<<":
            self.problem(
                where,
                "merge keys (<<) are not allowed",
                "write the keys out, or give the whole map an &anchor and use *alias",
            )
            return
        value, wrong = read_scalar(text)
        if wrong:
            self.problem(
                where,
                f"key {wrong}" if wrong.startswith("'") else wrong,
                f'put the key in quotes: "{text}"',
            )
        elif not isinstance(value, str):
            self.problem(
                where, f"key {text or 'without a name'} is not text", f'put it in quotes: "{text}"'
            )

    def refuse_key(self, event: Any, where: Where) -> None:
        line = self.lines[where.line - 1] if where.line <= len(self.lines) else ""
        if self.stack[-1].flow and line[where.column - 2 : where.column] == "{{":
            place = Where(where.file, where.line, where.column - 1)
            self.stop(
                place,
                "{{ }} without quotes is a map to YAML",
                'quote the template: "{{ row.name }}"',
            )
        self.stop(where, "a list or map as a key", "keys are text")

    def refuse_tag(self, event: Any, where: Where) -> bool:
        if event.tag is None:
            return False
        self.problem(where, f"tag {_tag(event.tag)} is not allowed", "remove it: values are plain")
        return True


def _tag(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!")[:60]


def read_tree(
    data: bytes, file: str, *, limit: int = MAX_BYTES
) -> tuple[Node | None, list[Problem]]:
    """The tree of one file, and everything that is wrong with it as YAML.

    With problems the tree holds what could still be read, so that later checks can report too; it
    is None if nothing could. Never raises for bad input.
    """
    text, refused = _decode(data, file, limit)
    if refused is not None:
        return None, [refused]
    reader = _Reader(text, file)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            reader.feed(event)
    except _StopReading:
        return None, reader.problems
    except yaml.MarkedYAMLError as error:
        return None, [*reader.problems, _syntax_problem(error, reader)]
    except (yaml.YAMLError, UnicodeError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else "not YAML"
        return None, [*reader.problems, Problem(Where(file, 1, 1), first)]
    if reader.root is None or reader.root.value is None:
        return None, [*reader.problems, Problem(Where(file, 1, 1), "the file is empty")]
    return reader.root, reader.problems


# libyaml scans a 1 MiB file in well under a second; the pure parser takes many.
_LOADER: Any = getattr(yaml, "CLoader", yaml.Loader)


def read_value(text: str, label: str) -> tuple[Node | None, list[Problem]]:
    """A single value, as after ``--set path=``; every place in it is just ``label``."""
    if not text.strip():
        return Node(None, Where(label)), []
    node, problems = read_tree(text.encode(errors="surrogatepass"), label)
    where = Where(label)
    moved = [Problem(where, problem.message, problem.hint) for problem in problems]
    if node is None and not moved:
        moved = [Problem(where, "the value is empty")]
    return (graft(plain(node), where) if node is not None else None), moved


def _decode(data: bytes, file: str, limit: int) -> tuple[str, Problem | None]:
    if len(data) > limit:
        return "", Problem(Where(file), f"larger than {limit >> 10} KiB")
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        where = _place(data[: error.start].decode("utf-8"), file)
        return "", Problem(where, f"not UTF-8: byte 0x{data[error.start]:02x}")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    bad = _BINARY.search(text)
    if bad:
        return "", Problem(
            _place(text[: bad.start()], file),
            f"control character U+{ord(bad[0]):04X}",
            "files are plain text",
        )
    return text, None


def _place(before: str, file: str) -> Where:
    return Where(file, before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)


def _syntax_problem(error: yaml.MarkedYAMLError, reader: _Reader) -> Problem:
    mark: Any = error.problem_mark or error.context_mark
    where = reader.where(mark) if mark is not None else Where(reader.file, 1, 1)
    line = reader.lines[where.line - 1] if where.line <= len(reader.lines) else ""
    # The parser often notices at the next token; the cause is then on the line where it began.
    begun: Any = error.context_mark
    start = reader.lines[begun.line] if begun is not None and begun.line < len(reader.lines) else ""
    message = f"not YAML: {error.problem or error.context or 'cannot be read'}"
    return Problem(where, message, _syntax_hint(line, start))


def _syntax_hint(line: str, start: str) -> str:
    for text in (line, start):
        if re.search(r"""[^"']\{\{""", text):
            return 'quote the template: "/path?q={{ row.name }}"'
        if re.search(r"""[^"']\$\{""", text):
            return 'put it in quotes: "${NAME}"'
        if _OPERATOR.search(text):
            return "operators are not written: say min: or max: and the plain limit"
        if re.match(r" *\t", text):
            return "indent with spaces, not tabs"
        if re.search(r":\s+[@`%&*!|>]", text):
            return "put text that begins with a special character in quotes"
    if start.count('"') % 2 or start.count("'") % 2:
        return "a quote is not closed"
    return "check indentation, colons and quotes around here"
