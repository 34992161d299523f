"""The gateway of the reference stack: one door, three inference replicas, one retrieval service.

Routes: POST /v1/chat/completions, GET /v1/search, POST /v1/documents (bearer key), GET /healthz,
GET /metrics. It routes to the least loaded healthy replica, ejects failing ones, bounds every wait,
and asks one other replica if the first fails before the client got a byte. A stream that breaks
under it ends without its end, so that no client takes a torso for an answer.

Weaknesses (SURVIVE_WEAKNESSES): ``no_health_checks``: no ejection, and the retry goes by the same
routing, so a replica that fails fast looks idle and draws all calls; ``no_timeout``: no upstream
deadlines; ``unbounded_queue``: no cap on calls in flight.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias
from urllib.parse import quote

from survive.clock import Clock
from survive.contracts import AsgiApp, Call, ServiceContext
from survive.transport import REPLICA_HEADER, Broken, CallFailedError, Headers, Request, Response

from .asgi import (
    ClientLeftError,
    Exchange,
    RawHeaders,
    RefusalError,
    json_object,
    routed,
    until_client_leaves,
)
from .metrics import Labels, family, page
from .stand_in import StandIn
from .upstreams import Upstream, Upstreams

NO_DEADLINE_S = 86_400.0
_QUERY_SAFE = "%&=+/?:@!$'()*,;[]|-._~"

_Handler: TypeAlias = Callable[[Exchange], Awaitable[int]]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on waiting, in seconds, and on calls in flight."""

    first_byte_s: float = 2.0  # of a stream, and of a search's answer
    between_s: float = 2.0  # from chunk to chunk
    total_s: float = 8.0  # of a whole exchange, retry included
    in_flight: int | None = 512


def make_app(context: ServiceContext) -> AsgiApp:
    """See ServiceContext. Starts the health checks."""
    return make_gateway(context, Limits())


def make_gateway(context: ServiceContext, limits: Limits) -> AsgiApp:
    """make_app with other limits."""
    weak = context.env.get("SURVIVE_WEAKNESSES", "").split(",")
    if "no_timeout" in weak:
        limits = Limits(NO_DEADLINE_S, NO_DEADLINE_S, NO_DEADLINE_S, limits.in_flight)
    if "unbounded_queue" in weak:
        limits = replace(limits, in_flight=None)
    checked = "no_health_checks" not in weak
    services = {
        service: Upstreams(service, _addresses(context.env, variable), checked=checked)
        for service, variable in (("inference", "UPSTREAMS"), ("retrieval", "RETRIEVAL"))
    }
    if checked:
        for upstreams in services.values():
            for upstream in upstreams.all:
                context.spawn(upstreams.check(upstream, context.clock, context.call))
    gateway = Gateway(context, limits, services)
    stand_in = StandIn(context, "metrics_down")
    return routed(
        {
            "/v1/chat/completions": {"POST": gateway.chat},
            "/v1/search": {"GET": gateway.search},
            "/v1/documents": {"POST": gateway.add_document},
            "/healthz": {"GET": gateway.health},
            "/metrics": {"GET": stand_in.unless("metrics_down", gateway.metrics)},
            **stand_in.routes(),
        }
    )


def _addresses(env: Mapping[str, str], variable: str) -> list[str]:
    return [address.strip() for address in env.get(variable, "").split(",") if address.strip()]


class _Forwarded:
    """An answer that may be passed on, its first bytes, and the place it takes until closed."""

    __slots__ = ("_response", "chunks", "first", "headers", "status", "upstream")

    def __init__(
        self, upstream: Upstream, response: Response, chunks: AsyncIterator[bytes], first: bytes
    ) -> None:
        self.upstream = upstream
        self.status = response.status
        self.headers = response.headers
        self.chunks = chunks
        self.first = first  # b"" = the body is empty
        self._response = response

    async def close(self) -> None:
        """Leave the upstream; it sees a disconnect if its body was not read to the end."""
        self.upstream.in_flight -= 1
        await self._response.close()


@dataclass(slots=True)
class _Failure:
    """No upstream gave an answer that may be passed on: what the client is told instead."""

    status: int
    message: str
    upstream: Upstream | None
    retry_after: str = ""


@dataclass(frozen=True, slots=True)
class _Errand:
    """One call to be forwarded, and by when."""

    upstreams: Upstreams
    request: Request
    first_byte_s: float
    until_us: int
    retries: int


