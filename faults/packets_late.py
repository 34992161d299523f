"""``network.netem_latency``: the kernel's own queue makes a callee's packets late."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from typing import ClassVar

from survive.contracts import Active, HandleSpec, Injection, Observation
from survive.errors import RefusedError
from survive.units import MS, Duration, UnitError

from .common import asked
from .namespaces import InNamespace, Isolated, from_callee, from_caller, said

_TC = ("tc", "qdisc")
_QUEUE = ("dev", "eth0", "root")


@dataclass(frozen=True, slots=True)
class Delay:
    """Settings: every packet that the callee sends leaves this much later."""

    latency: Duration

    def __post_init__(self) -> None:
        if not 5 * MS <= self.latency <= 300 * MS or self.latency % MS:
            raise UnitError("latency is whole milliseconds from 5ms to 300ms")


class NetworkNetemLatency(InNamespace):
    """``network.netem_latency``: packets that leave late."""

    kind: ClassVar[str] = "network.netem_latency"
    program: ClassVar[str] = "tc"
    settings: ClassVar[type] = Delay
    certifies: ClassVar[str] = (
        "callers cope with a distant peer, connection set-up and TCP's own reaction included"
    )
    does_not_certify: ClassVar[str] = (
        "one slow path among several: all that the callee sends is late, whoever asked; kernels "
        "without the netem queue, and the virtual host (refused)"
    )

    def check_host(self, settings: Delay | None, here: HandleSpec) -> None:
        """As the others, and the kernel must have the queue: tried in a throw-away namespace."""
        super().check_host(settings, here)
        if missing := netem_missing():
            raise RefusedError(f"{self.kind} needs the kernel's netem queue (sch_netem): {missing}")

    async def inject(self, injection: Injection, handle: Isolated) -> None:
        """Put the queue on the callee's only interface."""
        delay = f"{asked(Delay, injection).latency // MS}ms"
        limit = ["limit", "100000"]  # packets; the default of 1,000 would be a loss under load
        await handle.inside.run([*_TC, "replace", *_QUEUE, "netem", "delay", delay, *limit])

    async def observe(
        self, injection: Injection, handle: Isolated, before: float | None
    ) -> Observation:
        """The caller's call minus the callee's own: yes from the setting on (two packets wait)."""
        around, through = await from_callee(handle), await from_caller(handle, 0.6)
        if around.broken or through.broken:
            text = f"from the caller: {said(through)}; from the callee itself: {said(around)}"
            return Observation(Active.UNKNOWN, text)
        extra_us = float(through.took_us - around.took_us)
        return Observation(
            Active.YES if extra_us >= asked(Delay, injection).latency else Active.NO,
            f"a call takes {extra_us / MS:.1f} ms longer from the caller than from the callee",
            extra_us,
        )

    async def heal(self, injection: Injection, handle: Isolated) -> None:
        """Take the queue off; one that is not there, or went with its namespace, is fine."""
        if not handle.inside.alive():
            return
        if "netem" in await handle.inside.run([*_TC, "show", "dev", "eth0"]):
            await handle.inside.run([*_TC, "del", *_QUEUE])


def netem_missing() -> str:
    """Why this kernel has no netem queue; "" if it has."""
    programs = [name for name in ("unshare", "tc") if shutil.which(name) is None]
    if programs:
        return f"no program {programs[0]!r} here (apt-get install iproute2)"
    argv = ["unshare", "--net", "--", *_TC, "add", "dev", "lo", "root", "netem", "delay", "1ms"]
    tried = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=3)
    return (tried.stderr.strip() or "it failed") if tried.returncode else ""
