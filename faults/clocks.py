"""``node.clock_skew``: the wall clock of processes that were started under libfaketime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from time import CLOCK_REALTIME, clock_gettime
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
from survive.transport import Request
from survive.units import SECOND, Duration, UnitError

from .around import AroundProcess
from .common import asked
from .replicas import ANSWER_S

LEAST_SKEW_US = 5 * SECOND
_LIBRARIES = Path("/usr/lib")


@dataclass(frozen=True, slots=True)
class Skew:
    """Settings: how far ``ahead``, and the ``file`` that the victim's libfaketime reads."""

    ahead: Duration
    file: str

    def __post_init__(self) -> None:
        if self.ahead < LEAST_SKEW_US or self.ahead % SECOND:
            raise UnitError("ahead is whole seconds, at least 5s: HTTP dates have no finer ones")


class NodeClockSkew(AroundProcess):
    """``node.clock_skew``: the wall clock of processes that were started under libfaketime.

    No kernel sets the wall clock of one process: time namespaces move the monotonic clock only, and
    the host's own is everybody's. So the target's file must have asked for it; else it is refused.
    """

    kind: ClassVar[str] = "node.clock_skew"
    grade: ClassVar[Grade] = Grade.EMULATED
    outlives_victim: ClassVar[bool] = True  # the file is read again by whoever starts next
    settings: ClassVar[type] = Skew
    certifies: ClassVar[str] = "requests survive replicas whose wall clock is ahead"
    does_not_certify: ClassVar[str] = (
        "a kernel clock that jumps: programs without libc (Go) and timers do not notice; a "
        "service that sends no Date header cannot be proven skewed; no virtual twin"
    )

    def check_host(self, settings: Skew | None, here: HandleSpec) -> None:
        """Until a victim is there to be asked: libfaketime is installed."""
        super().check_host(settings, here)
        if settings is None and not any(_LIBRARIES.glob("*/faketime/libfaketime.so.1")):
            raise RefusedError("no libfaketime here", hint="apt-get install libfaketime")

    def preflight(self, settings: Skew, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """Only processes that were told to read their time from that very file."""
        for victim in super().preflight(settings, victims):
            told = _faketime(victim.pid)
            if told.get("FAKETIME_TIMESTAMP_FILE") != settings.file:
                raise RefusedError(
                    f"{victim.replica_id} does not read its time from {settings.file}",
                    hint="start it with LD_PRELOAD=libfaketime.so.1, FAKETIME_TIMESTAMP_FILE, "
                    "FAKETIME_NO_CACHE=1 and DONT_FAKE_MONOTONIC=1",
                )
            if {told.get(name) for name in ("FAKETIME_NO_CACHE", "DONT_FAKE_MONOTONIC")} != {"1"}:
                raise RefusedError(
                    f"{victim.replica_id} caches its time, or its monotonic clock would jump too",
                    hint="set FAKETIME_NO_CACHE=1 and DONT_FAKE_MONOTONIC=1",
                )
        return list(victims)

    async def inject(self, injection: Injection, handle: ProcessHandle) -> None:
        """Write the offset to the file that it reads."""
        _set_offset(injection, asked(Skew, injection).ahead // SECOND)

    async def observe(
        self, injection: Injection, handle: ProcessHandle, before: float | None
    ) -> Observation:
        """Active if the Date of an answer is half the skew or more ahead of our own clock.

        With the victim gone nobody's clock is wrong; what could be left is the file.
        """
        name = handle.spec.replica_id
        if not await handle.exists():
            told = _told(injection)
            seen = Active.UNKNOWN if told else Active.NO
            return Observation(seen, f"{name} is gone, the next one would be {told} s ahead")
        request = Request("GET", handle.spec.probe_path)
        answer = await handle.transport.call(handle.spec.address, request, timeout_s=2 * ANSWER_S)
        await answer.close()
        if "date" not in answer.headers:
            return Observation(Active.UNKNOWN, f"{name} sends no Date")
        # The one thing that is about the wall clock itself; no other clock can tell.
        ahead_s = parsedate_to_datetime(answer.headers["date"]).timestamp() - clock_gettime(
            CLOCK_REALTIME
        )
        needed_s = asked(Skew, injection).ahead / SECOND / 2
        active = Active.YES if ahead_s >= needed_s else Active.NO
        return Observation(active, f"the Date of {name} is {ahead_s:+.0f} s ahead", ahead_s)

    async def heal(self, injection: Injection, handle: ProcessHandle) -> None:
        """No offset."""
        _set_offset(injection, 0)


def _set_offset(injection: Injection, seconds: int) -> None:
    """At once: a reader sees the old line or the new one."""
    path = Path(asked(Skew, injection).file)
    new = path.with_name(f"{path.name}.sv-{injection.handle.run}")
    new.write_text(f"+{seconds}\n", "ascii")
    new.replace(path)


def _told(injection: Injection) -> int:
    """Seconds that the file says; no file says none."""
    try:
        return int(Path(str(injection.settings["file"])).read_text("ascii"))
    except FileNotFoundError:
        return 0


def _faketime(pid: int) -> dict[str, str]:
    """What libfaketime was told, if it is in the process at all."""
    try:
        if b"libfaketime" not in Path(f"/proc/{pid}/maps").read_bytes():
            return {}
        entries = Path(f"/proc/{pid}/environ").read_text("utf-8", "replace").split("\0")
    except OSError:
        return {}
    return {name: value for name, _, value in (entry.partition("=") for entry in entries)}
