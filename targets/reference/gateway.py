"""The gateway of the reference stack: one door in front of inference, retrieval and live data.

Routes: POST /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/documents,
/v1/documents/bulk, /v1/token, GET /v1/search (bearer key), GET /healthz, GET /metrics. It routes to
the least loaded healthy replica, ejects failing ones, bounds every wait, and asks one other replica
if the first fails before the client got a byte. A stream that breaks under it ends without its end,
so that no client takes a torso for an answer.

What a production gateway does beyond that is asked for by the environment, see ``_care`` and
``_manners``: TENANTS (keys.py; then callers and deadlines are named to services), IDENTITY
(door.py), QUOTAS (quotas.py), ROUTING ``least-loaded | round-robin | session`` (header x-session),
BREAKERS, SLOW_START, RETRY_BUDGET and RESUME ``on``, AUDIT a file name (audit.py), SYSTEM_SECRET
(guard.py), PIPELINE (who takes documents in retrieval's place).

Weaknesses (SURVIVE_WEAKNESSES): ``no_health_checks``: no ejection, and the retry goes by the same
routing, so a replica that fails fast looks idle and draws all calls; ``no_timeout``: no upstream
deadlines, those of health checks among them; ``unbounded_queue``: no cap on calls in flight; those
of forward.py, upstreams.py, door.py, audit.py and guard.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias
from urllib.parse import quote

from survive.clock import Clock
from survive.contracts import AsgiApp, Json, ServiceContext
from survive.transport import Headers, Request

from .asgi import ClientLeftError, Exchange, RefusalError, json_object, routed
from .audit import AuditLog
from .door import Door
from .forward import Errand, Forwarder, Limits, Manners
from .guard import Guard
from .keys import BATCH, TOKEN_LIFE_S, Tenant
from .links import downgrading
from .metrics import Labels, family, page
from .quotas import BATCH_SHARE, Quotas
from .retries import RetryBudget
from .stand_in import StandIn
from .upstreams import CHECK_TIMEOUT_S, Care, Upstreams

NO_DEADLINE_S = 86_400.0
SLOW_START_US = 3_000_000
_QUERY_SAFE = "%&=+/?:@!$'()*,;[]|-._~"
_JSON_HEADERS: Headers = (("content-type", "application/json"),)
MAX_REQUEST_ID = 128  # characters that are kept of a caller's own
_CHAT = "/v1/chat/completions"


@dataclass(slots=True)
class Incoming:
    """One admitted request. ``headers``: what services are told of it."""

    exchange: Exchange
    tenant: Tenant
    request_id: str
    headers: Headers


_Handler: TypeAlias = Callable[[Incoming], Awaitable[int]]


def make_app(context: ServiceContext) -> AsgiApp:
    """See ServiceContext. Starts the health checks."""
    return make_gateway(context, Limits())


def make_gateway(context: ServiceContext, limits: Limits) -> AsgiApp:
    """make_app with other limits."""
    weak = _weaknesses(context)
    if "plaintext_link" in weak:
        context = replace(context, call=downgrading(context.call))
    if "no_timeout" in weak:
        limits = Limits(NO_DEADLINE_S, NO_DEADLINE_S, NO_DEADLINE_S, limits.in_flight)
    if "unbounded_queue" in weak:
        limits = replace(limits, in_flight=None)
    gateway = Gateway(context, limits, _services(context, weak))
    stand_in = StandIn(context, "metrics_down")
    return routed(
        {
            _CHAT: {"POST": gateway.entered(gateway.chat)},
            "/v1/completions": {"POST": gateway.entered(gateway.chat)},
            "/v1/embeddings": {"POST": gateway.entered(gateway.embed)},
            "/v1/search": {"GET": gateway.entered(gateway.search)},
            "/v1/documents": {"POST": gateway.entered(gateway.add_document)},
            "/v1/documents/bulk": {"POST": gateway.entered(gateway.add_document)},
            "/v1/token": {"POST": gateway.entered(gateway.token)},
            "/healthz": {"GET": gateway.health},
            "/metrics": {"GET": stand_in.unless("metrics_down", gateway.metrics)},
            **stand_in.routes(),
        }
    )


def _weaknesses(context: ServiceContext) -> frozenset[str]:
    return frozenset(context.env.get("SURVIVE_WEAKNESSES", "").split(","))


def _services(context: ServiceContext, weak: frozenset[str]) -> dict[str, Upstreams]:
    """Who is behind the gateway; their checks begin."""
    services: dict[str, Upstreams] = {}
    for service, variable in (
        ("inference", "UPSTREAMS"),
        ("retrieval", "RETRIEVAL"),
        ("pipeline", "PIPELINE"),
    ):
        addresses = _addresses(context.env, variable)
        if service == "pipeline" and not addresses:
            continue
        care = _care(context.env, weak, service)
        upstreams = Upstreams(service, addresses, care, context.clock, context.random)
        services[service] = upstreams
        for upstream in upstreams.all:
            if care.checked:
                context.spawn(upstreams.check(upstream, context.call))
            elif context.env.get("DISCOVERY") == "on":
                context.spawn(upstreams.discover(upstream, context.call))
            if care.by_metrics:
                context.spawn(upstreams.scrape(upstream, context.call))
    return services


def _care(env: Mapping[str, str], weak: frozenset[str], service: str) -> Care:
    """How replicas of one service are chosen and watched."""
    return Care(
        check_s=NO_DEADLINE_S if "no_timeout" in weak else CHECK_TIMEOUT_S,
        checked="no_health_checks" not in weak,
        trials=env.get("BREAKERS") == "on",
        slow_start_us=SLOW_START_US
        if env.get("SLOW_START") == "on" and "thundering_herd" not in weak
        else 0,
        sessions=env.get("ROUTING") == "session" or "sticky_dead_replica" in weak,
        sticky="sticky_dead_replica" in weak,
        round_robin=env.get("ROUTING") == "round-robin",
        by_metrics="metrics_dependency" in weak and service == "inference",
    )


def _manners(context: ServiceContext, weak: frozenset[str]) -> Manners:
    """How the gateway asks."""
    budgeted = context.env.get("RETRY_BUDGET") == "on" and "retry_storm" not in weak
    return Manners(
        budget=RetryBudget(context.clock) if budgeted else None,
        resumes=RetryBudget(context.clock, 1.0) if context.env.get("RESUME") == "on" else None,
        storms="retry_storm" in weak,
        herds="thundering_herd" in weak,
        forges="silent_truncation" in weak,
    )


def _audit_log(context: ServiceContext, *, lossy: bool) -> AuditLog | None:
    name = context.env.get("AUDIT", "")
    if not name:
        return None
    return AuditLog(context, Path(context.env["SURVIVE_DATA"]) / name, lossy=lossy)


def _addresses(env: Mapping[str, str], variable: str) -> list[str]:
    return [address.strip() for address in env.get(variable, "").split(",") if address.strip()]


class Gateway:
    """The handlers."""

    def __init__(
        self, context: ServiceContext, limits: Limits, services: Mapping[str, Upstreams]
    ) -> None:
        weak = _weaknesses(context)
        self._clock: Clock = context.clock
        self._chance = context.random
        self._limits = limits
        self._services = services
        self._manners = _manners(context, weak)
        self._forwarder = Forwarder(context, limits, self._manners)
        self._door = Door(context, fails_open="fail_open_auth" in weak)
        self._quotas = Quotas(context.clock, context.env)
        self._names_callers = bool(context.env.get("TENANTS"))
        secret = context.env.get("SYSTEM_SECRET", "")
        self._guard = Guard(secret, leaky="prompt_secret_leak" in weak) if secret else None
        self._audit = _audit_log(context, lossy="lossy_audit" in weak)
        self._in_flight = 0
        self._shed = 0
        self._answers: dict[Labels, float] = {}

    # ----------------------------------------------------------------------------- routes

    async def chat(self, call: Incoming) -> int:
        """Forward a chat to an inference replica."""
        exchange = call.exchange
        body = await exchange.body()
        wanted = json_object(body)
        streamed = wanted.get("stream") is True
        guard = self._guard if exchange.path == _CHAT else None
        if guard is not None:
            body = guard.prompted(wanted)
        # An answer that is not streamed has its first byte only after its last token.
        first_byte_s = self._limits.first_byte_s if streamed else self._limits.total_s
        request = Request("POST", exchange.path, call.headers, body)
        return await self._forward(
            call, "inference", request, first_byte_s, 1, streamed=streamed, guard=guard
        )

    async def embed(self, call: Incoming) -> int:
        """Forward texts to be embedded to an inference replica."""
        request = Request("POST", call.exchange.path, call.headers, await call.exchange.body())
        return await self._forward(call, "inference", request, self._limits.first_byte_s, 1)

    async def search(self, call: Incoming) -> int:
        """Forward a search to retrieval."""
        exchange = call.exchange
        await exchange.body()
        # What a client may write in a query, however wild, is no failure of the upstream.
        query = quote(exchange.query, safe=_QUERY_SAFE)
        path = f"{exchange.path}?{query}" if query else exchange.path
        told = call.headers[1:]  # all but the type of a body
        request = Request("GET", path, told)
        return await self._forward(call, "retrieval", request, self._limits.first_byte_s, 1)

    async def add_document(self, call: Incoming) -> int:
        """Forward documents to the pipeline, else to retrieval; a write is not repeated."""
        exchange = call.exchange
        service = "pipeline" if "pipeline" in self._services else "retrieval"
        request = Request("POST", exchange.path, call.headers, await exchange.body())
        return await self._forward(call, service, request, self._limits.first_byte_s, 0)

    async def token(self, call: Incoming) -> int:
        """A short-lived bearer in exchange for a key."""
        await call.exchange.body()
        token = self._door.token(call.tenant)
        answer: dict[str, Json] = {
            "access_token": token,
            "token_type": "Bearer",
            "expires_in": TOKEN_LIFE_S,
        }
        await call.exchange.json(200, answer, [(b"cache-control", b"no-store")])
        return 200

    async def health(self, exchange: Exchange) -> None:
        """200 once at least one inference replica may be asked."""
        inference = self._services["inference"]
        if not inference.any_healthy():
            raise RefusalError(503, "no healthy inference replica")
        await exchange.json(200, {"status": "ok"})

    # -------------------------------------------------------------------------- the way in

    def entered(self, handler: _Handler) -> Callable[[Exchange], Awaitable[None]]:
        """The handler behind the way in; it returns the status it sent."""

        async def enter(exchange: Exchange) -> None:
            await self._enter(exchange, handler)

        return enter

    async def _enter(self, exchange: Exchange, handler: _Handler) -> None:
        """Authorise, bound, run, record and count."""
        status = 499  # as nginx counts clients that left
        call: Incoming | None = None
        tenant = ""
        try:
            caller = await self._door.caller(exchange)
            tenant = caller.name
            self._admit(exchange, caller)
            try:
                call = self._incoming(exchange, caller)
                status = await handler(call)
            finally:
                self._in_flight -= 1
        except RefusalError as refusal:
            status = refusal.status
            raise
        except ClientLeftError:
            return
        finally:
            if call is not None:
                self._record(call, status)
            self._count(exchange, tenant, status)

    def _admit(self, exchange: Exchange, tenant: Tenant) -> None:
        self._quotas.take(tenant)
        most = self._limits.in_flight
        if most is not None:
            batch = tenant.tier == BATCH or exchange.header(b"x-priority") == BATCH.encode()
            if self._in_flight >= (most * BATCH_SHARE if batch else most):
                self._shed += 1
                raise RefusalError(503, "the gateway is full", [("retry-after", "1")])
        self._in_flight += 1

    def _incoming(self, exchange: Exchange, tenant: Tenant) -> Incoming:
        if not self._names_callers and self._audit is None:
            return Incoming(exchange, tenant, "", _JSON_HEADERS)
        given = exchange.header(b"x-request-id").decode("latin-1")[:MAX_REQUEST_ID]
        request_id = given or f"{self._chance.getrandbits(64):016x}"
        call = Incoming(exchange, tenant, request_id, _JSON_HEADERS)
        if self._names_callers:
            call.headers = (*_JSON_HEADERS, *self._told(call))
        if self._audit is not None:
            exchange.before_end = lambda status: self._record(call, status)
        return call

    def _told(self, call: Incoming) -> Headers:
        """What services learn of a request beside its body."""
        exchange, tenant = call.exchange, call.tenant
        batch = tenant.tier == BATCH or exchange.header(b"x-priority") == BATCH.encode()
        told = [
            ("x-tenant", tenant.name),
            ("x-priority", BATCH if batch else "interactive"),
            ("x-request-id", call.request_id),
            ("x-timeout-ms", str(round(self._limits.total_s * 1e3))),
        ]
        trace = exchange.header(b"traceparent")
        if trace:
            told.append(("traceparent", trace.decode("latin-1")))
        return tuple(told)

    def _record(self, call: Incoming, status: int) -> None:
        """One line of audit for each admitted request, whichever way it ends."""
        exchange = call.exchange
        if self._audit is None or exchange.recorded:
            return
        exchange.recorded = True
        method = exchange.scope["method"]
        self._audit.add(call.request_id, call.tenant.name, method, exchange.path, status)

    def _count(self, exchange: Exchange, tenant: str, status: int) -> None:
        labels: Labels = (("path", exchange.path), ("status", str(status)))
        if self._names_callers:
            labels = (*labels, ("tenant", tenant))
        self._answers[labels] = self._answers.get(labels, 0) + 1

    # ------------------------------------------------------------------------- the way out

    async def _forward(
        self,
        call: Incoming,
        service: str,
        request: Request,
        first_byte_s: float,
        retries: int,
        *,
        streamed: bool = False,
        guard: Guard | None = None,
    ) -> int:
        began_us = self._clock.now_us()
        errand = Errand(
            self._services[service],
            request,
            first_byte_s,
            began_us + round(self._limits.total_s * 1e6),
            retries,
            call.exchange.header(b"x-session"),
            streamed,
            guard,
        )
        return await self._forwarder.forward(call.exchange, errand)

    # ----------------------------------------------------------------------------- metrics

    async def metrics(self, exchange: Exchange) -> None:
        """Prometheus text."""
        everyone = [u for upstreams in self._services.values() for u in upstreams.all]
        failures: dict[Labels, float] = {
            (("replica", u.id), ("why", why)): count
            for u in everyone
            for why, count in u.failures.items()
        }

        def each(values: list[float]) -> dict[Labels, float]:
            return {(("replica", u.id),): value for u, value in zip(everyone, values, strict=True)}

        await exchange.text(
            200,
            page(
                family("gateway_requests_total", "counter", "Answers by status.", self._answers),
                family("gateway_upstream_failures_total", "counter", "Failed attempts.", failures),
                family(
                    "gateway_upstream_attempts_total",
                    "counter",
                    "Calls sent, retries included.",
                    each([u.attempts for u in everyone]),
                ),
                family(
                    "gateway_upstream_in_flight",
                    "gauge",
                    "Calls not yet answered.",
                    each([u.in_flight for u in everyone]),
                ),
                family(
                    "gateway_upstream_healthy",
                    "gauge",
                    "1 = may be asked.",
                    each([u.healthy for u in everyone]),
                ),
                family(
                    "gateway_breaker_state",
                    "gauge",
                    "1 = the state that it is in.",
                    {(("replica", u.id), ("state", u.breaker)): 1 for u in everyone},
                ),
                *self._own_metrics(),
            ),
        )

    def _own_metrics(self) -> list[list[str]]:
        """What the gateway itself did and holds."""
        budget, audit, guard = self._manners.budget, self._audit, self._guard

        def one(name: str, kind: str, about: str, value: float) -> list[str]:
            return family(name, kind, about, {(): value})

        families = [
            one("gateway_in_flight", "gauge", "Requests under way.", self._in_flight),
            one("gateway_shed_total", "counter", "Refused because it was full.", self._shed),
            one("gateway_identity_up", "gauge", "0 = it does not answer.", not self._door.down),
            one(
                "gateway_streams_resumed_total",
                "counter",
                "Streams that went on elsewhere.",
                self._forwarder.resumed,
            ),
        ]
        if budget is not None:
            name, about = "gateway_retries_total", "Second attempts, by the budget's word."
            values: dict[Labels, float] = {
                (("allowed", "yes"),): budget.taken,
                (("allowed", "no"),): budget.refused,
            }
            families.append(family(name, "counter", about, values))
        if audit is not None:
            families += [
                one("gateway_audit_records_total", "counter", "Records made.", audit.written),
                one("gateway_audit_pending", "gauge", "Records not yet written.", audit.pending),
            ]
        if guard is not None:
            about = "Answers that the guard ended."
            families.append(one("gateway_redacted_total", "counter", about, guard.redacted))
        return families
