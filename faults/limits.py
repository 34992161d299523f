"""Faults that set a limit on one process: too little CPU, no file descriptor left."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from survive.clock import sleep_us
from survive.contracts import (
    Active,
    Grade,
    HandleSpec,
    Injection,
    Observation,
    ProcessHandle,
)
from survive.errors import RefusedError
from survive.transport import Broken
from survive.units import MS, SECOND, Share, UnitError

from .around import AroundProcess
from .calls import health
from .common import Nothing, asked
from .replicas import ANSWER_S

LIMIT_LOOK_US = 200 * MS


@dataclass(frozen=True, slots=True)
class CpuLimit:
    """Settings: ``share`` of one CPU that the victim may use."""

    share: Share

    def __post_init__(self) -> None:
        if not 0.05 <= self.share <= 1:
            raise UnitError("share is from 5% to 100%")


class NodeCpuLimit(AroundProcess):
    """``node.cpu_limit``: a control group that gives the victim too little CPU."""

    kind: ClassVar[str] = "node.cpu_limit"
    grade: ClassVar[Grade] = Grade.REAL
    privileges: ClassVar[str] = "to write control groups for cpu (root)"
    outlives_victim: ClassVar[bool] = True  # the group itself stays behind a dead victim
    settings: ClassVar[type] = CpuLimit
    certifies: ClassVar[str] = "requests survive a replica that is throttled by its CPU limit"
    does_not_certify: ClassVar[str] = (
        "a limit that no request ever meets: then nothing is proven; the probes of the proof use a "
        "little of the share; no virtual twin"
    )

    def check_host(self, settings: CpuLimit | None, here: HandleSpec) -> None:
        """Processes whose control group we may change."""
        super().check_host(settings, here)
        if not here.cgroup:
            raise RefusedError(
                f"{here.replica_id}: no control group for cpu can be written on this host",
                hint="root is needed, and the cpu controller",
            )

    async def inject(self, injection: Injection, handle: ProcessHandle) -> None:
        """Move its process group into a group of our own that has the limit."""
        handle.pressure.limit_cpu(injection.id, asked(CpuLimit, injection).share)

    async def observe(
        self, injection: Injection, handle: ProcessHandle, before: float | None
    ) -> Observation:
        """Active if the kernel holds it back while it answers health probes, for 200 ms at most."""
        name = handle.spec.replica_id
        held_back = handle.pressure.throttled(injection.id)
        if held_back is None:
            return Observation(Active.NO, f"{name} is under no limit of ours")
        until_us, asked, times = handle.clock.now_us() + LIMIT_LOOK_US, 0, 0
        while times == 0 and handle.clock.now_us() < until_us:  # no more than shows it
            asked += 1
            if await health(handle, LIMIT_LOOK_US / SECOND) is Broken.REFUSED:
                await sleep_us(handle.clock, 10 * MS)
            times = (handle.pressure.throttled(injection.id) or held_back) - held_back
        text = f"{name} was held back in {times} periods of 20 ms over {asked} health probes"
        return Observation(Active.YES if times > 0 else Active.UNKNOWN, text, float(times))

    async def heal(self, injection: Injection, handle: ProcessHandle) -> None:
        """Back into its own group; ours is removed."""
        handle.pressure.unlimit_cpu(injection.id)


class NodeFdExhaustion(AroundProcess):
    """``node.fd_exhaustion``: the victim has no file number left for a new connection."""

    kind: ClassVar[str] = "node.fd_exhaustion"
    grade: ClassVar[Grade] = Grade.INDUCED
    certifies: ClassVar[str] = (
        "requests survive a replica that has leaked its file descriptors: connections that it has "
        "go on, new ones hang"
    )
    does_not_certify: ClassVar[str] = (
        "a full file table of the host; the workers of a program that accepts in other processes "
        "than its first; no virtual twin"
    )

    def preflight(self, settings: Nothing, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
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
