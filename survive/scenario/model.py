"""A valid scenario, as the rest of the code sees it: frozen, in base units, nothing left open.

The loader is the only maker. Durations are integer microseconds, rates exact requests per second
*after* scale, shares 0..1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Any

from survive.contracts import Json
from survive.units import Cost, Price


class Metric(StrEnum):
    """What an objective can limit."""

    # of load, by request kind
    SUCCESS = "success"
    COMPLETE = "complete"
    LATENCY = "latency"
    SERVICE_TIME = "service_time"
    TTFT = "ttft"
    ITL = "itl"
    TPOT = "tpot"
    GOODPUT = "goodput"  # requests within all their limits, per second
    TOKENS_PER_S = "tokens_per_s"
    AMPLIFICATION = "amplification"  # attempts ÷ intents
    # of the target as a whole
    RECOVERY = "recovery"
    SCALE_UP = "scale_up"  # from the start of a phase until the steady objectives hold again
    COST = "cost"
    # of probes, by probe
    DENIED = "denied"
    LEAKED = "leaked"
    ISOLATED = "isolated"
    FRESHNESS = "freshness"
    AUDITED = "audited"
    ENCRYPTED = "encrypted"
    # scraped from the target's own metrics
    REPLICAS = "replicas"
    GPU = "gpu"
    KV = "kv"
    QUEUE = "queue"


PROBED = frozenset(
    {
        Metric.DENIED,
        Metric.LEAKED,
        Metric.ISOLATED,
        Metric.FRESHNESS,
        Metric.AUDITED,
        Metric.ENCRYPTED,
    }
)
GAUGES = frozenset({Metric.REPLICAS, Metric.GPU, Metric.KV, Metric.QUEUE})
STREAMS = frozenset({Metric.TTFT, Metric.ITL, Metric.TPOT, Metric.COMPLETE})
TIMED = frozenset(
    {Metric.LATENCY, Metric.SERVICE_TIME, Metric.TTFT, Metric.ITL, Metric.TPOT}
)  # of load, with a percentile
TALLIED = frozenset({Metric.SUCCESS, Metric.COMPLETE, *TIMED})  # a share of requests is judged
_AT_LEAST = frozenset(
    {
        Metric.SUCCESS,
        Metric.COMPLETE,
        Metric.GOODPUT,
        Metric.TOKENS_PER_S,
        Metric.DENIED,
        Metric.ISOLATED,
        Metric.AUDITED,
        Metric.ENCRYPTED,
    }
)


@dataclass(frozen=True, slots=True)
class Expect:
    """What makes an answer ok. A stream counts as ok only if complete when so asked."""

    status: frozenset[int] = frozenset({200})
    stream_complete: bool = False  # `stream: complete`: finish reason and [DONE] were seen
    tokens: int | None = None  # exactly so many output tokens
    json: bool = False  # the (whole) answer is JSON
    has: tuple[str, ...] = ()  # and has something at these places, like choices.0.message


@dataclass(frozen=True, slots=True)
class RequestKind:
    """One kind of call that users make. Templates are still unrendered."""

    name: str
    share: float  # of all arrivals, 0..1; kinds sum to 1
    method: str
    path: str  # template
    headers: tuple[tuple[str, str], ...] = ()
    json: Json = None  # template; None = no body
    auth: str = "bearer"  # bearer | none | the name of one of the target's identities
    data: Path | None = None  # rows for {{ row.x }}
    expect: Expect = Expect()
    timeout_us: int = 10_000_000

    @property
    def streamed(self) -> bool:
        """The body asks for a stream of server-sent events."""
        return isinstance(self.json, dict) and self.json.get("stream") is True


@dataclass(frozen=True, slots=True)
class Retries:
    """What users do when a call fails: ask again, later each time, until their deadline.

    The n-th wait is drawn from [first, first × 2^n], at most ``last``; an answer's Retry-After is
    the least wait if it is honoured. The intent stays one: latency counts from its first start.
    """

    most: int = 0  # attempts beyond the first
    first_us: int = 500_000
    last_us: int = 8_000_000
    honour_retry_after: bool = True


@dataclass(frozen=True, slots=True)
class ProbeCall:
    """One call of a probe. Templates are unrendered; ``{{ canary }}`` is new for each probing."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()
    json: Json = None
    auth: str = "bearer"  # bearer | none | the name of one of the target's identities
    status: frozenset[int] = frozenset({200})

    @property
    def streamed(self) -> bool:
        """The body asks for a stream of server-sent events."""
        return isinstance(self.json, dict) and self.json.get("stream") is True

    def by(self, identity: str) -> ProbeCall:
        """The same call by somebody else."""
        return replace(self, auth=identity)


