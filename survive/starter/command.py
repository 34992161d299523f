"""What ``survive init`` writes: a scenario, its target, and what editors, CI and git need.

Nothing that is there is ever overwritten without ``--force``, and nothing is written if anything is
in the way. What several scenarios share (the schemas, a line of ``.gitignore``) is left as it is.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import click

from survive.catalog import builtin_root
from survive.errors import ExitCode, UsageError
from survive.output import program

FILES = Path(__file__).resolve().parent / "files"
SCHEMAS = ("schema/scenario.v1.json", "schema/target.v1.json")
STANDS_FOR_RUNS = frozenset({"runs", "runs/", "/runs", "/runs/", "runs/*", "runs/**"})
CI_FILES = {
    "github": ".github/workflows/survive-@NAME@.yml",
    "gitlab": ".gitlab/survive-@NAME@.yml",
}
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_PATH = re.compile(r"/[!$-;=?-z|~]*")  # of a scenario file: printable ASCII but space " # < > { }

# What a target of that kind is made of: a file of ours, and where it goes.
PARTS: Mapping[str, Mapping[str, str]] = {
    "reference": {"reference.survive.yaml": "scenarios/@NAME@.survive.yaml"},
    "url": {
        "url.survive.yaml": "scenarios/@NAME@.survive.yaml",
        "url.yaml": "targets/@NAME@.yaml",
    },
    "process": {
        "process.survive.yaml": "scenarios/@NAME@.survive.yaml",
        "process.yaml": "targets/@NAME@.yaml",
        "process/stack.py": "targets/@NAME@/stack.py",
    },
    "compose": {
        "compose.survive.yaml": "scenarios/@NAME@.survive.yaml",
        "compose.yaml": "targets/@NAME@.yaml",
        "compose.compose.yaml": "compose/@NAME@.yaml",
    },
}

TOLD = {
    "scenarios": "load, faults, objectives",
    "targets": "the stack under test",
    "compose": "the containers of it",
    "schema": "for editors; works offline",
    ".github": "a gate on pull requests",
    ".gitlab": "a gate on merge requests",
    ".gitignore": "keeps runs/ out of git",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line. ``ci`` None = of the forge whose files are in the folder, if any."""

    folder: Path
    target: str | None = None
    url: str | None = None
    name: str | None = None
    ci: str | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """A file to write. ``shared``: one that is there already stays, unless it is forced."""

    path: str  # below the folder
    text: str
    shared: bool = False


def init_project(asked: Asked) -> ExitCode:
    """Write it all or nothing, say what, and what to type next. Raises UsageError."""
    kind = _kind(asked)
    name = _name(asked, kind)
    ci = asked.ci or _forge(asked.folder)
    words = {"NAME": name, "FILE": f"scenarios/{name}.survive.yaml", **_of_url(asked.url)}
    pieces = [*_project(kind, words), *_for_ci(ci, words), *_schemas()]
    _refuse_to_overwrite(asked, pieces)
    done = [*_write(asked, pieces), *_ignore_runs(asked.folder)]
    for line in _told(asked.folder, done):
        click.echo(line)
    for line in _next(asked.folder, kind, name, ci):
        click.echo(line)
    if asked.url and words["HOST"] not in LOOPBACK:
        click.echo(
            f"warning: load and faults will go to {words['HOST']}: only if it is yours", err=True
        )
    return ExitCode.SURVIVED


# ------------------------------------------------------------------------------- what is asked


def _kind(asked: Asked) -> str:
    if asked.target == "url" and asked.url is None:
        raise UsageError("--target url needs --url", hint="--url http://127.0.0.1:8080/path")
    if asked.url is not None and asked.target not in {None, "url"}:
        raise UsageError(f"--url is of no use to --target {asked.target}", hint="leave one out")
    return asked.target or ("url" if asked.url is not None else "reference")


def _name(asked: Asked, kind: str) -> str:
    """What the files are called: as asked, or as the folder is."""
    name = asked.name if asked.name is not None else asked.folder.resolve().name
    if not _NAME.fullmatch(name):
        plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") or "first"
        raise UsageError(
            f"{name!r} cannot name a scenario: lower-case letters, digits and -, at most 40",
            hint=f"--name {plain}",
        )
    if kind != "reference" and _is_built_in(name):
        raise UsageError(f"{name!r} is a target that comes with survive", hint=f"--name my-{name}")
    return name


def _is_built_in(name: str) -> bool:
    return (builtin_root() / "targets" / f"{name}.yaml").is_file()


def _forge(folder: Path) -> str:
    if (folder / ".github").is_dir():
        return "github"
    return "gitlab" if (folder / ".gitlab-ci.yml").is_file() else "none"