class Gateway:
    """The handlers."""

    def __init__(
        self, context: ServiceContext, limits: Limits, services: Mapping[str, Upstreams]
    ) -> None:
        self._clock: Clock = context.clock
        self._call: Call = context.call
        self._limits = limits
        self._services = services
        key = context.env.get("SURVIVE_KEY", "")
        self._authorization = f"Bearer {key}".encode() if key else b""
        self._in_flight = 0
        self._answers: dict[Labels, float] = {}

    # ----------------------------------------------------------------------------- routes

    async def chat(self, exchange: Exchange) -> None:
        """Forward a chat to an inference replica."""
        await self._counted(exchange, self._chat)

    async def _chat(self, exchange: Exchange) -> int:
        body = await exchange.body()
        streamed = json_object(body).get("stream") is True
        # An answer that is not streamed has its first byte only after its last token.
        first_byte_s = self._limits.first_byte_s if streamed else self._limits.total_s
        request = Request("POST", exchange.path, _JSON_HEADERS, body)
        return await self._forward(exchange, "inference", request, first_byte_s, retries=1)

    async def search(self, exchange: Exchange) -> None:
        """Forward a search to retrieval."""
        await self._counted(exchange, self._search)

    async def _search(self, exchange: Exchange) -> int:
        await exchange.body()
        # What a client may write in a query, however wild, is no failure of the upstream.
        query = quote(exchange.query, safe=_QUERY_SAFE)
        path = f"{exchange.path}?{query}" if query else exchange.path
        limit_s = self._limits.first_byte_s
        return await self._forward(exchange, "retrieval", Request("GET", path), limit_s, retries=1)

    async def add_document(self, exchange: Exchange) -> None:
        """Forward a document to retrieval; a write is not repeated."""
        await self._counted(exchange, self._add_document)

    async def _add_document(self, exchange: Exchange) -> int:
        request = Request("POST", exchange.path, _JSON_HEADERS, await exchange.body())
        limit_s = self._limits.first_byte_s
        return await self._forward(exchange, "retrieval", request, limit_s, retries=0)

    async def health(self, exchange: Exchange) -> None:
        """200 once at least one inference replica may be asked."""
        inference = self._services["inference"]
        if not inference.any_healthy():
            raise RefusalError(503, "no healthy inference replica")
        await exchange.json(200, {"status": "ok"})

    # -------------------------------------------------------------------------- the way in

    async def _counted(self, exchange: Exchange, handler: _Handler) -> None:
        """Authorise, bound, run and count; ``handler`` returns the status it sent."""
        status = 499  # as nginx counts clients that left
        try:
            self._authorise(exchange)
            self._admit()
            try:
                status = await handler(exchange)
            finally:
                self._in_flight -= 1
        except RefusalError as refusal:
            status = refusal.status
            raise
        except ClientLeftError:
            return
        finally:
            labels: Labels = (("path", exchange.path), ("status", str(status)))
            self._answers[labels] = self._answers.get(labels, 0) + 1

    def _authorise(self, exchange: Exchange) -> None:
        given = exchange.header(b"authorization")
        if self._authorization and not hmac.compare_digest(given, self._authorization):
            challenge = [("www-authenticate", "Bearer")]
            raise RefusalError(401, "the bearer key is missing or wrong", challenge)

    def _admit(self) -> None:
        most = self._limits.in_flight
        if most is not None and self._in_flight >= most:
            raise RefusalError(503, "the gateway is full", [("retry-after", "1")])
        self._in_flight += 1

    # ------------------------------------------------------------------------- the way out

    async def _forward(
        self, exchange: Exchange, service: str, request: Request, first_byte_s: float, retries: int
    ) -> int:
        until_us = self._clock.now_us() + round(self._limits.total_s * 1e6)
        errand = _Errand(self._services[service], request, first_byte_s, until_us, retries)
        status = 499
        async with until_client_leaves(exchange.receive):
            found = await self._ask(errand)
            if isinstance(found, _Failure):
                await _tell(exchange, found)
                status = found.status
            else:
                try:
                    status = await self._pass_on(exchange, errand, found)
                finally:
                    await found.close()
        return status

    async def _ask(self, errand: _Errand) -> _Forwarded | _Failure:
        """The first good answer, else the last failure."""
        nobody = f"no healthy {errand.upstreams.service} replica"
        failure = _Failure(503, nobody, None, retry_after="1")
        for _ in range(1 + errand.retries):
            upstream = errand.upstreams.pick(failure.upstream)
            if upstream is None:
                break
            outcome = await self._ask_one(errand, upstream)
            if isinstance(outcome, _Forwarded):
                return outcome
            failure = outcome
        return failure

    async def _ask_one(self, errand: _Errand, upstream: Upstream) -> _Forwarded | _Failure:
        """Head and first bytes from one replica; its place is freed on every other way out."""
        left_s = (errand.until_us - self._clock.now_us()) / 1e6
        limit_s = min(errand.first_byte_s, left_s)
        if limit_s <= 0:
            return _Failure(504, "the deadline of the exchange has passed", upstream)
        upstream.attempts += 1
        upstream.in_flight += 1
        response: Response | None = None
        try:
            async with asyncio.timeout(limit_s):
                response = await self._call(upstream.address, errand.request, timeout_s=limit_s)
                chunks = response.chunks()
                first = await anext(chunks, b"")
        except (CallFailedError, TimeoutError) as error:
            how = error.how if isinstance(error, CallFailedError) else Broken.TIMEOUT
            await _release(upstream, response)
            errand.upstreams.failed(upstream, how)
            return _failure(upstream, how)
        except BaseException:
            await _release(upstream, response)
            raise
        if response.status >= 500 or response.status == 429:  # another may have room
            await _release(upstream, response)
            return _refused(errand.upstreams, upstream, response)
        errand.upstreams.answered(upstream)
        return _Forwarded(upstream, response, chunks, first)

    async def _pass_on(self, exchange: Exchange, errand: _Errand, answer: _Forwarded) -> int:
        """The answer, piece by piece; without its end if the upstream breaks or stalls."""
        await exchange.start(answer.status, _passed_headers(answer))
        data: bytes | None = answer.first
        try:
            left_s = (errand.until_us - self._clock.now_us()) / 1e6
            async with asyncio.timeout(left_s):
                while data is not None:
                    if data:
                        await exchange.chunk(data)
                    async with asyncio.timeout(self._limits.between_s):
                        data = await anext(answer.chunks, None)
        except (CallFailedError, TimeoutError) as error:
            how = error.how if isinstance(error, CallFailedError) else Broken.TIMEOUT
            errand.upstreams.failed(answer.upstream, how)
            return 502 if how != Broken.TIMEOUT else 504  # counted; the client saw a broken body
        await exchange.end()
        return answer.status

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
            ),
        )


