"""``--set path=value`` and profiles: the same paths, laid over the tree before it is checked.

``load.phases.production.for`` goes by the phase's name; ``target.…`` reaches into the target file
when ``target:`` is a name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from survive.catalog import nearest
from survive.errors import Problem, Where
from survive.scenario.grammar import child_type, holds_keys, is_named_map, known_keys
from survive.scenario.models import ScenarioModel, TargetFileModel
from survive.scenario.tree import Entry, Node, read_value


@dataclass(frozen=True, slots=True)
class Override:
    """One value to lay over the files."""

    path: tuple[str, ...]
    value: Node
    where: Where


def wants(sets: Sequence[str]) -> tuple[list[Override], list[Problem]]:
    """Read ``--set`` texts; the second list says which of them are no ``path=value``."""
    overrides, problems = [], []
    for text in sets:
        path, equals, value = text.partition("=")
        where = Where(f"--set {text}" if len(text) <= 80 else f"--set {text[:77]}...")
        steps = tuple(step.strip() for step in path.split("."))
        if not equals or not all(steps):
            problems.append(
                Problem(
                    where, "is not path=value", "like --set faults.slow-network.with.latency=1s"
                )
            )
            continue
        node, wrong = read_value(value, where.file)
        problems += wrong
        if node is not None and not wrong:
            overrides.append(Override(steps, node, where))
    return overrides, problems


def profile_overrides(root: Node, name: str) -> tuple[list[Override], list[Problem]]:
    """The overrides of a profile of the scenario file."""
    profiles = root.get("profiles")
    found = profiles.get(name) if profiles is not None else None
    if found is None:
        names = _keys(profiles) if profiles is not None else []
        hint = nearest(name, names) or "the file has no profiles"
        return [], [Problem(Where(f"--profile {name}"), f"unknown profile {name!r}", hint)]
    return _of_profile(found), []


def all_profiles(root: Node) -> list[Override]:
    """The overrides of every profile: their paths are checked even when they are not used."""
    profiles = root.get("profiles")
    names = _keys(profiles) if profiles is not None else []
    return [o for name in names if profiles and (p := profiles.get(name)) for o in _of_profile(p)]


def _of_profile(profile: Node) -> list[Override]:
    entries = profile.value.items() if isinstance(profile.value, dict) else ()
    return [Override(tuple(key.split(".")), entry.node, entry.where) for key, entry in entries]


def is_for_target_file(override: Override, scenario: Node) -> bool:
    """``target.x`` goes to the target file, unless the scenario holds the target itself."""
    inline = scenario.get("target")
    return (
        len(override.path) > 1
        and override.path[0] == "target"
        and not (inline is not None and isinstance(inline.value, dict))
    )


def lay_over_scenario(root: Node, override: Override, *, dry: bool = False) -> Problem | None:
    """Set one value in a scenario's tree; ``dry`` only looks. The Problem is an unknown path."""
    return _lay(root, override, override.path, ScenarioModel, dry=dry)


def lay_over_target(root: Node, override: Override, *, dry: bool = False) -> Problem | None:
    """The same in a target file's tree, without the leading ``target``."""
    return _lay(root, override, override.path[1:], TargetFileModel, dry=dry)


def _lay(
    root: Node, override: Override, path: tuple[str, ...], kind: Any, *, dry: bool
) -> Problem | None:
    node = root
    for depth, step in enumerate(path):
        last = depth == len(path) - 1
        below = child_type(kind, 0 if isinstance(node.value, list) else step)
        child = _child(node, step)
        if child is None:
            problem = _unknown(override, node, kind, step, last=last)
            if problem is not None:
                return problem
            if not last and not holds_keys(below):
                return _through(override)
            if not last:
                child = Node({}, override.where)
                if not dry:
                    _put(node, step, child, override.where)
        if last and not dry:
            _put(node, step, override.value, override.where)
        elif child is not None:
            node, kind = child, below
    return None


def _child(node: Node, step: str) -> Node | None:
    if isinstance(node.value, list):
        for item in node.value:
            name = item.get("name")
            if name is not None and name.value == step:
                return item
        return None
    return node.get(step)


def _unknown(override: Override, node: Node, kind: Any, step: str, *, last: bool) -> Problem | None:
    """None if the grammar knows the step, though the file does not use it yet."""
    if isinstance(node.value, list):
        known = [str(n.value) for item in node.value if (n := item.get("name")) is not None]
        return _problem(override, step, known)
    if not isinstance(node.value, dict):
        return _through(override)
    if step.startswith("x-") and not last:
        return _problem(override, step, _keys(node))
    if known_keys(kind):
        return None if step in known_keys(kind) else _problem(override, step, known_keys(kind))
    if is_named_map(kind):
        # A whole new entry is meant when a map is given for it; anything else is a typing error.
        new = last and isinstance(override.value.value, dict)
        return None if new else _problem(override, step, _keys(node))
    return None


def _problem(override: Override, step: str, known: Sequence[str]) -> Problem:
    whole = f" in {'.'.join(override.path)}" if len(override.path) > 1 else ""
    return Problem(override.where, f"nothing is called {step!r}{whole}", nearest(step, known))


def _through(override: Override) -> Problem:
    return Problem(override.where, f"{'.'.join(override.path)} leads through a plain value")


def _put(node: Node, step: str, value: Node, where: Where) -> None:
    if isinstance(node.value, list):
        for index, item in enumerate(node.value):
            name = item.get("name")
            if name is not None and name.value == step:
                node.value[index] = value
    elif isinstance(node.value, dict):
        node.value[step] = Entry(where, value)


def _keys(node: Node | None) -> list[str]:
    return [*node.value] if node is not None and isinstance(node.value, dict) else []
