"""Models against trees: what pydantic finds wrong, said at the place where it stands.

A broken part is cut out (or stood in for, where it must be there), so that the checks that tie
keys together still run on all that is sound; they skip what is marked broken. Nothing that was
cut or stood in for ever leaves the loader, since a problem was noted for it.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError

from survive.catalog import nearest
from survive.errors import Problem, Where
from survive.scenario.models import Strict
from survive.scenario.tree import Node, Path, at, plain, step_into

M = TypeVar("M", bound=Strict)

# Stand-ins for what must be there and is not; see the module's docstring.
_STAND_INS: Mapping[str, Any] = {
    "toxiproxy": "127.0.0.1:8474",
    "survive": 1,
    "name": "broken",
    "for": "1s",
    "kind": "broken",
    "at": "0s",
    "after": "1s",
    "every": "1s",
    "metric": "success",
    "below": "1%",
    "bursty": {"cv": 1},
    "cv": 1,
    "from": 1,
    "to": 1,
    "exponential": "1s",
    "over": "1s",
    "env": "BROKEN",
    "file": "broken",
    "driver": "process",
    "entry": "broken",
    "target": "broken",
    "requests": {"broken": {"get": "/"}},
    "objectives": {"broken": {"metric": "success", "min": "1%", "during": "run"}},
    "phases": [{"name": "broken", "rate": "1/s", "for": "1s"}],
    "load": {"phases": [{"name": "broken", "rate": "1/s", "for": "1s"}]},
    "services": {"broken": {"run": ["broken"]}},
}
MAX_PROBLEMS = 100  # of one file at once; more help nobody
_ROUNDS = 8  # a cut can uncover one more problem; depth of the models bounds it


@dataclass(slots=True)
class Draft:
    """One file while it is checked."""

    root: Node
    problems: list[Problem] = field(default_factory=list)
    broken: set[Path] = field(default_factory=set)
    unread: frozenset[Where] = frozenset()  # where the reader itself found something wrong

    def __post_init__(self) -> None:
        self.unread = frozenset(problem.where for problem in self.problems)

    def sound(self, *path: str | int) -> bool:
        """Nothing on the way to a value, nor in it, is broken."""
        return not any(bad[: len(path)] == path or path[: len(bad)] == bad for bad in self.broken)

    def wrong(self, path: Path, message: str, hint: str = "", *, key: bool = False) -> None:
        """Note a problem at a value (``key`` = at its key), unless one was noted there already."""
        place = self.place(path, key=key)
        if place not in self.unread and not any(bad == path[: len(bad)] for bad in self.broken):
            self.problems.append(Problem(place, message, hint))

    def place(self, path: Path, *, key: bool = False) -> Where:
        """Where a value, or its key, stands; the nearest that exists."""
        if key and path and isinstance(path[-1], str):
            return at(self.root, *path[:-1]).key_where(path[-1])
        return at(self.root, *path).where

    def node(self, *path: str | int) -> Node | None:
        """The value at a path; None if the file has none."""
        node: Node | None = self.root
        for step in path:
            node = step_into(node, step) if node is not None else None
        return node

    def names(self, *path: str | int) -> list[str]:
        """The keys of a map, less ``x-*``; broken entries included: their names are known."""
        node = self.node(*path)
        keys = node.value if node is not None and isinstance(node.value, dict) else {}
        return [key for key in keys if not key.startswith("x-")]


def validated(model: type[M], draft: Draft) -> M | None:
    """The model of a tree, with every problem noted; None if nothing can be built."""
    _refuse_empty(draft, draft.root, model, ())
    data = plain(draft.root)
    if not isinstance(data, dict):
        draft.wrong((), "the file is not a map of keys", "begin with `survive: 1`")
        return None
    for path in sorted(draft.broken, key=len, reverse=True):
        _cut(data, path)
    for _ in range(_ROUNDS):
        try:
            return model.model_validate(data)
        except ValidationError as error:
            details = error.errors(include_url=False)
            for detail in details[:MAX_PROBLEMS]:
                _note(draft, model, data, detail)
            if len(details) > MAX_PROBLEMS:
                more = len(details) - MAX_PROBLEMS
                draft.problems.append(Problem(draft.root.where, f"and {more} more problems"))
                return None
    return None


def _refuse_empty(draft: Draft, node: Node, kind: Any, path: Path) -> None:
    """A key without a value is a value that was forgotten, wherever the grammar knows the key."""
    if isinstance(node.value, list):
        for index, item in enumerate(node.value):
            _refuse_empty(draft, item, child_type(kind, index), (*path, index))
        return
    entries = node.value.items() if isinstance(node.value, dict) else ()
    for key, entry in entries:
        below = child_type(kind, key)
        if below is None or key.startswith("x-"):
            continue
        if entry.node.value is None and below is not Any:
            draft.wrong(
                (*path, key), f"{key!r} has no value", "give it one or remove the key", key=True
            )
            draft.broken.add((*path, key))
        else:
            _refuse_empty(draft, entry.node, below, (*path, key))


def read_strings(
    node: Node, kind: Any, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Node]]:
    """Every string and key that the grammar reads: ``x-*`` keys are left out where they are free.

    In free parts (json, headers, env) a key that begins with ``x-`` is a key like any other.
    """
    free = _model(kind) is not None or is_named_map(kind)
    if isinstance(node.value, dict):
        for key, entry in node.value.items():
            if not (free and key.startswith("x-")):
                yield (*path, key), Node(key, entry.where)
                yield from read_strings(entry.node, child_type(kind, key), (*path, key))
    elif isinstance(node.value, list):
        for index, item in enumerate(node.value):
            yield from read_strings(item, child_type(kind, index), (*path, str(index)))
    elif isinstance(node.value, str):
        yield path, node


# ------------------------------------------------------------------- what a model knows


def known_keys(kind: Any) -> list[str]:
    """The keys that a model knows, as they are written; [] for anything else."""
    model = _model(kind)
    return (
        [] if model is None else [info.alias or name for name, info in model.model_fields.items()]
    )


def child_type(kind: Any, step: str | int) -> Any:
    """The type under a key or index; None if unknown, ``Any`` if anything goes."""
    model = _model(kind)
    if model is not None:
        for name, info in model.model_fields.items():
            if step == (info.alias or name):
                return info.annotation
        return None
    for option in _options(kind):
        origin = get_origin(option)
        if origin is dict and isinstance(step, str):
            return get_args(option)[1]
        if origin is list and isinstance(step, int):
            return get_args(option)[0]
        if option is Any:
            return Any
    return None


def holds_keys(kind: Any) -> bool:
    """A model, a map, or a part where anything goes."""
    return (
        kind is Any
        or _model(kind) is not None
        or any(get_origin(option) is dict for option in _options(kind))
    )


def is_named_map(kind: Any) -> bool:
    """A map from names to models: its keys are made by the author."""
    return any(
        get_origin(option) is dict and _model(get_args(option)[1]) is not None
        for option in _options(kind)
    )


def _options(kind: Any) -> list[Any]:
    if get_origin(kind) is Annotated:
        return _options(get_args(kind)[0])
    if get_origin(kind) in {Union, types.UnionType}:
        return [inner for option in get_args(kind) for inner in _options(option)]
    return [kind]


def _model(kind: Any) -> type[Strict] | None:
    for option in _options(kind):
        if isinstance(option, type) and issubclass(option, Strict):
            return option
    return None


# ------------------------------------------------------------------ pydantic's findings


def _note(draft: Draft, model: type[Strict], data: Any, detail: Any) -> None:
    path, kind = _resolve(model, detail["loc"], draft.root)
    fault = detail["type"]
    if fault == "missing":
        _note_missing(draft, data, path)
        return
    if fault == "extra_forbidden":
        owner = f"of {path[-2]} " if len(path) > 1 and isinstance(path[-2], str) else ""
        hint = _key_hint(str(path[-1]), known_keys(kind))
        draft.wrong(path, f"unknown key {str(path[-1])!r} {owner}".rstrip(), hint, key=True)
    elif "[key]" in detail["loc"]:
        draft.wrong(
            path,
            f"{str(path[-1])!r} is not a name",
            "letters, digits, - and _, at most 64",
            key=True,
        )
    else:
        draft.wrong(path, *_message(detail))
    draft.broken.add(path)
    _cut(data, path)


def _key_hint(key: str, known: list[str]) -> str:
    """What was meant by a key that nobody knows: another one, or a setting in the wrong place."""
    hint = nearest(key, known)
    settings = "with" in known and not hint.startswith("did")
    return "if it is a setting of the kind, it stands under `with:`" if settings else hint


def _note_missing(draft: Draft, data: Any, path: Path) -> None:
    owner = "the file" if len(path) == 1 else f"{_owner(path)}"
    if path not in draft.broken:
        draft.wrong(path, f"{owner} has no {str(path[-1])!r}", f"add `{path[-1]}:`", key=True)
        draft.broken.add(path)
    holder = _holder(data, path)
    if isinstance(holder, dict):
        holder[path[-1]] = _STAND_INS[str(path[-1])]


def _owner(path: Path) -> str:
    last = path[-2]
    if isinstance(last, int) and len(path) > 2:
        return f"{str(path[-3]).removesuffix('s')} {last + 1}"
    return str(last)


def _resolve(model: type[Strict], loc: tuple[str | int, ...], root: Node) -> tuple[Path, Any]:
    """The path in the file for pydantic's location, and the type that holds its last step.

    Locations also name options of unions and ``[key]``; those are no steps in the file.
    """
    path: list[str | int] = []
    kind: Any = model
    holder: Any = model
    chosen = False  # the option of this union was named: what follows is a key
    for step in loc:
        if step == "[key]" or (not chosen and _is_option(kind, step)):
            chosen = step != "[key]"
            continue
        path.append(step)
        holder, kind, chosen = kind, child_type(kind, step), False
    return tuple(path), holder


def _is_option(kind: Any, step: str | int) -> bool:
    """Whether a step is pydantic's name for one option of a union."""
    if not isinstance(step, str) or len(_options(kind)) < 2:
        return False
    return step not in known_keys(kind) and not any(
        get_origin(option) is dict for option in _options(kind)
    )


