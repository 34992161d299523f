"""From files to a Scenario: read, lay overrides, validate, check, build.

Everything that is wrong with both files is raised at once, as ``file:line:col``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from survive.catalog import Catalog, nearest
from survive.errors import Problem, RecordError, ScenarioError, Where
from survive.scenario.breaking import check_recoveries, make_faults
from survive.scenario.check import Check
from survive.scenario.grammar import Draft, validated
from survive.scenario.limits import make_claims, make_kills, make_objectives, make_stop_if
from survive.scenario.model import (
    FaultPlan,
    LoadSpec,
    Objective,
    Probe,
    RequestKind,
    Scenario,
    StopIf,
    TargetSpec,
)
from survive.scenario.models import ScenarioModel, TargetFileModel, TargetModel
from survive.scenario.overrides import (
    Override,
    all_profiles,
    is_for_target_file,
    lay_over_scenario,
    lay_over_target,
    profile_overrides,
    wants,
)
from survive.scenario.probing import make_probes
from survive.scenario.target import TargetSource, check_env, check_target, make_target
from survive.scenario.traffic import make_load, make_requests, make_retries
from survive.scenario.tree import MAX_BYTES, Entry, Node, at, plain, read_tree, unshared
from survive.scenario.tree import read_scalar as plain_scalar

SCENARIO_FILE = "scenario.yaml"
TARGET_FILE = "target.yaml"
INLINE = "inline"  # the name of a target that stands in its scenario
_STORED_BYTES = 64 * MAX_BYTES  # expanded aliases make a stored file longer


def load_scenario(
    path: Path,
    *,
    target: str | None = None,
    sets: Sequence[str] = (),
    profile: str | Sequence[str] | None = None,
    catalog: Catalog | None = None,
) -> Scenario:
    """The scenario of a file on its target, overrides applied: profiles in order, then ``sets``.

    ``target`` replaces the file's ``target:``. Raises ScenarioError with every problem of both
    files, in their order.
    """
    catalog = catalog if catalog is not None else Catalog(path)
    overrides, problems = wants(sets)
    root, wrong = _read(path)
    problems += wrong
    if root is None:
        raise ScenarioError(problems)
    for name in reversed([profile] if isinstance(profile, str) else profile or ()):
        of_profile, unknown = profile_overrides(root, name)
        overrides, problems = [*of_profile, *overrides], [*problems, *unknown]
    unused = all_profiles(root)
    root = unshared(root)
    if target is not None and isinstance(root.value, dict):
        where = Where(f"--target {target}")
        root.value["target"] = Entry(where, Node(target, where))
    for_target = [o for o in overrides if is_for_target_file(o, root)]
    problems += _lay(root, [o for o in overrides if o not in for_target], unused)
    job = _Job(path, catalog, Draft(root, problems))
    return job.finish(for_target, [o for o in unused if is_for_target_file(o, root)])


def load_stored(folder: Path) -> Scenario:
    """The scenario of a stored run, from its ``scenario.yaml`` and ``target.yaml``.

    Needs neither data files nor target folders, and runs no code of faults. Raises RecordError if
    a file is missing, ScenarioError if one was changed to something invalid.
    """
    scenario, target = folder / SCENARIO_FILE, folder / TARGET_FILE
    for file in (scenario, target):
        if not file.is_file():
            raise RecordError(f"{file} is missing", hint="is this a run directory?")
    root, problems = _read(scenario, limit=_STORED_BYTES)
    if root is None:
        raise ScenarioError(problems)
    job = _Job(scenario, Catalog(folder, plugins=False), Draft(root, problems), stored=target)
    return job.finish([], [])


def dump_scenario(scenario: Scenario, folder: Path) -> None:
    """Write ``scenario.yaml`` and ``target.yaml``: resolved, secrets still ``${ENV}``."""
    for name, raw in ((SCENARIO_FILE, scenario.raw), (TARGET_FILE, scenario.raw_target)):
        (folder / name).write_text(to_yaml(raw), encoding="utf-8")


@dataclass(slots=True)
class _Job:
    """One load: the scenario's draft, and the target's once it is found."""

    path: Path
    catalog: Catalog
    draft: Draft
    stored: Path | None = None

    def finish(self, for_target: Sequence[Override], unused: Sequence[Override]) -> Scenario:
        """Everything after reading; raises ScenarioError."""
        source = self.find_target(for_target, unused)
        inline = source is not None and source.draft is self.draft
        check_env(self.draft, ScenarioModel, ("target",) if self.inline() else None)
        model = validated(ScenarioModel, self.draft)
        spec, check, parts = None, None, None
        if source is not None:
            if not inline:
                check_env(source.draft, TargetFileModel, ())
            spec = self.make_target(source, model)
        if model is not None:
            stored = self.stored is not None
            folder = self.path.parent
            check = Check(model, self.draft, spec, source, self.catalog, folder, stored=stored)
            parts = _parts(check)
        problems = _in_order([self.draft, *([source.draft] if source and not inline else [])])
        if problems or check is None or parts is None or spec is None or source is None:
            raise ScenarioError(problems or [Problem(Where(str(self.path)), "cannot be read")])
        return self.scenario(check, parts, spec, source)

    def inline(self) -> bool:
        """The target's map stands in the scenario itself."""
        node = self.draft.root.get("target")
        return node is not None and isinstance(node.value, dict)

    def find_target(
        self, overrides: Sequence[Override], unused: Sequence[Override]
    ) -> TargetSource | None:
        """The target's tree; None (and noted) if there is none."""
        node = self.draft.root.get("target")
        if self.stored is not None:
            name = node.value if node is not None and isinstance(node.value, str) else INLINE
            return self.read_target(self.stored, name, overrides, unused)
        if node is None:
            return None  # noted as missing by the model
        if isinstance(node.value, dict):
            return TargetSource(INLINE, self.path.resolve().parent, self.draft, ("target",))
        if not isinstance(node.value, str):
            return None  # noted as no name by the model
        file = self.catalog.target_file(node.value) if _is_name(node.value) else None
        if file is None:
            hint = nearest(node.value, self.catalog.target_names())
            self.draft.problems.append(
                Problem(node.where, f"there is no target {node.value!r}", hint)
            )
            return None
        return self.read_target(file, node.value, overrides, unused)

    def read_target(
        self, file: Path, name: str, overrides: Sequence[Override], unused: Sequence[Override]
    ) -> TargetSource | None:
        """The tree of a target file, overrides laid on; None (and noted) if unreadable."""
        limit = MAX_BYTES if self.stored is None else _STORED_BYTES
        root, problems = _read(file, limit=limit)
        if root is None:
            self.draft.problems += problems
            return None
        root = unshared(root)
        for override in unused:
            problem = lay_over_target(root, override, dry=True)
            problems += [problem] if problem else []
        for override in overrides:
            problem = lay_over_target(root, override)
            if problem is not None and problem not in problems:
                problems.append(problem)
        # `app:` files of targets/reference.yaml stand in targets/reference/.
        folder = file.resolve().parent / file.stem
        return TargetSource(name, folder, Draft(root, problems), stored=self.stored is not None)

    def make_target(
        self, source: TargetSource, scenario: ScenarioModel | None
    ) -> TargetSpec | None:
        """The checked spec; with problems noted it still names services and links."""
        model: TargetModel | None
        if source.draft is self.draft:
            inline = scenario.target if scenario is not None else None
            model = inline if isinstance(inline, TargetModel) else None
        else:
            model = validated(TargetFileModel, source.draft)
        if model is None:
            return None
        check_target(model, source, self.catalog)
        return make_target(model, source, self.catalog)

    def scenario(
        self, check: Check, parts: _Parts, spec: TargetSpec, source: TargetSource
    ) -> Scenario:
        """The finished Scenario."""
        model = check.model
        raw = plain(self.draft.root)
        raw_target = plain(source.draft.root)
        if source.draft is self.draft:
            raw_target = {"survive": 1, **raw["target"]}
        return Scenario(
            name=model.name,
            about=model.about,
            seed=model.seed,
            target=spec,
            requests=parts.requests,
            gives_up_after_us=model.clients.gives_up_after,
            load=parts.load,
            faults=parts.faults,
            objectives=parts.objectives,
            stop_if=parts.stop_if,
            kills=parts.kills,
            claims=parts.claims,
            folder=self.path.resolve().parent,
            raw=raw,
            raw_target=raw_target,
            warnings=tuple(check.warnings),
            probes=parts.probes,
            retries=make_retries(model.clients),
            file=self.path,
            lines=self.lines(),
        )

    def lines(self) -> dict[str, int]:
        """Of each objective, the line of the file that names it; none for one of ``--set``."""
        named = at(self.draft.root, "objectives").value
        entries = named if isinstance(named, dict) else {}
        ours = self.draft.root.where.file
        return {name: e.where.line for name, e in entries.items() if e.where.file == ours}


