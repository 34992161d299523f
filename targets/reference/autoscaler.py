"""The autoscaler of the reference stack: as many inference replicas awake as the load needs.

Every half second it asks each replica's /health and /metrics (link variable INFERENCE) and decides
as KEDA and the vLLM stack do, by the waiting queue and KV use, for a GPU's utilisation says little:
one replica more for each WAITING_PER_REPLICA requests that wait, one more when the KV caches are
KV_HIGH full. It wakes sleeping replicas at once, lowest number first; one that is awake yet not
healthy does not count, so a spare takes its place. Fewer are wanted only after COOL_DOWN of low
use, one at a time, highest number first, never under MIN_REPLICAS (default 1). A replica whose
metrics do not answer keeps its last ones.

Routes: GET /health, GET /metrics (``autoscaler_desired_replicas``, ``autoscaler_awake_replicas``,
``autoscaler_wakes_total``, ``autoscaler_sleeps_total``).

Weakness ``slow_scale_up``: it looks every 15 s, as metrics pipelines do by default, and wants to
have seen the need for 30 s. While load and capacity stand still nobody can tell.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass

from survive.clock import Clock
from survive.contracts import AsgiApp, Call, ServiceContext
from survive.transport import CallFailedError, Request, Response, read_all

from .asgi import Exchange, routed
from .metrics import family, page
from .stand_in import StandIn

WAITING_PER_REPLICA = 5
KV_HIGH = 0.8
LOW_RUNNING = 0.35  # of the places of those that would stay: under it one may sleep
PLACES = 16  # of one batch, gpu.Profile.max_sequences
COOL_DOWN_US = 15_000_000
CALL_S = 0.4  # under the pace, so that a hanging replica delays no decision

_GAUGES = re.compile(
    r"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc|engine_sleep_state)"
    r"\{[^}]*\} (\S+)$",
    re.MULTILINE,
)
_HEALTH = Request("GET", "/health")
_METRICS = Request("GET", "/metrics")


@dataclass(frozen=True, slots=True)
class Pace:
    """How often it looks, and for how long it must have seen a need."""

    every_us: int = 500_000
    stabilise_us: int = 0


SLOW = Pace(every_us=15_000_000, stabilise_us=30_000_000)


@dataclass(slots=True)
class Seen:
    """One replica as the autoscaler knows it."""

    address: str
    healthy: bool = False
    asleep: bool = False
    loading: bool = False
    running: float = 0.0
    waiting: float = 0.0
    kv: float = 0.0


def make_app(context: ServiceContext) -> AsgiApp:
    """See ServiceContext. Starts its loop."""
    weak = context.env.get("SURVIVE_WEAKNESSES", "").split(",")
    scaler = Autoscaler(context, SLOW if "slow_scale_up" in weak else Pace())
    context.spawn(scaler.run())
    stand_in = StandIn(context, "metrics_down")
    return routed(
        {
            "/health": {"GET": scaler.health},
            "/metrics": {"GET": stand_in.unless("metrics_down", scaler.metrics)},
            **stand_in.routes(),
        },
        context.env.get("SURVIVE_REPLICA", ""),
    )


class Autoscaler:
    """What it knows, what it wants, and its loop."""

    def __init__(self, context: ServiceContext, pace: Pace) -> None:
        self._clock: Clock = context.clock
        self._call: Call = context.call
        self._token = context.env.get("SURVIVE_ADMIN_TOKEN", "")
        self._pace = pace
        addresses = [a for a in context.env.get("INFERENCE", "").split(",") if a]
        self.replicas = [Seen(address) for address in addresses]
        self._least = int(context.env.get("MIN_REPLICAS", "1"))
        self.desired = self._least
        self._wakes = self._sleeps = 0
        self._trend = 0
        self._trend_since_us = 0

    async def run(self) -> None:
        """Look, decide, act; for ever."""
        due_us = self._clock.now_us()
        while True:
            due_us += self._pace.every_us
            await self._clock.sleep_until(due_us)
            await asyncio.gather(*(self._look(replica) for replica in self.replicas))
            await self._act(self.decide(self._clock.now_us()))

    # ----------------------------------------------------------------------------- looking

    async def _look(self, replica: Seen) -> None:
        health = await self._ask(replica, _HEALTH)
        replica.healthy = health is not None and health[0].status == 200
        stage = "" if health is None else health[0].headers.get("x-replica-state", "")
        replica.asleep = stage in {"asleep", "draining"}
        replica.loading = stage == "loading"
        if replica.healthy and (metrics := await self._ask(replica, _METRICS)):
            read_gauges(replica, metrics[1].decode("utf-8", "replace"))

    async def _ask(self, replica: Seen, request: Request) -> tuple[Response, bytes] | None:
        try:
            async with asyncio.timeout(CALL_S):
                response = await self._call(replica.address, request, timeout_s=CALL_S)
                return response, await read_all(response)
        except (CallFailedError, TimeoutError):
            return None

    # ---------------------------------------------------------------------------- deciding

    def decide(self, now_us: int) -> int:
        """How many should be awake. A need that is too fresh, or just ended, changes nothing."""
        serving = [replica for replica in self.replicas if replica.healthy]
        self.desired = len(serving)
        wanted = max(self._least, wanted_of(serving))
        if wanted > len(serving):
            if self._since(+1, now_us) >= self._pace.stabilise_us:
                self.desired = min(wanted, len(self.replicas))
        elif wanted == len(serving):
            self._since(0, now_us)
        elif self._since(-1, now_us) >= COOL_DOWN_US:
            self._trend_since_us = now_us
            self.desired = len(serving) - 1
        return self.desired

    def _since(self, trend: int, now_us: int) -> int:
        """For how long more (+1), as many (0) or fewer (-1) have been wanted."""
        if trend != self._trend:
            self._trend, self._trend_since_us = trend, now_us
        return now_us - self._trend_since_us

    async def _act(self, desired: int) -> None:
        awake = [r for r in self.replicas if r.healthy or r.loading]
        asleep = [r for r in self.replicas if r.asleep]
        for replica in asleep[: max(0, desired - len(awake))]:
            self._wakes += await self._tell(replica, "/admin/wake")
        serving = [r for r in self.replicas if r.healthy]
        if len(serving) > desired:
            self._sleeps += await self._tell(serving[-1], "/admin/sleep")

    async def _tell(self, replica: Seen, path: str) -> int:
        request = Request("POST", path, (("x-gpu-token", self._token),))
        answer = await self._ask(replica, request)
        return int(answer is not None and answer[0].status == 200)

    # ------------------------------------------------------------------------------ telling

    async def health(self, exchange: Exchange) -> None:
        """200: the loop runs, or the service would not."""
        await exchange.json(200, {"status": "ok"})

    async def metrics(self, exchange: Exchange) -> None:
        """Prometheus text."""
        awake = sum(replica.healthy or replica.loading for replica in self.replicas)
        ready = sum(replica.healthy for replica in self.replicas)
        await exchange.text(
            200,
            page(
                family("autoscaler_desired_replicas", "gauge", "Wanted.", {(): self.desired}),
                family("autoscaler_awake_replicas", "gauge", "Paid for.", {(): awake}),
                family("autoscaler_ready_replicas", "gauge", "May be asked.", {(): ready}),
                family("autoscaler_wakes_total", "counter", "Woken.", {(): self._wakes}),
                family("autoscaler_sleeps_total", "counter", "Put to sleep.", {(): self._sleeps}),
            ),
        )


def wanted_of(serving: Sequence[Seen]) -> int:
    """How many replicas the load of those that serve needs."""
    count = len(serving)
    if count == 0:
        return 1
    waiting = sum(replica.waiting for replica in serving)
    if waiting >= WAITING_PER_REPLICA:
        return count + int(waiting // WAITING_PER_REPLICA)
    if sum(replica.kv for replica in serving) / count >= KV_HIGH:
        return count + 1
    running = sum(replica.running for replica in serving)
    if count > 1 and running + waiting < LOW_RUNNING * PLACES * (count - 1):
        return count - 1
    return count


def read_gauges(replica: Seen, text: str) -> None:
    """Take what a page of vLLM's metrics says."""
    gauges = dict(_GAUGES.findall(text))
    replica.running = float(gauges.get("num_requests_running", replica.running))
    replica.waiting = float(gauges.get("num_requests_waiting", replica.waiting))
    replica.kv = float(gauges.get("kv_cache_usage_perc", replica.kv))
