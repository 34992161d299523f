"""What a run leaves for others to read, beside its record. None of it decides anything."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from survive.catalog import Catalog, nearest
from survive.contracts import Choosing, Reporter
from survive.errors import UsageError
from survive.judge.verdict import Verdict
from survive.output import Unheard
from survive.record.reader import Record

# Written into every run directory that has a verdict: file → reporter.
WRITTEN = {"junit.xml": "junit", "report.html": "html"}
STDOUT = "-"

# GitHub keeps no summary of a step that is longer, and says so only where nobody looks.
_SUMMARY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Delivery:
    """The reports that one command was asked for, as ``{path: format}``; and whether CI is told."""

    asked: Mapping[str, str]
    ci: bool = True

    @classmethod
    def of(cls, texts: Sequence[str], file: Path, catalog: Catalog, *, ci: bool) -> Delivery:
        """From ``FORMAT=PATH``. UsageError: no such format, or no place of its own to go to."""
        asked: dict[str, str] = {}
        for text in texts:
            form, _, path = text.partition("=")
            known = catalog.reporter_names()
            if not path:
                raise UsageError(f"--report takes FORMAT=PATH, not {text!r}")
            if form not in known:
                raise UsageError(f"unknown report format {form!r}", hint=nearest(form, known))
            place = path if path == STDOUT else str(Path(path))
            if place in asked or (place != STDOUT and Path(place).resolve() == file.resolve()):
                raise UsageError(f"--report {text}: {path} holds something else")
            asked[place] = form
        return cls(asked, ci)

    @property
    def takes_stdout(self) -> bool:
        """A report stands on stdout in place of the result."""
        return STDOUT in self.asked

    def clear(self, seeds: Sequence[int] = ()) -> None:
        """Remove what another run left in these places: what stands there is of this one.

        UsageError: it stays, and would be taken for this run's.
        """
        for path in self._files():
            for one in (path, *(_of_seed(path, seed) for seed in seeds)):
                try:
                    if one.is_file():
                        one.unlink()
                except OSError as error:
                    raise UsageError(f"an older report cannot be removed: {error}") from error

    def deliver(
        self,
        catalog: Catalog,
        record: Record,
        verdict: Verdict,
        env: Mapping[str, str],
        seed: int | None = None,
    ) -> bytes | None:
        """Write them all; what belongs on stdout is returned. ``seed`` tells episodes apart."""
        for path in self._files():
            told_apart = path if seed is None else _of_seed(path, seed)
            write_report(catalog, self.asked[str(path)], told_apart, record, verdict)
        if self.ci:
            _tell_github(catalog, record, verdict, env)
        if not self.takes_stdout:
            return None
        return _rendered(catalog, self.asked[STDOUT], "on stdout", record, verdict)

    def _files(self) -> list[Path]:
        return [Path(path) for path in self.asked if path != STDOUT]


def _of_seed(path: Path, seed: int) -> Path:
    """``junit.xml`` of the episode with seed 3: ``junit-3.xml``."""
    return path.with_stem(f"{path.stem}-{seed}")


def write_own_reports(catalog: Catalog, record: Record, verdict: Verdict) -> None:
    """The reports of a run in its own directory."""
    for name, form in WRITTEN.items():
        write_report(catalog, form, record.folder / name, record, verdict)


def renew_own_reports(record: Record, verdict: Verdict) -> None:
    """Those that are there tell of another verdict. Built-in reporters only: to judge a record that
    somebody sent runs no code of theirs."""
    catalog = Catalog(record.folder, plugins=False)
    for name, form in WRITTEN.items():
        if (record.folder / name).is_file():
            write_report(catalog, form, record.folder / name, record, verdict)


def write_report(catalog: Catalog, form: str, path: Path, record: Record, verdict: Verdict) -> None:
    """One report, whole or not at all. What goes wrong is told in a line and changes nothing."""
    rendered = _rendered(catalog, form, str(path), record, verdict)
    if rendered is None:
        return
    fresh = path.with_name(f".{path.name}.tmp")
    try:
        if path.exists() and not path.is_file():  # a pipe
            path.write_bytes(rendered)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_bytes(rendered)
        fresh.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink()
        _warn(str(path), error)


def _rendered(
    catalog: Catalog, form: str, name: str, record: Record, verdict: Verdict
) -> bytes | None:
    """None: it broke, which was told. A team's own reporter may raise anything, or exit."""
    try:
        rendered: object = catalog.reporter(form).render(record, verdict)
        if not isinstance(rendered, bytes):
            raise TypeError(f"a report is bytes, not {type(rendered).__name__}")
        return rendered
    except (Exception, SystemExit) as error:
        _warn(name, error)
        return None


def _warn(name: str, error: BaseException) -> None:
    said = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    _tell(f"warning: the report {name} is not written: {said}")


def _tell(text: str) -> None:
    """To stderr. Whoever read it may have left."""
    if sys.stderr is not None:
        heard = Unheard(sys.stderr)
        heard.write(f"{text}\n")
        heard.flush()


def _tell_github(
    catalog: Catalog, record: Record, verdict: Verdict, env: Mapping[str, str]
) -> None:
    """Inside GitHub Actions: annotations (its runner reads stderr too), and the step's summary."""
    if env.get("GITHUB_ACTIONS") == "true":
        commands = _rendered(catalog, "github", "annotations", record, verdict)
        for line in (commands or b"").decode("utf-8", "replace").splitlines():
            _tell(line)
    summary = env.get("GITHUB_STEP_SUMMARY")
    if summary:
        text = _rendered(catalog, "markdown", summary, record, verdict)
        _append(Path(summary), text or b"")


def _append(path: Path, text: bytes) -> None:
    try:
        with path.open("ab") as file:
            if file.tell() + len(text) <= _SUMMARY_BYTES:
                file.write(text)
                return
        _tell(f"warning: {path} has no room for another summary")
    except OSError as error:
        _warn(str(path), error)


def chosen(reporter: Reporter, form: str, part: Mapping[str, str]) -> Reporter:
    """The reporter of a part of a run, if one is asked for. UsageError: it cannot choose."""
    asked = {name: value for name, value in part.items() if value}
    if not asked:
        return reporter
    if not hasattr(reporter, "choose"):
        given = " and ".join(f"--{name}" for name in asked)
        raise UsageError(f"a {form} report is of the whole run: {given} means nothing to it")
    return cast(Choosing, reporter).choose(**asked)


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