@dataclass(frozen=True, slots=True)
class _Parts:
    requests: dict[str, RequestKind]
    load: LoadSpec
    faults: dict[str, FaultPlan]
    objectives: dict[str, Objective]
    stop_if: dict[str, StopIf]
    kills: dict[str, str]
    claims: dict[str, str]
    probes: dict[str, Probe]


def _parts(check: Check) -> _Parts:
    requests = make_requests(check)
    load = make_load(check, requests)
    faults = make_faults(check, load)
    probes = make_probes(check, load)
    objectives = make_objectives(check, probes)
    check_recoveries(check, faults, objectives, load)
    stops, kills, claims = make_stop_if(check), make_kills(check), make_claims(check)
    return _Parts(requests, load, faults, objectives, stops, kills, claims, probes)


def _read(path: Path, *, limit: int = MAX_BYTES) -> tuple[Node | None, list[Problem]]:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        return None, [Problem(Where(str(path)), f"cannot be read: {why}")]
    return read_tree(data, str(path), limit=limit)


def _lay(root: Node, overrides: Sequence[Override], unused: Sequence[Override]) -> list[Problem]:
    """Lay overrides over a scenario; look at those of all profiles, used or not."""
    dry = [lay_over_scenario(root, o, dry=True) for o in unused if not is_for_target_file(o, root)]
    laid = [lay_over_scenario(root, o) for o in overrides]
    found: list[Problem] = []
    for problem in (*dry, *laid):
        if problem is not None and problem not in found:
            found.append(problem)
    return found


def _in_order(drafts: Sequence[Draft]) -> list[Problem]:
    """Problems of each file by line; the command line's first."""
    problems = [problem for draft in drafts for problem in draft.problems]
    files = {str(p.where.file): index for index, p in reversed([*enumerate(problems)])}
    unique = [*dict.fromkeys(problems)]
    return sorted(
        unique,
        key=lambda p: (bool(p.where.line), files[p.where.file], p.where.line, p.where.column),
    )


def _is_name(text: str) -> bool:
    """No path, so that a scenario cannot reach outside the targets folders."""
    return bool(text) and all(c.isalnum() or c in "_-" for c in text)


# ------------------------------------------------------------------------------- writing


def to_yaml(raw: Any, *, width: int = 1 << 20) -> str:
    """YAML that our strict reader reads back as the same data."""
    return yaml.dump(raw, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=width)


class _Dumper(yaml.SafeDumper):
    """Writes in full what was an alias, and quotes what our reader would not take for text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    value, wrong = plain_scalar(text)
    bare = isinstance(value, str) and not wrong and text.isprintable()
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if bare else '"')


_Dumper.add_representer(str, _write_text)