@dataclass(frozen=True, slots=True)
class Probe:
    """A slow, separate caller that checks what load cannot. ``metric`` says what one finding means.

    ============  =======================================================  =================
    metric        one probing is good if                                   keys
    ============  =======================================================  =================
    denied        the call is answered with one of ``status``              ask
    leaked        ``forbid`` is not in the (whole, 200) answer             ask, forbid
    isolated      another identity reads, and never finds the canary       write, read
    freshness     the writer reads the canary within ``within``            write, read
    audited       its call has exactly one record in the audit log         ask, service
    encrypted     no plain byte was seen on the link since the last look   link
    ============  =======================================================  =================
    """

    name: str
    metric: Metric
    every_us: int
    ask: ProbeCall | None = None
    write: ProbeCall | None = None
    read: ProbeCall | None = None
    within_us: int = 5_000_000  # freshness: later is never; others: the deadline of a call
    forbid: str = ""  # template
    service: str = ""  # whose audit log
    link: str = ""  # "gateway -> inference"


@dataclass(frozen=True, slots=True)
class Users:
    """The closed model of a phase: each user asks, waits for the answer, thinks, asks again.

    From ``start`` to ``end`` users, one after the other. The think time is ``think_us``, or drawn
    from an exponential distribution of that mean.
    """

    start: int
    end: int
    think_us: int = 0
    exponential: bool = False

    @property
    def most(self) -> int:
        """The most at once."""
        return max(self.start, self.end)


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of the load. Constant if both rates are equal, and it is no sine around them.

    With ``users`` it has no rate (0): how often they ask depends on the answers. A spike has one
    rate too, and is not constant: what a stack does for a few seconds of many times its load says
    nothing of its steady state.
    """

    name: str
    start_us: int
    end_us: int
    start_rps: Fraction
    end_rps: Fraction
    curve: str = "linear"  # linear | exponential | steps, of ramps; sine
    warm_up: bool = False
    shares: Mapping[str, float] = field(default_factory=dict)  # kind → share, sums to 1
    swing: float = 0.0  # of a sine: its amplitude as a part of the rate, < 1
    period_us: int = 0  # of a sine; the phase is whole periods long, so the mean is the rate
    steps: int = 0  # of a ramp in steps: how many, equally long; the last one has the end rate
    spike: bool = False
    users: Users | None = None

    @property
    def constant(self) -> bool:
        """A rate (or users) that does not change: only such phases make up ``steady``."""
        if self.users is not None:
            return self.users.start == self.users.end
        return self.start_rps == self.end_rps and self.curve != "sine" and not self.spike

    def step_rps(self, step: int) -> Fraction:
        """The rate of the n-th step, n from 1."""
        return self.start_rps + (self.end_rps - self.start_rps) * Fraction(step, self.steps)

    @property
    def peak_rps(self) -> Fraction:
        """The highest rate."""
        return max(self.start_rps, self.end_rps) * (1 + Fraction(self.swing))


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """The whole schedule of the load, before chance."""

    arrivals: str  # poisson | uniform | bursty cv N | trace cv N | a preset; see arrivals.py
    scale: Fraction
    lanes: int  # connections, each with one request at a time
    lanes_needed: int  # ceil(peak rate × largest timeout × 1.2); more if bursty
    phases: tuple[Phase, ...]
    trace_us: tuple[int, ...] = ()  # moments of a trace that is replayed, from its first
    max_extend_us: int = 60_000_000  # of the last phase, by `--inconclusive extend`
    affinity: str = "none"  # | auto: see survive.host.affinity
    locustfile: Path | None = None  # whose users make the requests; relative to the scenario

    @property
    def end_us(self) -> int:
        """End of the last phase; the drain follows."""
        return self.phases[-1].end_us

    @property
    def closed(self) -> bool:
        """Users instead of a rate; either is of all phases."""
        return self.phases[-1].users is not None


LINKS_JOINED_BY = ", "  # no name of a service holds a comma


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """One fault of the scenario, its time resolved to the run's clock."""

    name: str
    kind: str
    at_us: int
    for_us: int | None  # None = one-shot
    service: str = ""
    link: str = ""  # "gateway -> inference"; of several "a -> b, c -> d"
    count: int = 1  # victims of a replica or GPU fault
    settings: Mapping[str, Json] = field(default_factory=dict)  # as written; see `parse_settings`
    pool: str = ""  # of a repeated fault (`x#1`): the scenario's own name for all of them (`x`)

    @property
    def links(self) -> tuple[str, ...]:
        """The links that it is on."""
        return tuple(self.link.split(LINKS_JOINED_BY)) if self.link else ()

    @property
    def until_us(self) -> int | None:
        """Planned heal."""
        return None if self.for_us is None else self.at_us + self.for_us


@dataclass(frozen=True, slots=True)
class Hysteresis:
    """Three phases that show a loop: the load as it was, far less, and as it was once more."""

    before: str
    relief: str
    again: str


