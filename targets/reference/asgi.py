"""The little of HTTP that the reference services share, over plain ASGI.

A handler gets an ``Exchange`` (one request and its answer). ``routed`` makes an ASGI app of a table
of handlers. All errors have one shape: ``{"error": {"message": ..., "type": ...}}``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import TypeAlias

from survive.contracts import AsgiApp, Json, Receive, Scope, Send
from survive.transport import REPLICA_HEADER

MAX_BODY = 1024 * 1024  # bytes of a request body; more is 413

RawHeaders: TypeAlias = "list[tuple[bytes, bytes]]"
JSON_TYPE = (b"content-type", b"application/json")
TEXT_TYPE = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
_REPLICA = REPLICA_HEADER.encode()


class RefusalError(Exception):
    """The request gets an error answer: status, a sentence, more headers."""

    def __init__(self, status: int, message: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = tuple(headers)


class ClientLeftError(Exception):
    """The client went away; there is nobody to answer."""


class Exchange:
    """One request and its answer."""

    __slots__ = (
        "_replica",
        "_send",
        "_status",
        "before_end",
        "path",
        "query",
        "receive",
        "recorded",
        "scope",
        "started",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, replica: bytes) -> None:
        self.scope = scope
        self.receive = receive
        self.path: str = scope["path"]
        self.query: bytes = scope.get("query_string", b"")
        self.started = False
        self.recorded = False  # in an audit log, if the service keeps one
        self.before_end: Callable[[int], None] | None = None  # is given the status
        self._status = 0
        self._send = send
        self._replica = replica

    def header(self, name: bytes) -> bytes:
        """The value of a header by its lower-case name; b"" if absent."""
        for key, value in self.scope["headers"]:
            if key == name:
                return bytes(value)
        return b""

    async def body(self) -> bytes:
        """The request's whole body. Raises RefusalError 413, ClientLeftError."""
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientLeftError
            part = message.get("body", b"")
            size += len(part)
            if size > MAX_BODY:
                raise RefusalError(413, f"the body is over {MAX_BODY} bytes")
            parts.append(part)
            more = message.get("more_body", False)
        return b"".join(parts)

    async def start(self, status: int, headers: RawHeaders) -> None:
        """Send the head; the replica's id goes with it unless ``headers`` name one."""
        self.started = True
        self._status = status
        if self._replica and not any(name == _REPLICA for name, _ in headers):
            headers = [*headers, (_REPLICA, self._replica)]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    def chunk(self, data: bytes) -> Awaitable[None]:
        """Send a piece of a streamed body."""
        return self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        """Send the last piece. A handler that returns without it breaks the body on purpose."""
        if self.before_end is not None:
            self.before_end(self._status)
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def respond(self, status: int, body: bytes, headers: RawHeaders) -> None:
        """A whole answer."""
        await self.start(status, [*headers, (b"content-length", b"%d" % len(body))])
        await self.end(body)

    async def json(self, status: int, value: Json, headers: RawHeaders | None = None) -> None:
        """A whole answer of JSON."""
        await self.respond(status, encode(value), [JSON_TYPE, *(headers or [])])

    async def text(self, status: int, text: str) -> None:
        """A whole answer of text, in the type that Prometheus expects."""
        await self.respond(status, text.encode(), [TEXT_TYPE])

    async def refuse(self, refusal: RefusalError, headers: RawHeaders | None = None) -> None:
        """The answer to a refused request."""
        more = [(name.encode(), value.encode()) for name, value in refusal.headers]
        await self.json(refusal.status, error_body(refusal), [*more, *(headers or [])])


def encode(value: Json) -> bytes:
    """Compact JSON."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def error_body(refusal: RefusalError) -> Json:
    """The one shape of all errors, OpenAI's."""
    kind = "server_error" if refusal.status >= 500 else "invalid_request_error"
    return {"error": {"message": refusal.message, "type": kind, "code": refusal.status}}


def json_object(body: bytes) -> dict[str, Json]:
    """The body as a JSON object. Raises RefusalError 400."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusalError(400, "the body is not JSON") from error
    if not isinstance(value, dict):
        raise RefusalError(400, "the body is not a JSON object")
    return value


Handler: TypeAlias = Callable[[Exchange], Awaitable[None]]
Routes: TypeAlias = Mapping[str, Mapping[str, Handler]]


def routed(routes: Routes, replica: str = "") -> AsgiApp:
    """An ASGI app of ``{path: {method: handler}}``; ``replica`` names itself in every answer."""
    raw = replica.encode()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"not an HTTP request: {scope['type']}")
        exchange = Exchange(scope, receive, send, raw)
        try:
            await _handler(routes, scope)(exchange)
        except RefusalError as refusal:
            await exchange.refuse(refusal)
        except ClientLeftError:
            return

    return app


def _handler(routes: Routes, scope: Scope) -> Handler:
    methods = routes.get(scope["path"])
    if methods is None:
        raise RefusalError(404, f"no such path: {scope['path'][:200]}")
    handler = methods.get(scope["method"])
    if handler is None:
        raise RefusalError(405, "method not allowed", [("allow", ", ".join(methods))])
    return handler


class Patience:
    """``async with Patience(between_s, until_s) as patience:`` bounds each wait, and all of them.

    A wait lies between ``patience.wait()`` and ``patience.over()``, or else counts only by the
    loop time ``until_s``. TimeoutError, as asyncio.timeout; yet one timer for a whole stream.
    """

    __slots__ = ("_between_s", "_cancelling", "_expired", "_loop", "_since_s", "_task", "_timer",
                 "_until_s")  # fmt: skip

    def __init__(self, between_s: float, until_s: float) -> None:
        self._between_s = between_s
        self._until_s = until_s
        self._expired = False
        self._since_s: float | None = None
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def wait(self) -> None:
        """A wait begins."""
        self._since_s = self._loop.time()

    def over(self) -> None:
        """It has ended."""
        self._since_s = None

    async def __aenter__(self) -> Patience:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._look()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._expired:
            ours = self._task.uncancel() <= self._cancelling
            if ours and kind is not None and issubclass(kind, asyncio.CancelledError):
                raise TimeoutError

    def _look(self) -> None:
        now_s = self._loop.time()
        since_s = now_s if self._since_s is None else self._since_s
        due_s = min(since_s + self._between_s, self._until_s)
        if due_s > now_s:
            self._timer = self._loop.call_at(due_s, self._look)
        else:
            self._expired = True
            self._timer = None
            self._task.cancel()


class until_client_leaves:  # noqa: N801 - used like asyncio.timeout
    """``async with until_client_leaves(receive) as watch:`` ends its block when the client goes.

    The block is cancelled at its next await and left quietly; ``watch.left`` says so. Enter it only
    once the request's body has been read. A cancellation from elsewhere passes through.
    """

    __slots__ = ("_cancelling", "_receive", "_task", "_watcher", "left")

    def __init__(self, receive: Receive) -> None:
        self.left = False
        self._receive = receive
        self._task: asyncio.Task[object] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._cancelling = 0

    async def __aenter__(self) -> until_client_leaves:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._watcher = asyncio.get_running_loop().create_task(self._watch(task))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> bool:
        assert self._task is not None and self._watcher is not None
        self._watcher.cancel()
        if not self.left:
            return False
        ours = self._task.uncancel() <= self._cancelling
        return ours and kind is not None and issubclass(kind, asyncio.CancelledError)

    async def _watch(self, task: asyncio.Task[object]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.left = True
        task.cancel()
