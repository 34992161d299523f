"""The gateway's way out: one call to whom it may concern, again elsewhere, and its answer back.

Weaknesses: ``retry_storm``: up to five more tries, at once, for any failure, each after a short
wait, and those given up go on in the replica. ``thundering_herd``: calls that find nobody wait for
a replica to come back (those whose client has left, too) and then go to it all at once; so do those
that find it full, in step. ``silent_truncation``: a stream that breaks is given a forged end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from survive.clock import sleep_us
from survive.contracts import Call, ServiceContext
from survive.transport import REPLICA_HEADER, Broken, CallFailedError, Request, Response

from .asgi import Exchange, Patience, RawHeaders, RefusalError, until_client_leaves
from .guard import Guard
from .relay import FORGED, MAX_RESUMES, RESUME_HEADER, Relay
from .retries import RetryBudget
from .upstreams import Upstream, Upstreams

STORM_TRIES = 6
STORM_WAIT_S = 0.6
HERD_STEP_US = 1_000_000
HERD_STEPS = 4
HERD_COPIES = 3  # of a call whose client left: its timer fired again while it still waited

_PASSED = ("content-type", "cache-control", "retry-after")
# The gateway let the caller in: a replica that says no says it to the gateway.
_NOT_ME = frozenset({401, 403})
_ASK_ANOTHER = _NOT_ME | {429}  # another may have room, or know the gateway


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on waiting, in seconds, and on calls in flight."""

    first_byte_s: float = 2.0  # of a stream, and of a search's answer
    between_s: float = 2.0  # from chunk to chunk
    total_s: float = 8.0  # of a whole exchange, retry included
    in_flight: int | None = 512


@dataclass(frozen=True, slots=True)
class Manners:
    """What a production gateway does beyond the small one, and what a weak one does instead."""

    budget: RetryBudget | None = None
    resumes: RetryBudget | None = None  # of its own: what goes on repeats no work but the prefill
    storms: bool = False
    herds: bool = False
    forges: bool = False


@dataclass(frozen=True, slots=True)
class Errand:
    """One call to be forwarded, and by when."""

    upstreams: Upstreams
    request: Request
    first_byte_s: float
    until_us: int
    retries: int
    session: bytes = b""
    streamed: bool = False
    guard: Guard | None = None  # reads the answer


class Forwarded:
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
class Failure:
    """No upstream gave an answer that may be passed on: what the client is told instead."""

    status: int
    message: str
    upstream: Upstream | None
    retry_after: str = ""
    overload: bool = False


