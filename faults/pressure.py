"""Faults around a process of this host: what it needs to live on becomes scarce.

None has a virtual twin: a virtual node has no CPU, memory, files or disk of its own, and a slowed
clock would only look like it. Containers have their own kinds (``container.*``).
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import thread_time_ns
from typing import Any, ClassVar

from survive.clock import sleep_us
from survive.contracts import (
    Active,
    Grade,
    HandleSpec,
    Injection,
    Needs,
    Observation,
    ProcessHandle,
)
from survive.errors import RefusedError
from survive.transport import Broken, CallFailedError, Request, read_all
from survive.units import MS, SECOND, Share, UnitError

SPIN_US = 30 * MS  # ten turns of the scheduler (3 ms each)
LIMIT_LOOK_US = 200 * MS
MOST_WORKERS = 8
MOST_MEMORY = 0.10  # of the host's
MOST_DISK = 1 << 30  # bytes of a file system that may be filled
ANSWER_S = 0.25


class _AroundProcess:
    """What all faults of this file share."""

    held: ClassVar[bool] = True
    layer: ClassVar[str] = "node"
    needs: ClassVar[Needs] = Needs.REPLICA
    privileges: ClassVar[str] = ""
    keeps_down: ClassVar[bool] = False

    def preflight(self, settings: Any, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """Processes of this host; anything else is refused by name."""
        for victim in victims:
            if victim.driver != "process":
                raise RefusedError(
                    f"{victim.replica_id} is no process of this host ({victim.driver})",
                    hint="run without --virtual; containers have container.* faults",
                )
        return list(victims)

    async def round_trip(self, injection: Injection, handle: ProcessHandle) -> bool:
        """The replica answers its health probe."""
        return await _probe(handle, 2 * ANSWER_S) == 200


async def _probe(handle: ProcessHandle, within_s: float = ANSWER_S) -> int | Broken:
    """A health probe straight to the replica: its status once whole, or how it failed."""
    spec = handle.spec
    try:
        answer = await handle.transport.call(
            spec.address, Request("GET", spec.probe_path), timeout_s=within_s
        )
        await read_all(answer)
    except CallFailedError as error:
        return error.how
    return answer.status


def _lifetime_s(injection: Injection) -> float:
    """A helper outlives its planned heal by little, whatever happens to everybody else."""
    until_us = injection.until_us if injection.until_us is not None else injection.at_us
    return (until_us - injection.at_us) / SECOND + 10


@dataclass(frozen=True, slots=True)
class Burn:
    """Settings: busy processes on each CPU that the victim may use."""

    workers: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.workers <= MOST_WORKERS:
            raise UnitError(f"workers is a whole number from 1 to {MOST_WORKERS}")


class NodeCpu(_AroundProcess):
    """``node.cpu``: busy neighbours on the victim's own CPUs."""

    kind: ClassVar[str] = "node.cpu"
    grade: ClassVar[Grade] = Grade.INDUCED
    settings: ClassVar[type] = Burn
    certifies: ClassVar[str] = "requests survive a host whose CPUs are wanted by others"
    does_not_certify: ClassVar[str] = (
        "a throttled control group, steal by a hypervisor, or a victim with a CPU weight of its "
        "own; all that shares these CPUs is slowed, the harness too; no virtual twin"
    )

    async def inject(self, injection: Injection, handle: ProcessHandle) -> None:
        """Start them, pinned; what an earlier inject left is ended first."""
        await self.heal(injection, handle)
        cpus = ",".join(map(str, sorted(_cpus(handle))))
        what = ["burn", cpus, str(_workers(injection))]
        await handle.pressure.start_helper(injection.id, what, _lifetime_s(injection))

    async def observe(
        self, injection: Injection, handle: ProcessHandle, before: float | None
    ) -> Observation:
        """Active if the helpers live and a spin on the same CPUs does not get its share.

        Beside n busy processes the scheduler gives a spin 1 / (n + 1) of a CPU, and less if others
        are busy too: the middle between that and all of it is the limit.
        """
        busy = len(handle.pressure.helpers(injection.id))
        got = _spin(handle, _cpus(handle))
        limit = (1 + 1 / (_workers(injection) + 1)) / 2
        text = f"a spin on the CPUs of {handle.spec.replica_id} gets {got:.0%} of one"
        active = Active.YES if busy and got <= limit else Active.NO
        return Observation(active, f"{text}, limit {limit:.0%}, {busy} helpers", got)

    async def heal(self, injection: Injection, handle: ProcessHandle) -> None:
        """End the helpers."""
        await handle.pressure.end_helpers(injection.id)


def _workers(injection: Injection) -> int:
    return int(str(injection.settings.get("workers", Burn().workers)))