_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "dict_type": "a map",
    "model_type": "a map",
    "model_attributes_type": "a map",
    "list_type": "a list",
    "float_type": "a number",
    "int_from_float": "a whole number",
}
_FORMS = {"list_type": "its entries begin with `- `"}


def _message(detail: Any) -> tuple[str, str]:
    kind, given, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "value_error":
        return str(context["error"]), ""
    if kind in _EXPECTED:
        number = isinstance(given, int | float | bool) and kind == "string_type"
        return (
            f"expected {_EXPECTED[kind]}, not {show(given)}",
            f'put it in quotes: "{given}"' if number else _FORMS.get(kind, ""),
        )
    if kind == "literal_error" and detail["loc"] == ("survive",):
        return f"{show(given)} is not a version that this survive reads", "write survive: 1"
    if kind == "literal_error":
        return f"{show(given)} is not {context['expected']}", _literal_hint(given, context)
    if kind in {"greater_than_equal", "less_than_equal"}:
        limit = context.get("ge", context.get("le"))
        side = "less than" if "ge" in context else "more than"
        return f"{show(given)} is {side} {limit}", ""
    if kind == "too_short":
        return "is empty; at least one is needed", ""
    if kind == "string_pattern_mismatch":
        return f"{show(given)} is not a name", "letters, digits, - and _, at most 64"
    return str(detail["msg"])[:1].lower() + str(detail["msg"])[1:], ""