class Forwarder:
    """Carries errands."""

    def __init__(self, context: ServiceContext, limits: Limits, manners: Manners) -> None:
        self._clock = context.clock
        self._call = context.call
        self._spawn = context.spawn
        self._limits = limits
        self._manners = manners
        self.resumed = 0  # streams that went on elsewhere

    async def forward(self, exchange: Exchange, errand: Errand) -> int:
        """Ask, and pass the answer on; the status that the client was sent."""
        status = 499
        began_us = self._clock.now_us()
        async with until_client_leaves(exchange.receive):
            found = await self._found(errand)
            if errand.guard is not None and errand.streamed:
                errand.guard.first_byte(self._clock.now_us() - began_us)
            if isinstance(found, Failure):
                await _tell(exchange, found)
                status = found.status
            elif errand.guard is not None and not errand.streamed:
                status = await self._pass_on_whole(exchange, errand, errand.guard, found)
            else:
                status = await self._pass_on(exchange, errand, found)
        return status

    # --------------------------------------------------------------------------------- ask

    async def _found(self, errand: Errand) -> Forwarded | Failure:
        return await (self._ask_herding(errand) if self._manners.herds else self._ask(errand))

    async def _ask(self, errand: Errand) -> Forwarded | Failure:
        """The first good answer, else the last failure."""
        nobody = f"no healthy {errand.upstreams.service} replica"
        failure = Failure(503, nobody, None, retry_after="1")
        budget, storms = self._manners.budget, self._manners.storms and errand.retries > 0
        if budget is not None:
            budget.request()
        for attempt in range(STORM_TRIES if storms else 1 + errand.retries):
            if attempt and budget is not None and not budget.take():
                break
            before = None if storms else failure.upstream
            upstream = errand.upstreams.pick(before, errand.session, trial=errand.retries > attempt)
            if upstream is None:
                break
            outcome = await self._ask_one(errand, upstream)
            if isinstance(outcome, Forwarded):
                return outcome
            failure = outcome
        return failure

    async def _ask_one(self, errand: Errand, upstream: Upstream) -> Forwarded | Failure:
        """Head and first bytes from one replica; its place is freed on every other way out."""
        left_s = (errand.until_us - self._clock.now_us()) / 1e6
        limit_s = min(errand.first_byte_s, left_s)
        if limit_s <= 0:
            errand.upstreams.undecided(upstream)
            return Failure(504, "the deadline of the exchange has passed", upstream)
        upstream.attempts += 1
        upstream.in_flight += 1
        opening = _Opening(self._call, upstream.address, errand.request)
        try:
            if self._manners.storms and errand.streamed:
                await self._open_impatiently(opening, min(limit_s, STORM_WAIT_S))
            else:
                async with asyncio.timeout(limit_s):
                    await opening.open(limit_s)
        except (CallFailedError, TimeoutError) as error:
            how = error.how if isinstance(error, CallFailedError) else Broken.TIMEOUT
            upstream.in_flight -= 1
            await opening.close()
            if self._manners.storms and how == Broken.TIMEOUT:
                errand.upstreams.undecided(upstream)  # it lost patience, that shows nothing
            else:
                errand.upstreams.failed(upstream, how)
            return _failure(upstream, how)
        except BaseException:
            upstream.in_flight -= 1
            errand.upstreams.undecided(upstream)
            await opening.close()
            raise
        response = opening.response
        assert response is not None and opening.chunks is not None
        if response.status >= 500 or response.status in _ASK_ANOTHER:
            upstream.in_flight -= 1
            await response.close()
            return _refused(errand.upstreams, upstream, response)
        errand.upstreams.answered(upstream)
        return Forwarded(upstream, response, opening.chunks, opening.first)

    # ----------------------------------------------------------------------------- pass on

    async def _pass_on(self, exchange: Exchange, errand: Errand, answer: Forwarded) -> int:
        """The answer, piece by piece; without its end if the upstream breaks or stalls."""
        relay = self._relay(errand, answer)
        status = answer.status
        begun = False
        going: Forwarded | None = answer
        while going is not None:
            try:
                if not begun:
                    await exchange.start(status, _passed_headers(answer))
                    begun = True
                broken = await self._copy(exchange, errand, going, relay)
            finally:
                await going.close()
            if broken is None:
                await exchange.end()
                return status
            errand.upstreams.failed(going.upstream, broken)
            status_seen = 502 if broken != Broken.TIMEOUT else 504
            if relay is not None and self._manners.forges:
                await exchange.end(FORGED)
                return status
            going = await self._gone_on(errand, relay, going.upstream)
        return status_seen  # counted; the client saw a broken body

    def _relay(self, errand: Errand, answer: Forwarded) -> Relay | None:
        manners = self._manners
        kept = manners.resumes is not None or manners.forges or errand.guard is not None
        if not kept or not errand.streamed or answer.status != 200:
            return None
        if manners.resumes is not None:
            manners.resumes.request()
        return Relay(errand.guard.filter() if errand.guard is not None else None)

    async def _copy(
        self, exchange: Exchange, errand: Errand, answer: Forwarded, relay: Relay | None
    ) -> Broken | None:
        """Copy to the end; how it broke, if it did."""
        data: bytes | None = answer.first
        try:
            left_s = (errand.until_us - self._clock.now_us()) / 1e6
            until_s = asyncio.get_running_loop().time() + left_s
            async with Patience(self._limits.between_s, until_s) as patience:
                while data is not None:
                    if relay is not None:
                        data = relay.feed(data)
                    if data:
                        await exchange.chunk(data)
                    if relay is not None and relay.cut:
                        return None
                    patience.wait()
                    data = await anext(answer.chunks, None)
                    patience.over()
        except (CallFailedError, TimeoutError) as error:
            if relay is None or not relay.done:
                return error.how if isinstance(error, CallFailedError) else Broken.TIMEOUT
        # A stream that ends without [DONE] is broken, however politely it ended.
        return None if relay is None or relay.done else Broken.CLOSED

    async def _gone_on(
        self, errand: Errand, relay: Relay | None, broken: Upstream
    ) -> Forwarded | None:
        """The rest of a broken stream from another replica, if there is one, and time."""
        budget = self._manners.resumes
        if relay is None or budget is None:
            return None
        while relay.resumes < MAX_RESUMES:
            upstream = errand.upstreams.pick(broken, errand.session)
            if upstream is None or not budget.take():
                return None
            request = errand.request
            if relay.tokens:
                more = (RESUME_HEADER, str(relay.tokens))
                request = replace(request, headers=(*request.headers, more))
            outcome = await self._ask_one(replace(errand, request=request), upstream)
            relay.resumed()
            if isinstance(outcome, Forwarded):
                if outcome.status == 200:
                    self.resumed += 1
                    return outcome
                await outcome.close()
            broken = upstream
        return None

    async def _pass_on_whole(
        self, exchange: Exchange, errand: Errand, guard: Guard, answer: Forwarded
    ) -> int:
        """An answer in one piece, read by the guard before it goes."""
        parts = [answer.first]
        try:
            async with asyncio.timeout((errand.until_us - self._clock.now_us()) / 1e6):
                parts += [chunk async for chunk in answer.chunks]
        except (CallFailedError, TimeoutError) as error:
            how = error.how if isinstance(error, CallFailedError) else Broken.TIMEOUT
            errand.upstreams.failed(answer.upstream, how)
            failure = _failure(answer.upstream, how)
            await _tell(exchange, failure)
            return failure.status
        finally:
            await answer.close()
        body = b"".join(parts)
        if guard.filter() is not None:
            body = guard.whole(body)
        await exchange.respond(answer.status, body, _passed_headers(answer))
        return answer.status

    # -------------------------------------------------------------------------- weaknesses

    async def _open_impatiently(self, opening: _Opening, limit_s: float) -> None:
        """Give up soon, and let what was begun run on: nobody will read it."""
        task = asyncio.ensure_future(opening.open(self._limits.total_s))
        try:
            done, _ = await asyncio.wait({task}, timeout=limit_s)
            if not done:
                raise TimeoutError
            task.result()
        finally:
            if not task.done():
                opening.leave_alone()
                self._spawn(opening.run_out(task))

    async def _ask_herding(self, errand: Errand) -> Forwarded | Failure:
        """Wait for a replica as long as it takes; find it full, and come again on the second."""
        found: Forwarded | Failure = Failure(503, "nobody was asked", None, retry_after="1")
        for _ in range(HERD_STEPS):
            found = await self._ask(errand)
            if isinstance(found, Forwarded) or not (found.upstream is None or found.overload):
                return found
            try:
                await self._wait_in_step(errand, found)
            except asyncio.CancelledError:
                for _ in range(HERD_COPIES):
                    self._spawn(self._ghost(errand, found))
                raise
            errand = self._afresh(errand)
        return found

    async def _wait_in_step(self, errand: Errand, failure: Failure) -> None:
        if failure.upstream is None:
            await errand.upstreams.somebody_back()
        else:
            now_us = self._clock.now_us()
            await sleep_us(self._clock, HERD_STEP_US - now_us % HERD_STEP_US)

    async def _ghost(self, errand: Errand, found: Forwarded | Failure) -> None:
        """The call of a client that has left: it goes out all the same, until it is answered."""
        while isinstance(found, Failure) and (found.upstream is None or found.overload):
            await self._wait_in_step(errand, found)
            found = await self._ask(self._afresh(errand))
        if isinstance(found, Forwarded):
            try:
                async for _ in found.chunks:
                    pass
            except CallFailedError:
                pass
            finally:
                await found.close()

    def _afresh(self, errand: Errand) -> Errand:
        """With a deadline that counts from now."""
        return replace(errand, until_us=self._clock.now_us() + round(self._limits.total_s * 1e6))


