"""Finds faults, targets and reporters by name; built-ins load exactly as a team's own files do.

A name is looked up in ``<folder>/`` beside the scenario and in each parent up to the repository
root (without a repository: beside it, and beside the ``scenarios/`` that it is in), then among the
built-ins (this checkout, or ``survive/builtin`` in a wheel). Folders are
mounted as ``survive_ext.<where>.<folder>`` so that siblings import each other relatively. Only the
file that a name points to is executed; listing reads the syntax tree.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib.util
import sys
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from survive.contracts import Fault, Reporter
from survive.errors import SurviveError, UsageError

PACKAGE = "survive_ext"
_MOST_NAMED = 30  # names in a hint


def builtin_root() -> Path:
    """The folder that holds the built-in ``faults/ targets/ reporters/ scenarios/``."""
    here = Path(__file__).resolve().parent
    return here / "builtin" if (here / "builtin").is_dir() else here.parent


def search_path(start: Path | None) -> list[Path]:
    """Folders that may hold ``faults/`` and the like, nearest first, built-ins last."""
    roots: list[Path] = []
    if start is not None:
        folder = start.resolve() if start.is_dir() else start.resolve().parent
        for candidate in (folder, *folder.parents):
            roots.append(candidate)
            if (candidate / ".git").exists():
                break
        else:
            roots = [folder, folder.parent] if folder.name == "scenarios" else [folder]
    builtin = builtin_root()
    return [root for root in roots if root != builtin] + [builtin]


@dataclass(frozen=True, slots=True)
class Catalog:
    """Where to look. ``plugins`` False = built-ins only (a fork's pull request runs no code)."""

    start: Path | None = None
    plugins: bool = True

    def roots(self) -> list[Path]:
        """Folders to search, nearest first."""
        return search_path(self.start) if self.plugins else [builtin_root()]

    def target_file(self, name: str) -> Path | None:
        """``targets/<name>.yaml``; data, so looked up in every root whatever ``plugins`` says."""
        for root in search_path(self.start):
            path = root / "targets" / f"{name}.yaml"
            if path.is_file():
                return path
        return None

    def compose_file(self, name: str) -> Path | None:
        """``compose/<name>.yaml``; data, as target files are."""
        paths = (root / "compose" / f"{name}.yaml" for root in search_path(self.start))
        return next((path for path in paths if path.is_file()), None)

    def compose_names(self) -> list[str]:
        """Names of all compose files."""
        found = {p.stem for r in search_path(self.start) for p in (r / "compose").glob("*.yaml")}
        return sorted(found)

    def target_names(self) -> list[str]:
        """Names of all target files."""
        found = {p.stem for r in search_path(self.start) for p in (r / "targets").glob("*.yaml")}
        return sorted(found)

    def fault_kinds(self) -> dict[str, Path]:
        """Every ``kind`` and the file that defines it, without running any."""
        kinds: dict[str, Path] = {}
        for root in reversed(self.roots()):
            for path in sorted((root / "faults").glob("*.py")):
                for kind in _declared_kinds(path):
                    if kind in kinds and kinds[kind].parent != path.parent:
                        raise UsageError(
                            f"fault kind {kind!r} is defined twice: {kinds[kind]} and {path}"
                        )
                    kinds[kind] = path
        return dict(sorted(kinds.items()))

    def fault(self, kind: str) -> Fault:
        """The fault of that kind; UsageError with the nearest name if there is none."""
        kinds = self.fault_kinds()
        if kind not in kinds:
            raise UsageError(f"unknown fault kind {kind!r}", hint=nearest(kind, kinds))
        module = load_module(kinds[kind])
        for value in vars(module).values():
            if isinstance(value, type) and getattr(value, "kind", None) == kind:
                fault: Fault = value()
                return fault
        raise SurviveError(f"{kinds[kind]} declares {kind!r} but does not define it")

    def reporter(self, name: str) -> Reporter:
        """``reporters/<name>.py`` must define ``reporter``."""
        for root in self.roots():
            path = root / "reporters" / f"{name}.py"
            if path.is_file():
                found = getattr(load_module(path), "reporter", None)
                if found is not None:
                    result: Reporter = found
                    return result
        raise UsageError(
            f"unknown report format {name!r}", hint=nearest(name, self.reporter_names())
        )

    def reporter_names(self) -> list[str]:
        """Names of all reporters, without running any."""
        paths = (p for root in self.roots() for p in (root / "reporters").glob("*.py"))
        return sorted({p.stem for p in paths if _assigns(p, "reporter")})

    def driver(self, name: str) -> Any:
        """``targets/<name>.py`` must define ``Driver``; see survive.host.driver."""
        for root in self.roots():
            path = root / "targets" / f"{name}.py"
            if path.is_file():
                found = getattr(load_module(path), "Driver", None)
                if found is not None:
                    return found
        raise UsageError(f"unknown driver {name!r}", hint=nearest(name, self.driver_names()))

    def driver_names(self) -> list[str]:
        """Names of all drivers, without running any."""
        paths = (p for root in self.roots() for p in (root / "targets").glob("*.py"))
        return sorted({p.stem for p in paths if _defines_class(p, "Driver")})


def load_module(path: Path) -> types.ModuleType:
    """Execute one file as ``survive_ext.<where>.<folder>.<name>``, once per process."""
    path = path.resolve()
    root = builtin_root()
    if path.is_relative_to(root):
        parts = list(path.relative_to(root).with_suffix("").parts)
        mount, base = [PACKAGE], root
    else:
        base = path.parent.parent
        parts = [path.parent.name, path.stem]
        mount = [PACKAGE, "at_" + hashlib.sha256(str(base).encode()).hexdigest()[:12]]
    for depth in range(1, len(mount) + 1):
        _package(".".join(mount[:depth]), None)
    folder = base
    for depth, part in enumerate(parts[:-1]):
        folder = folder / part
        _package(".".join([*mount, *parts[: depth + 1]]), folder)
    name = ".".join([*mount, *parts])
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _package(name: str, folder: Path | None) -> None:
    if name not in sys.modules:
        package = types.ModuleType(name)
        package.__path__ = [str(folder)] if folder else []
        sys.modules[name] = package


def _declared_kinds(path: Path) -> tuple[str, ...]:
    """``kind = "..."`` in class bodies, read from the syntax tree; once per version of the file."""
    return _kinds_at(path, path.stat().st_mtime_ns)


@cache
def _kinds_at(path: Path, _modified_ns: int) -> tuple[str, ...]:
    classes = [node for node in _tree(path).body if isinstance(node, ast.ClassDef)]
    assigned = [_assignment(statement) for node in classes for statement in node.body]
    return tuple(
        str(value.value)
        for target, value in assigned
        if target == "kind" and isinstance(value, ast.Constant)
    )


def _assignment(node: ast.stmt) -> tuple[str, ast.expr | None]:
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return node.target.id, node.value
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id, node.value
    return "", None


def _assigns(path: Path, name: str) -> bool:
    return any(_assignment(node)[0] == name for node in _tree(path).body)


def _defines_class(path: Path, name: str) -> bool:
    return name in _classes_at(path, path.stat().st_mtime_ns)


@cache
def _classes_at(path: Path, _modified_ns: int) -> frozenset[str]:
    """Once per version of the file: a comparison loads many stored scenarios."""
    return frozenset(node.name for node in _tree(path).body if isinstance(node, ast.ClassDef))


def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"), str(path))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid Python: {error}") from error


def nearest(name: str, known: Sequence[str] | dict[str, Any] | Iterator[str]) -> str:
    """A hint with the closest known name; if none is close all of them, or their families."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.55)
    if close:
        return f"did you mean {close[0]!r}?"
    if len(names) > _MOST_NAMED:
        families = {name.partition(".")[0]: "." in name for name in names}
        names = [f"{family}.*" if more else family for family, more in families.items()]
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"known: {', '.join(names[:_MOST_NAMED])}{more}" if names else ""
