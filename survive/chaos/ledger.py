"""The ledger: what was done to the host, on disk *before* it is done.

``$XDG_STATE_HOME/survive/<run>/ledger.ndjson``, one JSON object a line, 0600 in a folder of 0700,
each line written and fsynced before the deed that it announces. Whoever holds it can end the run's
processes and mend its faults; ``survive heal`` needs nothing else.

==========  ==================================================================================
entry       fields
==========  ==================================================================================
run         run, target, boot, survive [pid, start time], agent [pid, start time],
            start (where a team's own faults are looked up; "" = built-ins),
            scratch (the run's private folder under the temporary ones; "" = none)
process     name, pid, start_time      (a process that must not outlive the run)
resource    type, name                 (no process, and about to be made: see cleaners)
inject      injection                  (as Injection.to_json)
healed      id, proven, rung
ended       clean                      (nothing of the run is left)
looked      damage                     (somebody looked at what unreadable lines may have done)
==========  ==================================================================================

Each line bears its number and a sum of its bytes (survive.chaos.sealed), so that one that was
damaged is told and never taken for another. A ``process`` entry alone follows its deed: a process
dies with the agent that started it, and bears the run's mark, by which it is found without it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from survive.chaos import processes
from survive.chaos.sealed import Sealed, seal
from survive.contracts import HandleSpec, Injection
from survive.errors import HarnessError, RefusedError

LEDGER = "ledger.ndjson"
PROXY = "fault proxy"  # the name in it of the process that carries faults on links
_HIGHEST_PID = 2**31 - 1  # what a system call takes
KEPT = 50  # ledgers; older ones of runs that ended clean have nothing more to tell


class LedgerError(HarnessError):
    """The ledger cannot be written, so nothing may be injected or started."""


def state_dir() -> Path:
    """``$XDG_STATE_HOME/survive``, by default ``~/.local/state/survive``; may not exist yet."""
    home = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(home) / "survive"


def halt_file() -> Path:
    """While it exists no run begins; ``survive halt`` writes it, ``--clear`` removes it."""
    return state_dir() / "HALT"


@dataclass(frozen=True, slots=True)
class Named:
    """A process that a recycled pid can never be taken for: pid and clock ticks since boot."""

    pid: int
    start_time: int

    @classmethod
    def of(cls, pid: int) -> Named:
        """The process that has the pid now."""
        return cls(pid, processes.start_time(pid))

    def alive(self) -> bool:
        """That very process is there and is no zombie."""
        return self.pid > 0 and processes.exists(self.pid, self.start_time)


@dataclass(frozen=True, slots=True)
class Owner:
    """Who answers for a run: while either lives, nobody else may touch it."""

    boot_id: str
    survive: Named
    agent: Named

    @classmethod
    def here(cls, survive: Named | None = None) -> Owner:
        """This process as the agent of ``survive``; None = it is both."""
        me = Named.of(os.getpid())
        return cls(processes.boot_id(), survive or me, me)

    def this_boot(self) -> bool:
        """Pids mean something only on the boot that gave them."""
        return self.boot_id == processes.boot_id()

    def alive(self) -> bool:
        """Somebody still answers for the run."""
        return self.this_boot() and (self.survive.alive() or self.agent.alive())


@dataclass(frozen=True, slots=True)
class Healed:
    """The last word on one injection."""

    proven: bool
    rung: str


@dataclass(slots=True)
class Story:
    """What a ledger tells. ``damage``, in words: lines whose deeds nobody can know any more."""

    run: str = ""
    target: str = ""
    owner: Owner | None = None
    start: str = ""
    scratch: str = ""
    processes: list[tuple[str, Named]] = field(default_factory=list)
    resources: list[tuple[str, str]] = field(default_factory=list)  # (type, name), see cleaners
    injections: dict[str, Injection] = field(default_factory=dict)
    healed: dict[str, Healed] = field(default_factory=dict)
    ended: bool | None = None  # None = it never ended; else whether it ended clean
    damage: list[str] = field(default_factory=list)

    def open_injections(self) -> list[Injection]:
        """Held injections that were announced and not proven healed."""
        return [
            injection
            for injection in self.injections.values()
            if injection.until_us is not None
            and not (injection.id in self.healed and self.healed[injection.id].proven)
        ]


class Ledger:
    """The ledger of one run, open for writing. The creator holds the lock of its target."""

    def __init__(self, path: Path, lock: int | None = None) -> None:
        self.path = path
        self.started: list[tuple[str, Named]] = []
        self._lock = lock
        self._turn = threading.Lock()  # `chaos run` injects and heals from several threads
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_SH)  # see is_written
            so_far = Sealed(path.read_bytes())
            list(so_far.entries())
            self._next, self._torn = so_far.next, so_far.torn
        except OSError as error:
            raise _unwritable(path, error) from error

    @classmethod
    def create(
        cls,
        run_id: str,
        target: str,
        owner: Owner | None = None,
        start: Path | None = None,
        scratch: Path | None = None,
    ) -> Ledger:
        """A new ledger with its ``run`` entry, under the lock of the target.

        Raises RefusedError if another run holds the target, the id is no plain name or the host is
        halted; LedgerError if it cannot be written.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", run_id):
            raise RefusedError(f"{run_id!r} cannot name a run", hint="letters, digits, . _ -")
        root = state_dir()
        folder = root / run_id
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = _lock(root, target)
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise _unwritable(folder, error) from error
        try:
            ledger = cls(folder / LEDGER, lock)
            ledger._announce(run_id, target, owner or Owner.here(), start, scratch)
        except LedgerError:
            os.close(lock)
            raise
        if halt_file().exists():  # looked for after the announcement: see survive.chaos.halt
            ledger.ended(clean=True)
            ledger.close()
            raise RefusedError("this host is halted", hint="survive halt --clear lets runs begin")
        prune()
        return ledger

    def _announce(
        self, run_id: str, target: str, owner: Owner, start: Path | None, scratch: Path | None
    ) -> None:
        self._append(
            [
                {
                    "entry": "run",
                    "run": run_id,
                    "target": target,
                    "boot": owner.boot_id,
                    "survive": [owner.survive.pid, owner.survive.start_time],
                    "agent": [owner.agent.pid, owner.agent.start_time],
                    "start": str(start or ""),
                    "scratch": str(scratch or ""),
                }
            ]
        )
        _sync_folder(self.path.parent)

    def process(self, name: str, pid: int, start_time: int) -> None:
        """A process was started. Raises LedgerError."""
        self.started.append((name, Named(pid, start_time)))
        self._append([{"entry": "process", "name": name, "pid": pid, "start_time": start_time}])

    def resource(self, kind: str, name: str) -> None:
        """Something on the host that is no process is about to be made. Raises LedgerError.

        ``kind`` is a name of survive.chaos.cleaners, which tells what ``name`` means.
        """
        self._append([{"entry": "resource", "type": kind, "name": name}])

    def inject(self, injections: Sequence[Injection]) -> None:
        """These are about to happen: one write, one fsync. LedgerError = they may not."""
        self._append([{"entry": "inject", "injection": i.to_json()} for i in injections])

    def healed(self, injection_id: str, *, proven: bool, rung: str) -> None:
        """An injection was mended by a rung. Raises LedgerError."""
        self._append([{"entry": "healed", "id": injection_id, "proven": proven, "rung": rung}])

    def looked(self, damage: Sequence[str]) -> None:
        """Somebody has looked at what these unreadable lines may have done. Raises LedgerError."""
        self._append([{"entry": "looked", "damage": list(damage)}])

    def ended(self, *, clean: bool) -> None:
        """The run is over; ``clean`` = nothing of it is left. Raises LedgerError."""
        self._append([{"entry": "ended", "clean": clean}])

    def close(self) -> None:
        """Let go of the file and of the target's lock. Idempotent."""
        for fd in (self._fd, self._lock):
            if fd is not None and fd >= 0:
                os.close(fd)
        self._fd, self._lock = -1, None

    def _append(self, entries: Sequence[Mapping[str, Any]]) -> None:
        with self._turn:
            self._write(entries)

    def _write(self, entries: Sequence[Mapping[str, Any]]) -> None:
        numbers = [self._next and self._next + at for at in range(len(entries))]
        data = b"".join(map(seal, numbers, entries))
        if self._torn:  # a dead writer's last line is ended, never continued
            data = b"\n" + data
        size = -1
        try:
            size = os.fstat(self._fd).st_size
            written = os.write(self._fd, data)
            if written != len(data):
                raise OSError(28, "only a part was written")
            os.fsync(self._fd)
        except OSError as error:
            self._cut(size)
            raise _unwritable(self.path, error) from error
        self._torn = False
        self._next += len(entries) if self._next else 0

    def _cut(self, size: int) -> None:
        """Take back a half-written line; if even that fails, the next write ends it first."""
        try:
            if size >= 0:
                os.ftruncate(self._fd, size)
        except OSError:
            self._torn = True  # the caller raises the first error

    @staticmethod
    def read(path: Path) -> Story:
        """What the ledger tells, a torn last line ignored. Raises OSError if unreadable."""
        return Ledger.told(path.read_bytes())

    @staticmethod
    def told(data: bytes) -> Story:
        """The same of a ledger's bytes."""
        story = Story()
        lines, looked = Sealed(data), False
        for entry in lines.entries():
            if not _tell(story, entry.fields):
                lines.unreadable(entry)
            elif entry.fields["entry"] == "looked":
                lines.damage.clear()
                looked = True
        story.damage = lines.damage
        begun = story.injections or story.processes
        if story.owner is None and begun and not story.damage and not looked:
            story.damage.append("nothing says whose it is")
        if lines.unread_at_end:
            story.ended = None  # something came after the last word
        return story