class _Opening:
    """A call until its first bytes."""

    __slots__ = ("_address", "_call", "_left", "_request", "chunks", "first", "response")

    def __init__(self, call: Call, address: str, request: Request) -> None:
        self.response: Response | None = None
        self.chunks: AsyncIterator[bytes] | None = None
        self.first = b""
        self._call = call
        self._address = address
        self._request = request
        self._left = False

    async def open(self, timeout_s: float) -> None:
        """Head and first bytes."""
        self.response = await self._call(self._address, self._request, timeout_s=timeout_s)
        self.chunks = self.response.chunks()
        self.first = await anext(self.chunks, b"")

    async def close(self) -> None:
        """Leave, unless it was left alone."""
        if self.response is not None and not self._left:
            await self.response.close()

    def leave_alone(self) -> None:
        """Closing it does nothing from now on."""
        self._left = True

    async def run_out(self, task: asyncio.Future[None]) -> None:
        """Read to the end what nobody wants."""
        try:
            await task
            assert self.chunks is not None
            async for _ in self.chunks:
                pass
        except CallFailedError:
            pass
        finally:
            if self.response is not None:
                await self.response.close()


def _passed_headers(answer: Forwarded) -> RawHeaders:
    names = [name for name in _PASSED if name in answer.headers]
    headers = [(name.encode(), answer.headers[name].encode("latin-1")) for name in names]
    return [*headers, (REPLICA_HEADER.encode(), answer.upstream.id.encode())]


def _refused(upstreams: Upstreams, upstream: Upstream, response: Response) -> Failure:
    """No answer for the caller. Overload (503 with Retry-After, 429, 529) does not eject."""
    retry_after = response.headers.get("retry-after", "")
    overload = response.status in {429, 529} or bool(response.status == 503 and retry_after)
    if overload:
        upstreams.undecided(upstream)
    elif not upstreams.leaves(upstream, response):
        upstreams.failed(upstream, f"status_{response.status}")
    message = f"{upstream.id} answered {response.status}"
    status = 502 if response.status in _NOT_ME else response.status
    return Failure(status, message, upstream, retry_after, overload)


def _failure(upstream: Upstream, how: Broken) -> Failure:
    status = 504 if how == Broken.TIMEOUT else 502
    return Failure(status, f"{upstream.id} failed: {how}", upstream)


async def _tell(exchange: Exchange, failure: Failure) -> None:
    """An error of our own; the replica that was tried last is named, for it failed."""
    headers: RawHeaders = []
    if failure.upstream is not None:
        headers.append((REPLICA_HEADER.encode(), failure.upstream.id.encode()))
    more = [("retry-after", failure.retry_after)] if failure.retry_after else []
    await exchange.refuse(RefusalError(failure.status, failure.message, more), headers)
