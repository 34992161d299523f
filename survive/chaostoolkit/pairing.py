"""Which rollback undoes which action: only where nobody could doubt it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Activity = Mapping[str, Any]

_OPPOSITES = (
    {"stop", "start"},
    {"add", "remove"},
    {"add", "delete"},
    {"create", "delete"},
    {"create", "destroy"},
    {"create", "remove"},
    {"enable", "disable"},
    {"cordon", "uncordon"},
    {"pause", "resume"},
    {"pause", "unpause"},
    {"attach", "detach"},
    {"block", "unblock"},
    {"inject", "heal"},
    {"set", "unset"},
    {"taint", "untaint"},
)


def pair(
    actions: Sequence[Activity], rollbacks: Sequence[Activity]
) -> tuple[list[Activity | None], list[Activity]]:
    """For each action its rollback or None, and the rollbacks that are nobody's.

    An action and a rollback are a pair if each is the only match of the other.
    """
    matches = [
        [r for r, rollback in enumerate(rollbacks) if _undoes(rollback, action)]
        for action in actions
    ]
    found: list[Activity | None] = []
    used: set[int] = set()
    for own in matches:
        sole = len(own) == 1 and sum(own[0] in other for other in matches) == 1
        found.append(rollbacks[own[0]] if sole else None)
        used.update(own if sole else ())
    return found, [rollback for r, rollback in enumerate(rollbacks) if r not in used]


def _undoes(rollback: Activity, action: Activity) -> bool:
    ours, theirs = rollback.get("provider") or {}, action.get("provider") or {}
    if ours.get("type") != theirs.get("type"):
        return False
    if ours.get("type") == "python":
        return _undoes_call(ours, theirs)
    if ours.get("type") == "http":
        return _undoes_http(ours, theirs)
    return False  # of two programs nobody can tell


def _undoes_call(rollback: Mapping[str, Any], action: Mapping[str, Any]) -> bool:
    """The opposite verb on the same noun, or the same call with other values."""
    if rollback.get("module") != action.get("module") or _elsewhere(rollback, action):
        return False
    ours, theirs = _words(rollback.get("func")), _words(action.get("func"))
    if ours == theirs:
        return bool(rollback.get("arguments") != action.get("arguments"))
    changed = set(ours) ^ set(theirs)
    return len(ours) == len(theirs) and changed in _OPPOSITES


def _elsewhere(rollback: Mapping[str, Any], action: Mapping[str, Any]) -> bool:
    """They name different things: an argument that says which is not the same."""
    ours, theirs = rollback.get("arguments") or {}, action.get("arguments") or {}
    if not isinstance(ours, dict) or not isinstance(theirs, dict):
        return True
    names = [key for key in ours.keys() & theirs.keys() if re.search(r"name|id$|ns$|label", key)]
    return any(ours[key] != theirs[key] for key in names)


def _undoes_http(rollback: Mapping[str, Any], action: Mapping[str, Any]) -> bool:
    """DELETE of what a POST or PUT made: the same resource, or one just below it."""
    made = str(action.get("method", "GET")).upper() in {"POST", "PUT"}
    ended = str(rollback.get("method", "GET")).upper() == "DELETE"
    ours, theirs = str(rollback.get("url")), str(action.get("url")).rstrip("/")
    return made and ended and (ours.rstrip("/") == theirs or ours.rpartition("/")[0] == theirs)


def _words(name: object) -> list[str]:
    return str(name).split("_")