def _literal_hint(given: object, context: Mapping[str, Any]) -> str:
    words = [
        w.strip("'") for part in str(context["expected"]).split(", ") for w in part.split(" or ")
    ]
    hint = nearest(given, words) if isinstance(given, str) else ""
    return hint if hint.startswith("did") else ""


def show(value: object) -> str:
    """A value in a message, never long."""
    if isinstance(value, dict | list):
        return "a map" if isinstance(value, dict) else "a list"
    text = (
        {None: "nothing", True: "true", False: "false"}.get(value, repr(value))
        if (value is None or isinstance(value, bool))
        else repr(value)
    )
    return text if len(text) <= 60 else text[:57] + "..."


def _holder(data: Any, path: Path) -> Any:
    """What holds the last step of a path; None if an earlier step was cut already."""
    for step in path[:-1]:
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _cut(data: Any, path: Path) -> None:
    """Remove a broken value; what must be there is stood in for at the next round."""
    holder = _holder(data, path)
    if isinstance(holder, dict):
        holder.pop(path[-1], None)
    elif isinstance(holder, list):
        # Removing would shift the places of the others: stand in for a phase, else cut the list.
        if path[-2:-1] == ("phases",) and isinstance(path[-1], int):
            holder[path[-1]] = dict(_STAND_INS["phases"][0])
        else:
            _cut(data, path[:-1])
