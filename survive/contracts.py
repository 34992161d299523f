"""What teams extend: faults, the handles that drivers supply, services, reporters.

A plug-in imports only from here, ``survive.units``, ``survive.transport``, ``survive.clock``,
``survive.errors``, its siblings and libraries.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

from survive.clock import Clock
from survive.transport import Request, Response, Transport

if TYPE_CHECKING:
    from survive.judge.verdict import Verdict
    from survive.record.reader import Record

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"


class Grade(StrEnum):
    """How real a fault is, from real to simulated. A report shows the lowest that was used."""

    REAL = "real"  # physical or operating system effect
    INDUCED = "induced"  # same symptom by another real cause
    REPORTED = "reported"  # telemetry only
    EMULATED = "emulated"  # shim or proxy
    SIMULATED = "simulated"  # a stand-in target

    @property
    def rank(self) -> int:
        """0 = most real."""
        return list(Grade).index(self)


class Needs(StrEnum):
    """What a fault acts on, and so which key the scenario must give it."""

    REPLICA = "service"  # some replicas of `service:`
    STAND_IN = "stand-in"  # the switches of replicas of `service:` that `simulates:` something
    GPU = "gpu"  # the GPUs of some replicas of `service:`
    LINK = "link"  # every listener of `link:`
    TARGET = "target"  # the target as a whole: neither key


class Active(StrEnum):
    """Whether a fault was seen to bite."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Observation:
    """One look at a fault from outside. ``value`` is what was measured, in the fault's own unit."""

    active: Active
    evidence: str
    value: float | None = None


@dataclass(frozen=True, slots=True)
class HandleSpec:
    """Where a thing is, as plain data: whoever holds the ledger can reach it again.

    ``address`` is a replica's own ``host:port``; ``via`` the fault proxy's listener in front of
    it (links only), ``proxy`` that proxy's API. ``pid`` and ``start_time`` (clock ticks since
    boot, /proc/<pid>/stat field 22) name a process so that a recycled pid is never hit.
    ``probe_path`` is a cheap GET that a healthy service answers with 200.
    """

    driver: str  # process | virtual | external
    service: str
    replica: int
    address: str
    probe_path: str = "/health"
    link: str = ""  # "gateway -> inference", links only
    via: str = ""
    proxy: str = ""
    proxy_name: str = ""
    lent: bool = False  # the proxy's server is not ours: nothing of others is touched, or killed
    pid: int = 0
    start_time: int = 0
    container: str = ""  # its name, if the replica is one; pid is that of its first process
    engine: str = ""  # URL of its docker daemon
    token: str = ""  # for the admin routes of stand-ins; the ledger is 0600
    simulates: str = ""  # what it stands in for: "gpu store metrics", any of them
    metrics_path: str = ""  # of its Prometheus metrics
    tls: str = ""  # folder of its certificate if it speaks TLS only; see survive.tls
    run: str = ""  # id of the run: whatever a fault makes bears it
    nofile: int = 0  # the process's limit of open files before any fault; 0 = unknown
    cgroup: str = ""  # its control group for cpu before any fault; "" = none that we may change
    netns: str = ""  # who holds the network namespace that it lives in: "pid:start time"
    peer_netns: str = ""  # links: of a caller, "" = the host's own; replicas: of the name server
    peers: str = ""  # links of isolated targets: the callers' addresses, comma-separated
    resolver: str = ""  # replicas of isolated targets: the name server's address and their own name

    @property
    def replica_id(self) -> str:
        """``inference-1``: the id that answers in the replica header."""
        return f"{self.service}-{self.replica}"


@dataclass(frozen=True, slots=True)
class Injection:
    """One planned use of a fault on one thing. In the ledger *before* it happens."""

    id: str  # "<fault>#<n>", unique in a run
    fault: str  # the scenario's name for it
    kind: str  # "network.latency"
    settings: dict[str, Json]  # as written: {"latency": "300ms"}; and what the fault remembers
    handle: HandleSpec
    at_us: int  # planned
    until_us: int | None  # planned heal; None = one-shot

    def to_json(self) -> dict[str, Json]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Injection:
        """The inverse of to_json."""
        return cls(**{**data, "handle": HandleSpec(**data["handle"])})

    def aimed_at(self, handle: HandleSpec) -> Injection:
        """The same injection on a freshly resolved handle (a replica may have restarted)."""
        return replace(self, handle=handle)