def _cpus(handle: ProcessHandle) -> set[int]:
    try:
        return os.sched_getaffinity(handle.spec.pid)
    except ProcessLookupError:
        return os.sched_getaffinity(0)


def _spin(handle: ProcessHandle, cpus: set[int]) -> float:
    """The share of one CPU that a busy loop is given there."""
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        began_us, began_ns = handle.clock.now_us(), thread_time_ns()
        while handle.clock.now_us() - began_us < SPIN_US:
            pass
        return (thread_time_ns() - began_ns) / 1000 / (handle.clock.now_us() - began_us)
    finally:
        os.sched_setaffinity(0, mine)


@dataclass(frozen=True, slots=True)
class CpuLimit:
    """Settings: ``share`` of one CPU that the victim may use."""

    share: Share

    def __post_init__(self) -> None:
        if not 0.05 <= self.share <= 1:
            raise UnitError("share is from 5% to 100%")


class NodeCpuLimit(_AroundProcess):
    """``node.cpu_limit``: a control group that gives the victim too little CPU."""

    kind: ClassVar[str] = "node.cpu_limit"
    grade: ClassVar[Grade] = Grade.REAL
    privileges: ClassVar[str] = "to write control groups for cpu (root)"
    outlives_victim: ClassVar[bool] = True  # the group itself stays behind a dead victim
    settings: ClassVar[type] = CpuLimit
    certifies: ClassVar[str] = "requests survive a replica that is throttled by its CPU limit"
    does_not_certify: ClassVar[str] = (
        "a limit that no request ever meets: then nothing is proven; no virtual twin"
    )

    def preflight(self, settings: CpuLimit, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """Processes whose control group we may change."""
        for victim in super().preflight(settings, victims):
            if not victim.cgroup:
                raise RefusedError(
                    f"{victim.replica_id}: no control group for cpu can be written on this host",
                    hint="root is needed, and the cpu controller",
                )
        return list(victims)

    async def inject(self, injection: Injection, handle: ProcessHandle) -> None:
        """Move its process group into a group of our own that has the limit."""
        share = Share.parse(injection.settings["share"])
        handle.pressure.limit_cpu(injection.id, share)

    async def observe(
        self, injection: Injection, handle: ProcessHandle, before: float | None
    ) -> Observation:
        """Active if the kernel holds it back while it answers health probes for 200 ms."""
        name = handle.spec.replica_id
        held_back = handle.pressure.throttled(injection.id)
        if held_back is None:
            return Observation(Active.NO, f"{name} is under no limit of ours")
        until_us = handle.clock.now_us() + LIMIT_LOOK_US
        while handle.clock.now_us() < until_us:
            if await _probe(handle, LIMIT_LOOK_US / SECOND) is Broken.REFUSED:
                await sleep_us(handle.clock, 10 * MS)
        times = (handle.pressure.throttled(injection.id) or held_back) - held_back
        text = f"{name} was held back in {times} periods of 20 ms within 200 ms"
        return Observation(Active.YES if times > 0 else Active.UNKNOWN, text, float(times))

    async def heal(self, injection: Injection, handle: ProcessHandle) -> None:
        """Back into its own group; ours is removed."""
        handle.pressure.unlimit_cpu(injection.id)


@dataclass(frozen=True, slots=True)
class Hog:
    """Settings: ``share`` of the memory of this host that is taken, at most 10 %."""

    share: Share = Share(0.05)  # noqa: RUF009 - an immutable number

    def __post_init__(self) -> None:
        if not 0 < self.share <= MOST_MEMORY:
            raise UnitError(f"share is at most {Share(MOST_MEMORY)}: the host must live on")


class NodeMemory(_AroundProcess):
    """``node.memory``: a helper beside the victim takes memory that both could have used."""

    kind: ClassVar[str] = "node.memory"
    grade: ClassVar[Grade] = Grade.INDUCED
    settings: ClassVar[type] = Hog
    certifies: ClassVar[str] = "requests survive a host with this much less memory"
    does_not_certify: ClassVar[str] = (
        "an out-of-memory kill of the victim (the helper is the kernel's first choice), swapping, "
        "or a limit of its own, for which containers have container.memory; no virtual twin"
    )

    def preflight(self, settings: Hog, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """Refused if the host could not spare twice as much."""
        found = super().preflight(settings, victims)
        asked = settings.share * _memory("MemTotal") * len(found)
        if asked > _memory("MemAvailable") / 2:
            raise RefusedError(
                f"{asked / 1e6:.0f} MB of memory are more than half of what this host has left",
                hint="ask for a smaller share",
            )
        return found

    async def inject(self, injection: Injection, handle: ProcessHandle) -> None:
        """Start the helper, which says when it has all; an earlier one is ended first."""
        await self.heal(injection, handle)
        what = ["memory", str(_wanted(injection))]
        await handle.pressure.start_helper(injection.id, what, _lifetime_s(injection))

    async def observe(
        self, injection: Injection, handle: ProcessHandle, before: float | None
    ) -> Observation:
        """Active if the kernel counts nine tenths of it as resident. ``value``: bytes."""
        taken = sum(_resident(pid) for pid in handle.pressure.helpers(injection.id))
        wanted = _wanted(injection)
        left = _memory("MemAvailable")
        text = f"{taken / 1e6:.0f} of {wanted / 1e6:.0f} MB are resident, {left / 1e6:.0f} MB left"
        active = Active.YES if taken >= 0.9 * wanted else Active.NO
        return Observation(active, f"{handle.spec.replica_id}: {text}", float(taken))

    async def heal(self, injection: Injection, handle: ProcessHandle) -> None:
        """End the helper."""
        await handle.pressure.end_helpers(injection.id)


def _wanted(injection: Injection) -> int:
    share = injection.settings.get("share")
    return round((Share.parse(share) if share is not None else Hog().share) * _memory("MemTotal"))


def _memory(name: str) -> int:
    """A line of /proc/meminfo in bytes."""
    return _kilobytes(Path("/proc/meminfo"), name)


def _resident(pid: int) -> int:
    try:
        return _kilobytes(Path(f"/proc/{pid}/status"), "RssAnon")
    except (FileNotFoundError, ProcessLookupError):
        return 0  # it ended meanwhile


def _kilobytes(path: Path, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", path.read_text("ascii", "replace"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


@dataclass(frozen=True, slots=True)
class NoSettings:
    """It has none."""


class NodeFdExhaustion(_AroundProcess):
    """``node.fd_exhaustion``: the victim has no file number left for a new connection."""

    kind: ClassVar[str] = "node.fd_exhaustion"
    grade: ClassVar[Grade] = Grade.INDUCED
    settings: ClassVar[type] = NoSettings
    certifies: ClassVar[str] = (
        "requests survive a replica that has leaked its file descriptors: connections that it has "
        "go on, new ones hang"
    )
    does_not_certify: ClassVar[str] = (
        "a full file table of the host; the workers of a program that accepts in other processes "
        "than its first; no virtual twin"
    )

    def preflight(self, settings: NoSettings, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """Processes whose limit is known, and so can be given back."""
        return [v for v in super().preflight(settings, victims) if v.nofile]

    async def inject(self, injection: Injection, handle: ProcessHandle) -> None:
        """Lower its soft limit to what it needs without any connection."""
        handle.pressure.exhaust_files()

    async def observe(
        self, injection: Injection, handle: ProcessHandle, before: float | None
    ) -> Observation:
        """Active if a new connection gets no answer while the kernel has no number to give."""
        seen = await _fresh_probe(handle)
        free = handle.pressure.free_files()
        said = "answered" if seen is None else str(seen)
        text = f"{handle.spec.replica_id} on a new connection: {said}; {free} file numbers free"
        if seen is None:
            return Observation(Active.NO, text)
        starved = free is not None and free <= 0 and seen is not Broken.REFUSED
        return Observation(Active.YES if starved else Active.UNKNOWN, text)

    async def heal(self, injection: Injection, handle: ProcessHandle) -> None:
        """The limit that it had before."""
        handle.pressure.restore_files()


async def _fresh_probe(handle: ProcessHandle) -> Broken | None:
    """The first byte on a connection of its own: None if one came, or how it failed.

    Not by the transport, whose pooled connections a starved victim goes on to answer.
    """
    host, _, port = handle.spec.address.rpartition(":")
    writer = None
    try:
        async with asyncio.timeout(ANSWER_S):
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            writer.write(f"GET {handle.spec.probe_path} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
            return None if await reader.read(1) else Broken.CLOSED
    except TimeoutError:
        return Broken.TIMEOUT
    except ConnectionRefusedError:
        return Broken.REFUSED
    except OSError:
        return Broken.RESET
    finally:
        if writer is not None:
            writer.transport.abort()


@dataclass(frozen=True, slots=True)
class Disk:
    """Settings: ``path``, a small file system of its own that the victim writes to."""

    path: str

    def __post_init__(self) -> None:
        if not Path(self.path).is_absolute():
            raise UnitError("path is absolute")


class NodeDiskFull(_AroundProcess):
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
        """Only a mounted file system of its own, of at most 1 GiB; it is hit once."""
        found = super().preflight(settings, victims)
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
        return found[:1]

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
    return Path(str(injection.settings["path"])) / f"sv-{injection.handle.run}-{name}.fill"


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
