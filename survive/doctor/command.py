"""``survive doctor``: ask everything, show it, and what the exit code says of it."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from survive.catalog import Catalog
from survive.contracts import Json
from survive.doctor.findings import Finding, Level
from survive.doctor.host import LEFTOVERS, host_findings, no_docker, no_namespaces
from survive.doctor.kinds import Kind, every_kind, places
from survive.doctor.needs import needs_of
from survive.errors import ExitCode
from survive.scenario.loader import load_scenario
from survive.scenario.model import Scenario

NARROWEST, WIDEST, PLAIN = 60, 140, 80
_STYLE = {
    Level.NOTE: "yellow",
    Level.ABSENT: "dim",
    Level.MISSING: "bold red",
    Level.WRONG: "bold red",
}
_WORD = max(map(len, Level))


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line."""

    file: Path | None = None
    target: str | None = None
    sets: tuple[str, ...] = ()
    profile: str | None = None
    plugins: bool = False
    form: str = "human"


@dataclass(frozen=True, slots=True)
class Examination:
    """All that was found. ``needs`` only of a scenario, ``kinds`` only without one."""

    host: Sequence[Finding]
    kinds: Sequence[Kind] = ()
    scenario: Scenario | None = None
    needs: Sequence[Finding] = ()

    @property
    def exit_code(self) -> ExitCode:
        """5: something is left of a dead run. 6: the scenario's run would be refused. Else 0."""
        if any(f.name == LEFTOVERS and f.level is Level.WRONG for f in self.host):
            return ExitCode.HEAL_UNPROVEN
        return ExitCode.REFUSED if self.scenario and self.in_the_way else ExitCode.SURVIVED

    @property
    def in_the_way(self) -> list[Finding]:
        """What keeps a run from beginning."""
        found = [*self.host, *self.needs]
        return [f for f in found if f.level in {Level.WRONG, Level.MISSING}]

    def to_json(self) -> dict[str, Json]:
        """See docs/stability.md."""
        scenario = self.scenario
        return {
            "version": 1,
            "exit_code": int(self.exit_code),
            "host": [finding.to_json() for finding in self.host],
            "faults": [kind.to_json() for kind in self.kinds],
            "scenario": None
            if scenario is None
            else {"name": scenario.name, "target": scenario.target.name},
            "needs": [finding.to_json() for finding in self.needs],
        }


def show_doctor(asked: Asked) -> ExitCode:
    """Print it. Raises ScenarioError for a file that is wrong."""
    found = examine(asked, dict(os.environ))
    if asked.form == "json":
        click.echo(json.dumps(found.to_json(), indent=2))
    elif sys.stdout is not None:  # closed: `>&-`
        _print(found)
    return found.exit_code


def _print(found: Examination) -> None:
    """In the width, colours and characters that the terminal can show."""
    stdout = sys.stdout
    seen = shutil.get_terminal_size().columns if stdout.isatty() else PLAIN
    console = Console(highlight=False)
    with console.capture() as captured:
        for line in page(found, min(WIDEST, max(NARROWEST, seen))):
            console.print(line, soft_wrap=True)
    encoding = stdout.encoding or "utf-8"
    click.echo(captured.get().encode(encoding, "replace").decode(encoding), nl=False)


def examine(asked: Asked, env: Mapping[str, str]) -> Examination:
    """Ask everything; changes nothing."""
    catalog = Catalog(asked.file or Path.cwd(), plugins=asked.plugins)
    scenario = asked.file and load_scenario(
        asked.file,
        target=asked.target,
        sets=asked.sets,
        profile=asked.profile,
        catalog=catalog,
    )
    with ThreadPoolExecutor() as pool:
        docker, namespaces = pool.submit(no_docker, env), pool.submit(no_namespaces)
        lacking = docker.result(), namespaces.result()
    host = host_findings(*lacking)
    if scenario:
        return Examination(host, scenario=scenario, needs=needs_of(scenario, catalog, env))
    return Examination(host, every_kind(catalog, places(*lacking)))


# ---------------------------------------------------------------------------------- the page


def page(found: Examination, width: int) -> Iterator[Text]:
    """The lines, none of them wider; colour only repeats what a word says."""
    yield Text("HOST", "bold")
    yield from _findings(found.host, width)
    if found.kinds:
        here = sum(not kind.why for kind in found.kinds)
        yield Text("")
        yield Text(f"FAULTS  {here} of {len(found.kinds)} kinds can be played here", "bold")
        yield from _findings([*_played(found.kinds), *_not_played(found.kinds)], width)
    if found.scenario is not None:
        yield Text("")
        name, target = found.scenario.name, found.scenario.target.name
        yield Text(f"NEEDS  {name} on {target}", "bold")
        yield from _findings(found.needs, width)
    yield Text("")
    for line in textwrap.wrap(_sentence(found), width):
        yield Text(line, "bold")


def _findings(findings: Sequence[Finding], width: int) -> Iterator[Text]:
    names = max((len(finding.name) for finding in findings), default=0)
    indent = 2 + _WORD + 2 + min(names, width // 3) + 2
    for finding in findings:
        head = f"  {finding.level:{_WORD}}  {finding.name:{indent - _WORD - 6}}  "
        hang = " " * indent
        lines = _wrapped(finding.found, width, head, hang)
        if finding.hint:
            lines += _wrapped(f"hint: {finding.hint}", width, hang, hang + "  ")
        for number, line in enumerate(lines):
            text = Text(line)
            if number == 0:
                text.stylize(_STYLE.get(finding.level, ""), 2, 2 + _WORD)
            yield text


def _wrapped(text: str, width: int, first: str, others: str) -> list[str]:
    """Without a break in an option such as --allow-privileged."""
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=others, break_on_hyphens=False
    )


def _played(kinds: Sequence[Kind]) -> Iterator[Finding]:
    """A line a family, and one for those that need a second yes."""
    families = defaultdict(list)
    for kind in kinds:
        family, _, name = kind.kind.partition(".")
        if not kind.why:
            families[family].append(name or family)
    for family, names in families.items():
        yield Finding(family, Level.OK, ", ".join(names))
    asking = [kind.kind for kind in kinds if kind.privileges and not kind.why]
    if asking:
        hint = "they need `allow: {privileged: true}` and --allow-privileged"
        yield Finding("privileged", Level.OK, ", ".join(asking), hint)


def _not_played(kinds: Sequence[Kind]) -> Iterator[Finding]:
    """Those that have one reason together."""
    reasons = defaultdict(list)
    for kind in kinds:
        if kind.why:
            why = kind.why.removeprefix(kind.kind).lstrip(": ")
            reasons[kind.kind.partition(".")[0], why, kind.hint].append(kind.kind)
    for (family, why, hint), names in reasons.items():
        yield Finding(family, Level.ABSENT, f"{', '.join(names)}: {why}", hint)


def _sentence(found: Examination) -> str:
    blocking = found.in_the_way
    if found.exit_code is ExitCode.HEAL_UNPROVEN:
        return "something is left of a dead run: type `survive heal`"
    if found.scenario is None:
        told = "; ".join(f"{finding.name}: {finding.found}" for finding in blocking)
        return told or "runs can begin here, and nothing is left of any"
    name = found.scenario.name
    if not blocking:
        noted = [finding.name for finding in found.needs if finding.level is Level.NOTE]
        more = f"; look at {', '.join(dict.fromkeys(noted))}" if noted else ""
        return f"ready: nothing that {name} needs is missing here{more}"
    things = "one thing" if len(blocking) == 1 else f"{len(blocking)} things"
    return f"not ready: {name} would be refused for {things}"