@dataclass(frozen=True, slots=True)
class Toxic:
    """One toxic on a link, in Toxiproxy's own words."""

    name: str
    type: str  # latency, ...
    stream: str = "downstream"  # downstream | upstream
    toxicity: float = 1.0
    attributes: dict[str, Json] = field(default_factory=dict)


class Handle(Protocol):
    """What every handle offers: the spec, the clock, and the wire for observations."""

    spec: HandleSpec
    clock: Clock
    transport: Transport


class ReplicaHandle(Handle, Protocol):
    """One replica of a service. All verbs are idempotent; a gone process is no error."""

    async def kill(self) -> None:
        """End it at once, as SIGKILL does."""

    async def stop(self) -> None:
        """Ask it to end, as SIGTERM does: it may finish what it has begun."""

    async def pause(self) -> None:
        """Stop its clock, as SIGSTOP does: ports stay open, nothing answers."""

    async def resume(self) -> None:
        """Let it go on."""

    async def exists(self) -> bool:
        """The very process that the spec names (pid *and* start time) is there, zombies excluded.

        Read from the operating system (virtual: through the transport), never remembered.
        """


class CertifiedHandle(ReplicaHandle, Protocol):
    """A replica behind a `tls: true` link."""

    async def certify(self, *, expired: bool) -> None:
        """Serve a certificate that has expired, or the good one. Raises FaultFailedError."""


class Pressure(Protocol):
    """What can be done around one process. ``name`` is an injection's id: what is made bears it.

    All undoing is idempotent, and legal if nothing was done or the process is gone.
    """

    async def start_helper(self, name: str, what: Sequence[str], lifetime_s: float) -> None:
        """A helper process, ready; it ends by itself after its time. Raises FaultFailedError.

        ``what``: ``burn CPU,CPU WORKERS`` or ``memory BYTES``.
        """

    def helpers(self, name: str) -> list[int]:
        """Pids of all its processes."""

    async def end_helpers(self, name: str) -> None:
        """None of them is left; raises FaultFailedError."""

    def free_files(self) -> int | None:
        """File numbers below its limit that are free; None if it is gone."""

    def exhaust_files(self) -> None:
        """Lower its limit so that it can open no file and accept no connection any more."""

    def restore_files(self) -> None:
        """The limit that it had before any fault."""

    def limit_cpu(self, name: str, cpus: float) -> None:
        """Hold it and its group to so many CPUs. Raises FaultFailedError."""

    def unlimit_cpu(self, name: str) -> None:
        """Back in its own control group; ours is gone. Raises FaultFailedError."""

    def throttled(self, name: str) -> int | None:
        """How often the kernel held it back by that limit; None if it is under none of ours."""


class ProcessHandle(ReplicaHandle, Protocol):
    """A replica that is a process of this host."""

    @property
    def pressure(self) -> Pressure:
        """What can be done around it."""


class LinkHandle(Handle, Protocol):
    """One listener of the fault proxy, in front of one replica."""

    async def add(self, toxic: Toxic) -> None:
        """Create or replace the toxic; raises FaultFailedError unless read-back shows it."""

    async def remove(self, name: str) -> None:
        """Remove the toxic; absent is success; raises FaultFailedError if read-back shows it."""

    async def enable(self, on: bool) -> None:
        """Open (True) or close (False) the listener and its connections; read back."""

    async def counts(self, name: str) -> Mapping[str, int] | None:
        """What an HTTP toxic counted: requests seen, hits, controls, missed. Evidence, no proof.

        Empty if there is no such toxic, None if nothing can be read.
        """

    async def seen(self) -> Mapping[str, int]:
        """``{"tls": n, "plain": n}``: connections since the listener exists, by first bytes.

        A connection that sent nothing is neither. Raises RefusedError where nobody can tell.
        """


class GpuHandle(Handle, Protocol):
    """The (simulated) GPU of one replica, by its control channel, not by the data path."""

    async def set_state(self, **state: Json) -> None:
        """Set any of ``lost hung: bool``, ``slow_down: float`` (1.0 = none), ``retries taken:
        float`` (0..1), ``xid: str``; raises FaultFailedError."""


class StandInHandle(Handle, Protocol):
    """The switches of a reference service, by its control channel, not by the data path."""

    async def set_state(self, **state: Json) -> None:
        """Turn switches on or off (bool); raises FaultFailedError."""


class FaultFailedError(Exception):
    """An inject or heal that did not do its work. Evidence, judged by us; never a crash."""


