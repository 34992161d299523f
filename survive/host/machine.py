"""What the machine itself does to a run: how late it wakes processes, how busy it is, limits."""

from __future__ import annotations

import resource
import select
import time
from collections.abc import Sequence
from pathlib import Path

from survive.address import UNIX
from survive.host.affinity import confined
from survive.load.alarm import Alarm
from survive.plan.model import Plan
from survive.scenario.model import Scenario
from survive.units import SECOND

NOISE_FOR_S = 0.25
NOISE_EVERY_NS = 1_000_000
SPARE_FDS = 64  # beside the lanes, see survive.load.locust_host
_PRESSURE = Path("/proc/pressure/cpu")
_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")


def wake_noise_us(cores: Sequence[int] = (), for_s: float = NOISE_FOR_S) -> tuple[int, int]:
    """p50 and p99 of how late a bare timer wakes this thread, in µs: nobody there can be earlier.

    Blocks for that long; what it measures is of this moment and of those cores (() = those that we
    may run on).
    """
    with confined(cores):
        return _lateness_us(for_s)


def _lateness_us(for_s: float) -> tuple[int, int]:
    alarm, late = Alarm(), []
    due = time.monotonic_ns()
    try:
        for _ in range(max(1, round(for_s * 1e9 / NOISE_EVERY_NS))):
            due = max(due, time.monotonic_ns()) + NOISE_EVERY_NS
            alarm.arm(due)
            select.select([alarm.fd], [], [])
            late.append(time.monotonic_ns() - due)
    finally:
        alarm.close()
    late.sort()
    return late[len(late) // 2] // 1000, late[min(len(late) - 1, len(late) * 99 // 100)] // 1000


def cpu_stalled_us() -> int | None:
    """µs since boot in which somebody waited for a core (PSI "some"); None if it is not told."""
    try:
        some = _PRESSURE.read_text(encoding="ascii").splitlines()[0]
        return int(some.rpartition("total=")[2])
    except (OSError, ValueError, IndexError):
        return None


def limits_warnings(plan: Plan, *, unix: bool) -> list[str]:
    """Descriptors and ports that the plan's lanes need and this machine has not."""
    warnings = []
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and plan.lanes + SPARE_FDS > hard:
        warnings.append(
            f"{plan.lanes:,} lanes need {plan.lanes + SPARE_FDS:,} file descriptors and this "
            f"machine allows {hard:,}: raise the hard limit (ulimit -Hn), or use --workers"
        )
    ports = 0 if unix else local_ports()
    if ports and plan.lanes > ports:
        warnings.append(
            f"{plan.lanes:,} lanes to one address need as many local ports and this machine has "
            f"{ports:,} (net.ipv4.ip_local_port_range)"
        )
    return warnings


def machine_warnings(scenario: Scenario, plan: Plan) -> list[str]:
    """The same for a scenario's entry."""
    entry = scenario.target.services[scenario.target.entry]
    return limits_warnings(plan, unix=entry.url.startswith(UNIX))


def local_ports() -> int:
    """How many ports outgoing connections can have; 0 = unknown."""
    try:
        first, last = map(int, _PORTS.read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return 0
    return last - first + 1


class Stalls:
    """The share of a time in which somebody on this machine waited for a core."""

    def __init__(self) -> None:
        self._stalled_us, self._began_s = cpu_stalled_us(), time.monotonic()

    def share(self) -> float | None:
        """Since it was made; None if the kernel does not say."""
        now_us, span_us = cpu_stalled_us(), (time.monotonic() - self._began_s) * SECOND
        if now_us is None or self._stalled_us is None or span_us <= 0:
            return None
        return min(1.0, (now_us - self._stalled_us) / span_us)