def is_written(path: Path) -> bool:
    """Some process has it open for writing: who answers for a run whose owner cannot be read.

    Raises OSError.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _tell(story: Story, entry: Mapping[str, Any]) -> bool:
    """Add one entry to the story; False if it means nothing."""
    try:
        _RECORD[entry["entry"]](story, entry)
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    return True


def _natural(value: object) -> int:
    """A pid or a time of start, as the kernel could have given it."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise TypeError(f"{value!r} is no number of a process")
    return value


def _named(pid: object, start_time: object) -> Named:
    if _natural(pid) > _HIGHEST_PID:
        raise ValueError(f"no process has the number {pid}")
    return Named(_natural(pid), _natural(start_time))


def _run(story: Story, entry: Mapping[str, Any]) -> None:
    owner = Owner(str(entry["boot"]), _named(*entry["survive"]), _named(*entry["agent"]))
    story.run, story.target, story.owner = str(entry["run"]), str(entry["target"]), owner
    story.start = str(entry.get("start", ""))
    story.scratch = str(entry.get("scratch", ""))


def _process(story: Story, entry: Mapping[str, Any]) -> None:
    named = _named(entry["pid"], entry["start_time"])
    story.processes.append((str(entry["name"]), named))
    story.ended = None


def _resource(story: Story, entry: Mapping[str, Any]) -> None:
    found = (str(entry["type"]), str(entry["name"]))
    if found not in story.resources:
        story.resources.append(found)
    story.ended = None