class Fault(Protocol):
    """One thing that can be broken and mended. Knows nothing of requests or objectives.

    Implementations are plain classes without state, found by the catalog: ``kind: network.latency``
    is the class with that ``kind`` in ``faults/network.py``. All class data below is required.
    """

    kind: ClassVar[str]
    held: ClassVar[bool]  # has `for:` and is healed; else one-shot
    grade: ClassVar[Grade]
    layer: ClassVar[str]  # network | node | gpu | ...
    needs: ClassVar[Needs]
    privileges: ClassVar[str]  # "" = none
    keeps_down: ClassVar[bool]  # the supervisor must not restart its victim while held
    certifies: ClassVar[str]  # what a survived fault shows
    does_not_certify: ClassVar[str]  # what it does not
    settings: ClassVar[type]  # frozen dataclass of Duration, Share, Factor, ... fields

    def preflight(self, settings: Any, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """What will be hit, chosen from candidates; changes nothing. Empty = refuse (6)."""

    async def inject(self, injection: Injection, handle: Any) -> None:
        """Break it. Raises FaultFailedError."""

    async def observe(self, injection: Injection, handle: Any, before: float | None) -> Observation:
        """Look from outside, within 1 s, by another channel than inject used.

        A fault whose looks take longer while it is on says so: see ``look_s``.

        ``before`` is the median ``value`` of the observations made before inject, or None.
        """

    async def heal(self, injection: Injection, handle: Any) -> None:
        """Mend it. Idempotent; legal if inject never ran, half ran, or the thing is gone."""

    async def round_trip(self, injection: Injection, handle: Any) -> bool:
        """After heal: the way through the healed thing works (one positive answer). Held only."""


OBSERVE_S = 1.0


def look_s(fault: Fault, settings: Mapping[str, Json]) -> float:
    """How long a look may take while the fault is on: 1 s, or what it says if that is more.

    It says so by ``look_s(settings) -> float``, optional, of settings as written.
    """
    asked: Callable[[Mapping[str, Json]], float] | None = getattr(fault, "look_s", None)
    return OBSERVE_S if asked is None else max(OBSERVE_S, asked(settings))


def check_host(fault: Fault, settings: Any, here: HandleSpec) -> None:
    """Raises RefusedError if this host cannot have the fault on such a thing as ``here``.

    It says so by ``check_host(settings, here)``, optional, which is what its preflight asks of
    the host: WrongTargetError if it would hit another kind of thing. Changes nothing, calls no
    other host. ``settings`` None = those of no scenario yet.
    """
    asked: Callable[[Any, HandleSpec], None] | None = getattr(fault, "check_host", None)
    if asked is not None:
        asked(settings, here)


# ---------------------------------------------------------------------------------- services

Scope: TypeAlias = dict[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[dict[str, Any]]]
Send: TypeAlias = Callable[[dict[str, Any]], Awaitable[None]]
AsgiApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


class Call(Protocol):
    """A service's way to another service."""

    async def __call__(self, address: str, request: Request, *, timeout_s: float) -> Response:
        """See Transport.call."""


@dataclass(frozen=True, slots=True)
class ServiceContext:
    """All that a reference service may know of the outside world.

    ``env`` holds SURVIVE_REPLICA (``inference-1``), the variables of links (comma-separated
    ``host:port``, of TLS links ``https://host:port``), SURVIVE_KEY, SURVIVE_GPU_TOKEN,
    SURVIVE_ADMIN_TOKEN, SURVIVE_WEAKNESSES (comma-separated), SURVIVE_DATA (a
    folder that outlives the replica's restarts) and the service's own ``env``. A service uses no
    other clock, chance or way to the network. ``exit`` ends it at once with an exit code, as a
    crash does.
    """

    clock: Clock
    random: random.Random
    env: Mapping[str, str]
    call: Call
    spawn: Callable[[Coroutine[Any, Any, None]], None]  # a background task that dies with it
    exit: Callable[[int], None] = sys.exit


# ``app: "gateway.py:make_app"`` names one of these.
MakeApp: TypeAlias = Callable[[ServiceContext], AsgiApp]


class Reporter(Protocol):
    """A view on a stored run."""

    def render(self, record: Record, verdict: Verdict) -> bytes:
        """The whole report. Pure."""


class Choosing(Reporter, Protocol):
    """A reporter that shows a part of a run, as ``report --request --series --window`` ask."""

    def choose(self, request: str = "", series: str = "", window: str = "") -> Reporter:
        """The same for that part; "" = what it shows unasked. Raises UsageError."""
