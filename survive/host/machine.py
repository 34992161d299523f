"""What the machine itself does to a run: how late it wakes processes, how busy it is, limits."""

from __future__ import annotations

import resource
import select
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from survive.address import UNIX
from survive.host.affinity import confined
from survive.load.alarm import Alarm
from survive.plan.model import Plan
from survive.scenario.model import RequestKind, Scenario
from survive.units import SECOND

NOISE_FOR_S = 0.25
NOISE_EVERY_NS = 1_000_000
SPARE_FDS = 64  # beside the lanes, see survive.load.locust_host
_PRESSURE = Path("/proc/pressure/cpu")
_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_REUSE = Path("/proc/sys/net/ipv4/tcp_tw_reuse")


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
    """The same for a scenario's entry, and ports that new connections can use up."""
    unix = scenario.target.services[scenario.target.entry].url.startswith(UNIX)
    found = limits_warnings(plan, unix=unix)
    return found if unix else [*found, *churn_warnings(scenario, plan)]


def churn_warnings(scenario: Scenario, plan: Plan) -> list[str]:
    """Ports that requests with ``connection: close`` can hold, if this machine has fewer.

    Whoever closes first keeps the port: mostly the server, and then it costs us none. That a server
    closes without being asked is not known before the run.
    """
    closers = [kind.name for kind in scenario.requests.values() if _asks_to_close(kind)]
    churn_rps = max(
        float(phase.peak_rps) * sum(phase.shares[name] for name in closers) for phase in plan.phases
    )
    held_s = min(_held_s(local=_is_local(scenario)), plan.end_us / SECOND)
    ports = local_ports()
    if not ports or churn_rps * held_s <= ports:
        return []
    return [
        f"`connection: close` of {', '.join(closers)} makes up to {churn_rps:,.0f} new connections "
        f"a second; each that this side closes first keeps its local port {held_s:.0f} s, which "
        f"can take {churn_rps * held_s:,.0f} ports, and this machine has {ports:,} "
        "(net.ipv4.ip_local_port_range)"
    ]


def _asks_to_close(kind: RequestKind) -> bool:
    return any(name == "connection" and "close" in value.lower() for name, value in kind.headers)


def _held_s(*, local: bool) -> float:
    """How long TIME_WAIT keeps a port from a new connection to the same place.

    60 s are compiled into Linux; net.ipv4.tcp_tw_reuse (1: always, 2: on loopback) makes it 1 s.
    """
    try:
        reuse = int(_REUSE.read_text(encoding="ascii"))
    except (OSError, ValueError):
        reuse = 0
    return 1.0 if reuse == 1 or (reuse == 2 and local) else 60.0


def _is_local(scenario: Scenario) -> bool:
    """The entry is on loopback: what a run starts itself is, unless it has a network of its own."""
    entry = scenario.target.services[scenario.target.entry]
    if not entry.url:
        return scenario.target.isolation is None
    host = urlsplit(entry.url).hostname or ""
    return host == "localhost" or host == "::1" or host.startswith("127.")


def compiled_lanes() -> bool:
    """Whether requests are served by the compiled part of the load worker (no C compiler: no)."""
    return find_spec("survive.load._fastlanes") is not None


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
