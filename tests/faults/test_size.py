"""Nothing under faults/ is longer than its page of documentation; one file, one idea.

A file's page is that of the kinds that it defines. What defines none supports those that import it,
and may be as long as the longest page of theirs. The proxy is a program that faults on links use.
"""

from __future__ import annotations

import ast
from functools import cache

import pytest
from faultscene import ROOT

FAULTS = ROOT / "faults"
FILES = sorted(FAULTS.rglob("*.py"))
PROGRAMS = {"activities/server.py": "activities/runner.py", "proxy/server.py": "links.py"}
"""Programs, and who has them do things."""
MOST_OF_A_FUNCTION = 45  # lines, docstring included


def lines(path):
    return len(path.read_text(encoding="utf-8").splitlines())


@cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def families(path):
    """Of the kinds that it defines, without running any."""
    assigned = (
        (ast.unparse(one.target), one.value)
        for node in tree(path).body
        if isinstance(node, ast.ClassDef)
        for one in node.body
        if isinstance(one, ast.AnnAssign)
    )
    return {value.value.partition(".")[0] for name, value in assigned if name == "kind" and value}


def siblings(path):
    """What it imports from beside; a program names its parts in full."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            if node.level == 1:
                yield path.parent.joinpath(*parts).with_suffix(".py")
            elif parts[0] == FAULTS.name:
                yield ROOT.joinpath(*parts).with_suffix(".py")


def users():
    found = {path: set() for path in FILES}
    for path in FILES:
        for sibling in siblings(path):
            found[sibling].add(path)
    for program, user in PROGRAMS.items():
        found[FAULTS / program].add(FAULTS / user)
    return found


def pages(path, using):
    """Its own families; of a support file those of whoever uses it, near or far."""
    seen, todo, found = set(), [path], set()
    while todo:
        one = todo.pop()
        own = families(one)
        found |= own
        todo += [] if own else using[one] - seen
        seen |= using[one]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(FAULTS).as_posix())
def test_a_file_is_no_longer_than_its_page(path):
    found = pages(path, users())
    assert found, "neither a kind nor used by one"
    if families(path):
        assert len(found) == 1, f"kinds of several families: {sorted(found)}"
    most = max(lines(ROOT / "docs" / "faults" / f"{family}.md") for family in found)
    assert lines(path) <= most


def test_no_file_needs_another_that_needs_it():
    done = set()

    def visit(path, way):
        assert path not in way, " -> ".join(p.name for p in [*way, path])
        if path not in done:
            for sibling in siblings(path):
                visit(sibling, [*way, path])
            done.add(path)

    for path in FILES:
        visit(path, [])


def test_functions_are_small():
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    long = [
        f"{path.relative_to(FAULTS)}:{node.lineno} {node.name}"
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, kinds) and node.end_lineno - node.lineno + 1 > MOST_OF_A_FUNCTION
    ]
    assert long == []
