"""What ``survive diff`` does, between the parser and the comparison."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from survive.catalog import builtin_root, load_module
from survive.errors import ExitCode, RecordError, ScenarioError, UsageError
from survive.host.command import say, show
from survive.judge.compare import Episode, Given, compare
from survive.judge.comparison import Comparison, LeftOut
from survive.judge.judge import judge
from survive.record.reader import Record
from survive.record.writer import PLAN
from survive.scenario.loader import load_stored
from survive.units import UnitError, share


def diff_runs(
    base: Path,
    new: Path,
    *,
    form: str,
    fail_on_regression: bool,
    accept: Sequence[str],
    tolerate: str,
) -> ExitCode:
    """Judge the runs of both sides afresh, compare, show. Writes nothing."""
    try:
        margin = share(tolerate)
    except UnitError as error:
        raise UsageError(f"--tolerate: {error}") from None
    comparison = compare(given_in("base", base), given_in("new", new), accept, tolerate=margin)
    _show(comparison, form)
    return comparison.exit_code(fail_on_regression=fail_on_regression)


def runs_in(folder: Path) -> list[Path]:
    """The folder itself if it is a run, else the runs of the one scenario in it, oldest first.

    UsageError if there are none, or several scenarios.
    """
    if (folder / PLAN).is_file():
        return [folder]
    inside = _runs_below(folder)
    for below in sorted(_folders(folder)) if not inside else ():
        if found := _runs_below(below):
            if inside:
                raise UsageError(
                    f"{folder} holds runs of several scenarios",
                    hint=f"name one of them, as {below}",
                )
            inside = found
    if not inside:
        raise UsageError(
            f"{folder} is no run and holds none",
            hint="give a run directory, or what `run --repeat N --out DIR` wrote into",
        )
    return inside


def _runs_below(folder: Path) -> list[Path]:
    return sorted(path for path in _folders(folder) if (path / PLAN).is_file())


def _folders(folder: Path) -> list[Path]:
    """Without links: ``latest`` is one of the others."""
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]


def given_in(name: str, folder: Path) -> Given:
    """A run that stands alone has to be readable; of several the others can do without it."""
    folders = runs_in(folder)
    if len(folders) == 1:
        return Given(name, [_episode(folders[0])])
    episodes: list[Episode] = []
    out: list[LeftOut] = []
    for one in folders:
        try:
            episodes.append(_episode(one))
        except (RecordError, ScenarioError) as error:
            out.append(LeftOut(str(one), error.lines()[0].replace(f"{one}/", "")))
    return Given(name, episodes, out)


def _episode(folder: Path) -> Episode:
    record = Record.load(folder)
    scenario = load_stored(folder)
    return Episode.of(record, scenario, judge(record, scenario))


def _show(comparison: Comparison, form: str) -> None:
    if form == "markdown" and sys.stdout is not None:
        page = load_module(builtin_root() / "reporters" / "comparison_markdown.py")
        say(page.markdown(comparison))
    elif form != "markdown":
        show(
            form, comparison.to_json, "comparison",
            lambda page, console: page.print_comparison(console, comparison),
        )  # fmt: skip