def _inject(story: Story, entry: Mapping[str, Any]) -> None:
    injection = Injection.from_json(entry["injection"])
    _typed(injection)
    _typed(injection.handle)
    _named(injection.handle.pid, injection.handle.start_time)
    story.injections[injection.id] = injection
    story.ended = None


def _typed(told: Injection | HandleSpec) -> None:
    """Raises TypeError where a value is not of its field's type."""
    for one in fields(told):
        wanted = _TYPES.get(str(one.type))
        if wanted and type(getattr(told, one.name)) not in wanted:
            raise TypeError(f"{one.name} is not of type {one.type}")


def _healed(story: Story, entry: Mapping[str, Any]) -> None:
    story.healed[entry["id"]] = Healed(entry["proven"] is True, str(entry["rung"]))


def _ended(story: Story, entry: Mapping[str, Any]) -> None:
    story.ended = entry["clean"] is True


def _looked(story: Story, entry: Mapping[str, Any]) -> None:
    """The damage before it weighs no more; nothing else changes."""


_TYPES: Mapping[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "bool": (bool,),
    "int | None": (int, type(None)),
    "dict[str, Json]": (dict,),
    "HandleSpec": (HandleSpec,),
}
_RECORD = {
    "run": _run,
    "process": _process,
    "resource": _resource,
    "inject": _inject,
    "healed": _healed,
    "ended": _ended,
    "looked": _looked,
}


def _unwritable(path: Path, error: OSError) -> LedgerError:
    return LedgerError(
        f"the ledger {path} cannot be written: {error.strerror or error}",
        hint="nothing is injected without it; see XDG_STATE_HOME",
    )


def _lock(root: Path, target: str) -> int:
    """The open descriptor that holds the target. The kernel drops it with its last holder.

    Not inherited by children, so a stray process never blocks the next run.
    """
    digest = hashlib.sha256(target.encode()).hexdigest()[:8]
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", target)[:60]
    fd = os.open(root / f"{plain}-{digest}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise RefusedError(
            f"another run holds the target {target!r}",
            hint="one run at a time on a target; wait, or stop the other",
        ) from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def _sync_folder(folder: Path) -> None:
    """So that the file's name survives a power cut as well as its content does."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def prune(keep: int = KEPT) -> None:
    """Forget the oldest ledgers of runs that ended clean; whatever else they hold stays."""
    newest_first = sorted(folders(), key=_changed, reverse=True)
    for folder in newest_first[keep:]:
        try:
            if Ledger.read(folder / LEDGER).ended is True:
                (folder / LEDGER).unlink()
                folder.rmdir()
        except OSError:
            continue  # another run forgets it at this moment, or it is not ours to remove


def _changed(folder: Path) -> float:
    try:
        return (folder / LEDGER).stat().st_mtime
    except FileNotFoundError:
        return 0.0  # another run forgets it at this moment


def folders() -> list[Path]:
    """The folders of all runs that left a ledger, in the order of their names."""
    return sorted(path.parent for path in state_dir().glob(f"*/{LEDGER}"))