@dataclass(frozen=True, slots=True)
class Objective:
    """A limit on a metric in a window.

    ``percentile`` 0.95 for ``ttft.p95``, else None; of gauges: the share of scrapes within.
    ``limit`` is a share (success, complete, gpu, kv and what probes find), microseconds (times,
    recovery, scale_up), a count (replicas, queue), per second (goodput, tokens_per_s), a factor
    (amplification) or money (cost, per what ``cost`` says).
    """

    name: str
    metric: Metric
    limit: float
    percentile: float | None = None
    of: tuple[str, ...] = ()  # request kinds, probes or services; never empty (all that have it)
    during: str = ""  # steady | run | each fault | phase:x | fault:x | recovery:x
    stable_for_us: int = 0  # recovery and scale_up
    bound: str = ""  # min | max; "" = the one that the metric has (gauges have both)
    cost: Cost | None = None  # of the metric cost: what `limit` is paid for
    hysteresis: Hysteresis | None = None  # recovery only

    @property
    def at_least(self) -> bool:
        """The limit is a minimum."""
        return self.bound == "min" if self.bound else self.metric in _AT_LEAST


@dataclass(frozen=True, slots=True)
class StopIf:
    """Stops the run: a share of good answers below a limit over a span."""

    name: str
    below: float
    over_us: int
    of: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Health:
    """How a service says that it is ready."""

    path: str = "/health"
    within_us: int = 10_000_000


@dataclass(frozen=True, slots=True)
class Service:
    """One service of the target."""

    name: str
    app: str = ""  # "gateway.py:make_app"
    run: tuple[str, ...] = ()  # own program; "{port}" is replaced by its port
    url: str = ""  # external: "http://127.0.0.1:8080", "https://…", "unix:/run/x.sock"
    ca: str = ""  # file of the authority that an https url is verified with; "" = the system's
    replicas: int = 1
    standby: int = 0  # of them, the last ones: spares that sleep until an autoscaler wakes them
    gpu: str = ""  # "" | "simulated"
    simulates: tuple[str, ...] = ()  # "store", "metrics": what faults may break by its admin route
    health: Health = Health()
    metrics: str = ""
    audit_file: str = ""
    restart_after_us: int | None = None  # None = not supervised
    env: Mapping[str, str] = field(default_factory=dict)  # may hold ${ENV}


@dataclass(frozen=True, slots=True)
class Link:
    """Who calls whom; the source gets the addresses in ``env``."""

    source: str
    dest: str
    env: str
    tls: bool = False  # addresses are handed over as https://host:port; certificates of our own CA

    @property
    def name(self) -> str:
        """``gateway -> inference``."""
        return f"{self.source} -> {self.dest}"


@dataclass(frozen=True, slots=True)
class TargetSpec:
    """The stack under test."""

    name: str
    driver: str  # process | compose | external
    entry: str  # service that load goes to
    services: Mapping[str, Service]
    links: Mapping[str, Link]  # by Link.name; `load -> <entry>` is implied
    vars: Mapping[str, Json] = field(default_factory=dict)
    bearer: str = ""  # "" | literal "${ENV}" text, resolved at run time only
    identities: Mapping[str, str] = field(default_factory=dict)  # name → bearer text, as above
    prices: Mapping[str, Price] = field(default_factory=dict)
    allow_hosts: tuple[str, ...] = ("127.0.0.1",)
    allow_faults: tuple[str, ...] = ()
    allow_privileged: bool = False  # half of the permission; --allow-privileged is the other
    allow_max_faults: int = 3  # at once
    allow_max_duration_us: int = 300_000_000  # of one fault
    weaknesses: tuple[str, ...] = ()
    folder: Path = Path()  # where `app:` files are looked up
    compose: str = ""  # path of the compose file, driver compose only
    toxiproxy: str = ""  # host:port of a server for the fault proxies; "" = the embedded one
    isolation: str = ""  # "" | netns: each replica in a network namespace of its own

    @property
    def entry_link(self) -> str:
        """The link that load itself uses."""
        return f"load -> {self.entry}"


@dataclass(frozen=True, slots=True)
class Scenario:
    """Everything that the files say. ``raw`` and ``raw_target`` are the resolved mappings
    (profile and ``--set`` applied, secrets still ``${ENV}``), written into the run directory."""

    name: str
    about: str
    seed: int
    target: TargetSpec
    requests: Mapping[str, RequestKind]
    gives_up_after_us: int | None
    load: LoadSpec
    faults: Mapping[str, FaultPlan]
    objectives: Mapping[str, Objective]
    stop_if: Mapping[str, StopIf]
    folder: Path  # of the scenario file; data files are relative to it
    raw: Mapping[str, Any] = field(default_factory=dict)
    raw_target: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()  # e.g. too few planned samples, fewer lanes than needed
    probes: Mapping[str, Probe] = field(default_factory=dict)
    retries: Retries = Retries()
    kills: Mapping[str, str] = field(default_factory=dict)  # weakness → objective; see survive.exam
    claims: Mapping[str, str] = field(default_factory=dict)  # what people say → objective
    file: Path | None = None  # as it was named to us; None = it was made by no file
    lines: Mapping[str, int] = field(default_factory=dict)  # of its objectives in that file
