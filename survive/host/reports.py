"""What a run leaves for others to read, beside its record. None of it decides anything."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import click

from survive.catalog import Catalog
from survive.contracts import Choosing, Reporter
from survive.errors import UsageError
from survive.judge.verdict import Verdict
from survive.record.reader import Record

# Written into every run directory that has a verdict: file → reporter.
WRITTEN = {"junit.xml": "junit"}


def write_own_reports(catalog: Catalog, record: Record, verdict: Verdict) -> None:
    """The reports of a run in its own directory."""
    for name, form in WRITTEN.items():
        write_report(catalog, form, record.folder / name, record, verdict)


def write_report(catalog: Catalog, form: str, path: Path, record: Record, verdict: Verdict) -> None:
    """One report, whole or not at all. What goes wrong is told in a line and changes nothing."""
    fresh = path.with_name(f".{path.name}.tmp")
    try:
        fresh.write_bytes(catalog.reporter(form).render(record, verdict))
        fresh.replace(path)
    except Exception as error:  # of a team's own reporter, too
        fresh.unlink(missing_ok=True)
        click.echo(f"warning: {path} is not written: {_said(error)}", err=True)


def chosen(reporter: Reporter, form: str, part: Mapping[str, str]) -> Reporter:
    """The reporter of a part of a run, if one is asked for. UsageError: it cannot choose."""
    asked = {name: value for name, value in part.items() if value}
    if not asked:
        return reporter
    if not hasattr(reporter, "choose"):
        given = " and ".join(f"--{name}" for name in asked)
        raise UsageError(f"a {form} report is of the whole run: {given} means nothing to it")
    return cast(Choosing, reporter).choose(**asked)


def _said(error: Exception) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")


def in_repository(file: Path | None) -> str:
    """A file as its repository names it, which is what CI systems link to.

    Outside of any repository it is named from the working directory, else by its name alone.
    """
    if file is None:
        return ""
    whole = file.resolve()
    roots = [folder for folder in whole.parents if (folder / ".git").exists()]
    for root in (*roots[:1], Path.cwd()):
        if whole.is_relative_to(root):
            return whole.relative_to(root).as_posix()
    return whole.name
