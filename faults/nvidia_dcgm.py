"""``nvidia.dcgm_report``: monitors are told of a fault that the card does not have."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from survive.contracts import (
    Active,
    FaultFailedError,
    Grade,
    HandleSpec,
    Injection,
    Json,
    Observation,
    ProcessHandle,
)
from survive.errors import RefusedError
from survive.units import UnitError

from .around import ByHelper
from .common import asked

EVERY_S = "1"  # a value lives about 2 s under a watch of the field: then NVML's own comes again
ASK_S = 0.8  # of a call of dcgmi
_HERE = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Report:
    """Settings: DCGM's number of the ``field`` (230 Xid, 311 double-bit errors), its ``value``,
    the ``device`` by DCGM's number, and the ``host`` whose host engine the monitor asks."""

    field: int
    value: int
    device: int = 0
    host: str = "localhost"

    def __post_init__(self) -> None:
        if self.field <= 0:
            raise UnitError("field is a number of DCGM's, such as 230")
        if self.host.startswith("-"):
            raise UnitError("host is the name or address of a host engine")


class NvidiaDcgmReport(ByHelper):
    """``nvidia.dcgm_report``: monitors are told of a fault that the card does not have."""

    kind: ClassVar[str] = "nvidia.dcgm_report"
    grade: ClassVar[Grade] = Grade.REPORTED
    layer: ClassVar[str] = "gpu"
    outlives_victim: ClassVar[bool] = True  # what is told is in the host engine
    settings: ClassVar[type] = Report
    certifies: ClassVar[str] = "whoever reads that host engine is told of the fault, and reacts"
    does_not_certify: ClassVar[str] = (
        "that requests survive it: the card is well; monitors with a host engine of their own or "
        "that ask NVML; that health turns: its watches read other fields; no virtual twin"
    )

    def check_host(self, settings: Report | None, here: HandleSpec) -> None:
        """It has dcgmi, and a host engine of this host answers. Raises RefusedError (6)."""
        super().check_host(settings, here)
        if shutil.which("dcgmi") is None:
            raise RefusedError(f"{self.kind}: dcgmi is not installed here")
        if settings is None or settings.host in _HERE:
            self._need_engine("localhost" if settings is None else settings.host)

    def preflight(self, settings: Report, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """One victim's host has dcgmi, and the host engine answers, wherever it is."""
        found = super().preflight(settings, victims[:1])
        if settings.host not in _HERE:
            self._need_engine(settings.host)
        return found

    def _need_engine(self, host: str) -> None:
        try:
            _ask("discovery", "--host", host, "-l")
        except FaultFailedError as error:
            raise RefusedError(f"{self.kind}: no host engine answers: {error}") from error

    def remember(self, settings: Report, victim: HandleSpec) -> dict[str, Json]:
        """The field's value before; None if it has none."""
        try:
            return {"before": _read(settings)}
        except FaultFailedError as error:
            raise RefusedError(f"{self.kind}: {error}") from error

    async def inject(self, injection: Injection, handle: ProcessHandle) -> None:
        """A helper injects the value once a second."""
        told = _injecting(injection, str(asked(Report, injection).value))
        await self.help(injection, handle, "repeat", EVERY_S, _dcgmi(), *told)

    async def observe(
        self, injection: Injection, handle: ProcessHandle, before: float | None
    ) -> Observation:
        """Active if the field reads the value, asked of the host engine as a monitor does."""
        it = asked(Report, injection)
        value, health = await asyncio.gather(
            asyncio.to_thread(_read, it), asyncio.to_thread(_health, it.host)
        )
        active = Active.YES if value == float(it.value) else Active.NO
        text = f"field {it.field} of GPU {it.device} reads {value}; overall health: {health}"
        return Observation(active, text, value)

    async def heal(self, injection: Injection, handle: ProcessHandle) -> None:
        """End the helper, and tell the value that was there before, if there was one."""
        await super().heal(injection, handle)
        before: Any = injection.settings.get("before")
        if before is not None:
            await asyncio.to_thread(_ask, *_injecting(injection, f"{before:.15g}"))


def _injecting(injection: Injection, value: str) -> list[str]:
    it = asked(Report, injection)
    place = ["--gpuid", str(it.device), "-f", str(it.field), "-v", value]
    return ["test", "--host", it.host, "--inject", *place]


def _read(it: Report) -> float | None:
    """A field as the host engine tells it; None if it has no value. Raises FaultFailedError."""
    place = ["--host", it.host, "-i", str(it.device), "-e", str(it.field)]
    found = re.findall(
        rf"^GPU {it.device}\s+(\S+)\s*$", _ask("dmon", *place, "-c", "1", "-d", "100"), re.MULTILINE
    )
    if not found:
        raise FaultFailedError(f"dcgmi shows no field {it.field} of GPU {it.device}")
    try:
        return float(found[-1])
    except ValueError:
        return None  # N/A


def _health(host: str) -> str:
    """``Healthy``, ``Warning``, ``Failure``; or that nobody watches it. Evidence, no proof."""
    try:
        said = _ask("health", "--host", host, "-g", "0", "-c")
    except FaultFailedError as error:
        return str(error)
    found = re.search(r"Overall Health\W+(\w+)", said)
    return found[1] if found else "not told"


def _ask(*what: str) -> str:
    """What dcgmi says. Raises FaultFailedError if it is missing, late, or says no."""
    try:
        done = subprocess.run(
            [_dcgmi(), *what],
            capture_output=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=ASK_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FaultFailedError(f"dcgmi {what[0]}: {error}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise FaultFailedError(f"dcgmi {what[0]}: {said[:200]}")
    return done.stdout.decode(errors="replace")


def _dcgmi() -> str:
    return shutil.which("dcgmi") or "dcgmi"