def _of_url(url: str | None) -> dict[str, str]:
    """What the files need of it, as YAML. Raises UsageError for what no run could call."""
    if url is None:
        return {}
    parts = _split(url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not _PATH.fullmatch(path):
        raise UsageError(f"{path!r} holds a character that a path cannot", hint="percent-encode it")
    return {
        "HOST": parts.hostname or "",
        "TARGET": f"{parts.scheme}://{parts.netloc}",
        "URL": json.dumps(f"{parts.scheme}://{parts.netloc}"),
        "HOSTNAME": json.dumps(parts.hostname),
        "PATH": json.dumps(path),
    }


def _split(url: str) -> SplitResult:
    hint = "like http://127.0.0.1:8080/path or https://staging.example/path"
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for one that is none
    except ValueError as error:
        raise UsageError(f"--url {url!r}: {error}", hint=hint) from error
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise UsageError(f"--url {url!r} is no http(s) address", hint=hint)
    if parts.username is not None:
        raise UsageError(
            "--url holds a user: secrets are in no file",
            hint='write `auth: {bearer: "${NAME}"}` in the target file afterwards',
        )
    if parts.fragment or not re.fullmatch(r"[!-~]+", parts.netloc):
        raise UsageError(f"--url {url!r} holds what no request can carry", hint=hint)
    return parts


# ------------------------------------------------------------------------------- what is written


def _project(kind: str, words: Mapping[str, str]) -> Iterator[Piece]:
    for source, place in PARTS[kind].items():
        yield Piece(_filled(place, words), _filled(_text(source), words))


def _for_ci(ci: str, words: Mapping[str, str]) -> Iterator[Piece]:
    if ci in CI_FILES:
        yield Piece(_filled(CI_FILES[ci], words), _filled(_text(f"{ci}.yml"), words))


def _schemas() -> Iterator[Piece]:
    for name in SCHEMAS:
        yield Piece(name, (builtin_root() / name).read_text(encoding="utf-8"), shared=True)


def _text(source: str) -> str:
    return (FILES / source).read_text(encoding="utf-8")


def _filled(text: str, words: Mapping[str, str]) -> str:
    """``@WORD@`` replaced; @ begins no YAML value, so none is left by mistake."""
    return re.sub(r"@([A-Z]+)@", lambda found: words[found[1]], text)


def _refuse_to_overwrite(asked: Asked, pieces: Sequence[Piece]) -> None:
    there = [piece.path for piece in pieces if not piece.shared and _exists(asked, piece)]
    if there and not asked.force:
        raise UsageError(
            f"nothing was written: {', '.join(there)} {'is' if len(there) == 1 else 'are'} there "
            "already",
            hint="--name for another scenario beside it, or --force to overwrite",
        )


def _exists(asked: Asked, piece: Piece) -> bool:
    path = asked.folder / piece.path
    return path.exists() or path.is_symlink()


def _write(asked: Asked, pieces: Sequence[Piece]) -> Iterator[tuple[str, str]]:
    """(path, what became of it) of each."""
    for piece in pieces:
        there = _exists(asked, piece)
        if there and piece.shared and not asked.force:
            yield piece.path, "there already, left"
            continue
        _put(asked.folder / piece.path, piece.text)
        yield piece.path, "overwritten" if there else "written"


def _put(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from error


def _ignore_runs(folder: Path) -> Iterator[tuple[str, str]]:
    """A line in ``.gitignore``, unless one stands for it."""
    path = folder / ".gitignore"
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if STANDS_FOR_RUNS & {line.strip() for line in text.splitlines()}:
        yield ".gitignore", "there already, left"
        return
    gap = "" if not text or text.endswith("\n") else "\n"
    _put(path, f"{text}{gap}runs/\n")
    yield ".gitignore", "a line added" if text else "written"


# ------------------------------------------------------------------------------- what is said


def _told(folder: Path, done: Sequence[tuple[str, str]]) -> Iterator[str]:
    paths = max(len(path) for path, _ in done)
    words = max(len(word) for _, word in done)
    yield f"{_shown(folder)}:"
    for path, word in done:
        yield f"  {path:{paths}}  {word:{words}}  {TOLD[path.partition('/')[0]]}"


def _next(folder: Path, kind: str, name: str, ci: str) -> Iterator[str]:
    file = f"scenarios/{name}.survive.yaml"
    elsewhere = folder.resolve() != Path.cwd().resolve()
    survive = program(folder)
    commands = {
        f"{survive} doctor {file}": "what this host lacks",
        f"{survive} explain {file}": "what would happen",
        f"{survive} run {file}": "a minute",
    }
    if kind in {"reference", "process"}:
        commands[f"{survive} run {file} --virtual"] = "the same in seconds"
    yield ""
    yield "next:"
    if elsewhere:
        yield f"  cd {_shown(folder)}"
    longest = max(map(len, commands))
    yield from (f"  {command:{longest}}  {why}" for command, why in commands.items())
    if ci == "gitlab":
        yield f"  add to .gitlab-ci.yml:  include: {{local: .gitlab/survive-{name}.yml}}"


def _shown(folder: Path) -> str:
    return shlex.quote(str(folder))