_JSON_HEADERS: Headers = (("content-type", "application/json"),)
_PASSED = ("content-type", "cache-control", "retry-after")


def _passed_headers(answer: _Forwarded) -> RawHeaders:
    names = [name for name in _PASSED if name in answer.headers]
    headers = [(name.encode(), answer.headers[name].encode("latin-1")) for name in names]
    return [*headers, (REPLICA_HEADER.encode(), answer.upstream.id.encode())]


async def _release(upstream: Upstream, response: Response | None) -> None:
    upstream.in_flight -= 1
    if response is not None:
        await response.close()


def _refused(upstreams: Upstreams, upstream: Upstream, response: Response) -> _Failure:
    """A 5xx or 429. Overload (503 with Retry-After, 429, 529) is no reason to eject."""
    retry_after = response.headers.get("retry-after", "")
    overloaded = response.status in {429, 529} or (response.status == 503 and retry_after)
    if not overloaded:
        upstreams.failed(upstream, f"status_{response.status}")
    message = f"{upstream.id} answered {response.status}"
    return _Failure(response.status, message, upstream, retry_after)


def _failure(upstream: Upstream, how: Broken) -> _Failure:
    status = 504 if how == Broken.TIMEOUT else 502
    return _Failure(status, f"{upstream.id} failed: {how}", upstream)


async def _tell(exchange: Exchange, failure: _Failure) -> None:
    """An error of our own; the replica that was tried last is named, for it failed."""
    headers: RawHeaders = []
    if failure.upstream is not None:
        headers.append((REPLICA_HEADER.encode(), failure.upstream.id.encode()))
    more = [("retry-after", failure.retry_after)] if failure.retry_after else []
    await exchange.refuse(RefusalError(failure.status, failure.message, more), headers)
