"""Faults that make scarce what a process shares with its host: CPU and memory."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import thread_time_ns
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
from survive.units import MS, Share, UnitError

from .around import ByHelper
from .common import asked

SPIN_US = 30 * MS  # ten turns of the scheduler (3 ms each)
MOST_WORKERS = 8
MOST_MEMORY = 0.10  # of the host's


@dataclass(frozen=True, slots=True)
class Burn:
    """Settings: busy processes on each CPU that the victim may use."""

    workers: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.workers <= MOST_WORKERS:
            raise UnitError(f"workers is a whole number from 1 to {MOST_WORKERS}")


class NodeCpu(ByHelper):
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
        """Start them, pinned."""
        cpus = ",".join(map(str, sorted(_cpus(handle))))
        await self.help(injection, handle, "burn", cpus, str(asked(Burn, injection).workers))

    async def observe(
        self, injection: Injection, handle: ProcessHandle, before: float | None
    ) -> Observation:
        """Active if the helpers live and a spin on the same CPUs does not get its share.

        Beside n busy processes the scheduler gives a spin 1 / (n + 1) of a CPU, and less if others
        are busy too: the middle between that and all of it is the limit.
        """
        busy = len(handle.pressure.helpers(injection.id))
        got = _spin(handle, _cpus(handle))
        limit = (1 + 1 / (asked(Burn, injection).workers + 1)) / 2
        text = f"a spin on the CPUs of {handle.spec.replica_id} gets {got:.0%} of one"
        active = Active.YES if busy and got <= limit else Active.NO
        return Observation(active, f"{text}, limit {limit:.0%}, {busy} helpers", got)


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
class Hog:
    """Settings: ``share`` of the memory of this host that is taken, at most 10 %."""

    share: Share = Share(0.02)  # noqa: RUF009 - an immutable number

    def __post_init__(self) -> None:
        if not 0 < self.share <= MOST_MEMORY:
            raise UnitError(f"share is at most {Share(MOST_MEMORY)}: the host must live on")


class NodeMemory(ByHelper):
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
        wanted = settings.share * _memory("MemTotal") * len(found)
        if wanted > _memory("MemAvailable") / 2:
            raise RefusedError(
                f"{wanted / 1e6:.0f} MB of memory are more than half of what this host has left",
                hint="ask for a smaller share",
            )
        return found

    async def inject(self, injection: Injection, handle: ProcessHandle) -> None:
        """Start the helper, which says when it has all."""
        await self.help(injection, handle, "memory", str(_wanted(injection)))

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


def _wanted(injection: Injection) -> int:
    return round(asked(Hog, injection).share * _memory("MemTotal"))


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
