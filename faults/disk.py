"""``node.disk_full``: a small file system of its own, filled by one file."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from survive.contracts import (
    Active,
    Grade,
    HandleSpec,
    Injection,
    Observation,
    ProcessHandle,
)
from survive.errors import RefusedError
from survive.units import UnitError

from .around import AroundProcess
from .common import asked

MOST_DISK = 1 << 30  # bytes of a file system that may be filled


@dataclass(frozen=True, slots=True)
class Disk:
    """Settings: ``path``, a small file system of its own that the victim writes to."""

    path: str

    def __post_init__(self) -> None:
        if not Path(self.path).is_absolute():
            raise UnitError("path is absolute")


class NodeDiskFull(AroundProcess):
    """``node.disk_full``: nothing can be written to the victim's data directory."""

    kind: ClassVar[str] = "node.disk_full"
    grade: ClassVar[Grade] = Grade.REAL
    outlives_victim: ClassVar[bool] = True  # the file stays behind a dead victim
    settings: ClassVar[type] = Disk
    certifies: ClassVar[str] = "requests survive ENOSPC where the replica keeps its data"
    does_not_certify: ClassVar[str] = (
        "a failing or read-only disk, a full quota; that the replica writes there at all is for "
        "the scenario to know; no virtual twin"
    )

    def preflight(self, settings: Disk, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """It is hit once."""
        return super().preflight(settings, victims)[:1]

    def check_host(self, settings: Disk | None, here: HandleSpec) -> None:
        """Only a mounted file system of its own, of at most 1 GiB."""
        super().check_host(settings, here)
        if settings is None:
            return
        path = Path(settings.path)
        if not path.is_dir() or not path.is_mount() or path == Path("/"):
            raise RefusedError(
                f"{path} is no file system of its own", hint="mount a small tmpfs or loop device"
            )
        size = os.statvfs(path).f_blocks * os.statvfs(path).f_frsize
        if not 0 < size <= MOST_DISK:
            raise RefusedError(
                f"{path} holds {size >> 20} MiB; at most {MOST_DISK >> 20} are filled"
            )

    async def inject(self, injection: Injection, handle: ProcessHandle) -> None:
        """Fill it with one file that bears the run."""
        with _fill(injection).open("ab", buffering=0) as file:
            for size in (1 << 20, 4096, 1):
                with suppress(_FullError):
                    for _ in range(MOST_DISK // size if size > 1 else 4096):
                        _write(file.fileno(), size)

    async def observe(
        self, injection: Injection, handle: ProcessHandle, before: float | None
    ) -> Observation:
        """Active if a new file of one byte cannot be written there."""
        return _try_to_write(injection)

    async def heal(self, injection: Injection, handle: ProcessHandle) -> None:
        """Remove the file."""
        with suppress(FileNotFoundError):
            _fill(injection).unlink()


class _FullError(Exception):
    """No space is left."""


def _write(fd: int, size: int) -> None:
    try:
        os.write(fd, bytes(size))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise _FullError from error


def _fill(injection: Injection) -> Path:
    name = re.sub(r"[^A-Za-z0-9._-]", "-", injection.id)
    return Path(asked(Disk, injection).path) / f"sv-{injection.handle.run}-{name}.fill"


def _try_to_write(injection: Injection) -> Observation:
    probe = _fill(injection).with_suffix(".probe")
    try:
        with probe.open("wb", buffering=0) as file:
            _write(file.fileno(), 4096)
    except (_FullError, OSError) as error:
        full = isinstance(error, _FullError) or error.errno == errno.ENOSPC
        active = Active.YES if full else Active.UNKNOWN
        return Observation(active, f"{probe.parent}: {'no space left' if full else error}")
    finally:
        probe.unlink(missing_ok=True)
    return Observation(Active.NO, f"{probe.parent}: 4096 bytes could be written")
