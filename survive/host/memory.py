"""The network of the virtual host: nodes, calls between them, and fault proxies, all in memory.

A *node* is one replica: an ASGI app and its tasks. It can be killed (its tasks never run another
step but for synchronous ``finally`` blocks, its connections are reset) and paused (no task of it
takes a step; ports accept, timers that expire meanwhile fire on resume): what SIGKILL and SIGSTOP
do. Tasks that a node's tasks create belong to it too, whatever asyncio call made them.

A *listener* is a fault proxy's listener in front of an address (``survive.host.listener``). A call
is one connection: keep-alive is not modelled. Answers behave as uvicorn's do: an app that fails
before its head answers 500, one that ends inside its body ends the connection.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
import traceback
import types
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import unquote

from survive.address import HTTPS
from survive.clock import Clock
from survive.contracts import AsgiApp, Scope
from survive.host.listener import Listener, Pipe
from survive.host.protocol import Rewriting
from survive.transport import Broken, CallFailedError, Request
from survive.units import SECOND

LEAVE_GRACE_S = 1.0  # how long an app may go on after its client left
HIGH_WATER = 256 * 1024  # unread bytes of an answer at which its app has to wait
GRACE_S = 1.0  # as survive.host.serve has it
_LEAVE_EVERY_S = 0.01
LOG_LINES = 20  # a node keeps this many last lines for error messages
_FIRST_PORT = 20_001


class _End:
    """The answer is whole."""


@dataclass(frozen=True, slots=True)
class _Head:
    status: int
    headers: dict[str, str]


_END = _End()
_Item: TypeAlias = "_Head | bytes | _End | Broken"
_Up: TypeAlias = "Request | _End"

# Whose code runs: tasks inherit it, so all that a node starts is known to be the node's.
_NODE: contextvars.ContextVar[Node | None] = contextvars.ContextVar("survive_node", default=None)


# --------------------------------------------------------------------------------------- nodes


class Node:
    """One boot of one replica. ``boot`` is unique in its network, as a pid is on a host;
    ``born_us`` counts from when time began, before the run's origin.

    ``on_end`` is called once, with the reason, when the node is gone for whatever cause.
    """

    def __init__(self, name: str, boot: int, born_us: int) -> None:
        self.name = name
        self.boot = boot
        self.born_us = born_us
        self.paused = False
        self.dead = False
        self.leaving = False  # accepts nobody any more, ends what it has begun
        self.app: AsgiApp | None = None
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        self.on_end: Callable[[str], None] | None = None
        self._tasks: dict[asyncio.Task[Any], None] = {}  # dicts: sets have no stable order
        self._serving: dict[_Connection, None] = {}
        self._calling: dict[_Connection, None] = {}
        self._parked: list[asyncio.Future[None]] = []
        self._context = contextvars.copy_context()
        self._context.run(_NODE.set, self)

    def mount(self, make: Callable[[], AsgiApp]) -> None:
        """Make the app as code of this node. Raises whatever ``make`` raises."""
        install_node_tasks()
        self.app = self._context.run(make)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Start a background task; the node crashes if it fails, as a served app does."""
        self._start(work).add_done_callback(self._background_ended)

    def pause(self) -> None:
        """Stop the node's clock. Idempotent; nothing on a dead node."""
        self.paused = not self.dead

    def resume(self) -> None:
        """Let it go on: every step that was due meanwhile is taken now. Idempotent."""
        self.paused = False
        parked, self._parked = self._parked, []
        for future in parked:
            if not future.done():
                future.set_result(None)

    def kill(self, reason: str = "killed") -> None:
        """End it at once. Idempotent."""
        if self.dead:
            return
        self.dead = True
        self.resume()
        for task in list(self._tasks):
            task.cancel()
        for connection in list(self._serving):
            connection.server_died()
        for connection in list(self._calling):
            connection.leave()
        if self.on_end is not None:
            self.on_end(reason)

    def stop(self, grace_s: float = GRACE_S) -> None:
        """End it as SIGTERM does a served app: no new connections, a time to finish. Idempotent."""
        if not self.leaving and not self.paused:
            self.leaving = True
            self._leave(asyncio.get_running_loop().time() + grace_s)

    def _leave(self, until_s: float) -> None:
        loop = asyncio.get_running_loop()
        if not self._serving or loop.time() >= until_s:
            self.kill("terminated")
        else:
            loop.call_later(_LEAVE_EVERY_S, self._leave, until_s)

    async def join(self) -> None:
        """Wait until the tasks of a killed node are gone."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def adopt(self, task: asyncio.Task[Any]) -> None:
        """Count a task as the node's."""
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))

    def park(self) -> asyncio.Future[None]:
        """Done when the node goes on."""
        future = asyncio.get_running_loop().create_future()
        self._parked.append(future)
        return future

    def serve(self, connection: _Connection, request: Request) -> None:
        """A request arrived."""
        connection.task = self._start(connection.respond(request))

    def note(self, text: str) -> None:
        """Keep lines for error messages."""
        self.log.extend(text.rstrip().splitlines())

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        install_node_tasks()
        # A copy: one task's context variables are not its siblings'.
        return asyncio.get_running_loop().create_task(work, context=self._context.copy())

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        self.note("".join(traceback.format_exception(error)))
        self.kill(f"a background task failed: {error!r}")


class _Gated(Coroutine[Any, Any, Any]):
    """A node's coroutine: takes no step while the node is paused, ends at the first one after a
    kill. What woke it meanwhile (a result, a cancellation) is kept and acted on at resume."""

    __slots__ = ("__name__", "__qualname__", "_error", "_inner", "_node")

    def __init__(self, node: Node, inner: Coroutine[Any, Any, Any]) -> None:
        self._node = node
        self._inner = inner
        self._error: BaseException | None = None
        self.__name__ = getattr(inner, "__name__", "?")
        self.__qualname__ = getattr(inner, "__qualname__", "?")

    @property
    def cr_frame(self) -> types.FrameType | None:
        """Where the code stands; asyncio shows it in stacks."""
        frame: types.FrameType | None = getattr(self._inner, "cr_frame", None)
        return frame

    def send(self, value: Any) -> Any:
        """One step, if the node takes steps."""
        if self._node.paused:
            return self._park()
        if self._node.dead:
            self._bury()
        if self._error is not None:
            error, self._error = self._error, None
            return self._inner.throw(error)
        return self._inner.send(value)

    def throw(self, typ: Any, val: Any = None, tb: Any = None) -> Any:
        """One step that begins with an exception: cancellation, or a failed future."""
        error = typ if isinstance(typ, BaseException) else typ(val)
        if self._node.paused:
            self._error = error
            return self._park()
        if self._node.dead:
            self._bury()
        return self._inner.throw(error)

    def close(self) -> None:
        """See Coroutine."""
        self._inner.close()

    def __await__(self) -> Any:
        raise TypeError("a node's task is not awaited by hand")

    def _park(self) -> Any:
        return next(self._node.park().__await__())

    def _bury(self) -> None:
        try:
            self._inner.close()
        except Exception as error:
            # A killed process has no say; yet its last words help whoever debugs a service.
            self._node.note(f"ended badly: {error!r}")
        raise asyncio.CancelledError("its node was killed")


def _node_tasks(
    loop: asyncio.AbstractEventLoop,
    work: Any,
    *,
    context: contextvars.Context | None = None,
    **options: Any,
) -> asyncio.Task[Any]:
    """A task factory: tasks made by a node's code are gated and die with it."""
    node = _NODE.get() if context is None else context.get(_NODE)
    if node is None:
        return asyncio.Task(work, loop=loop, context=context, **options)
    task: asyncio.Task[Any] = asyncio.Task(
        _Gated(node, work), loop=loop, context=context, **options
    )
    node.adopt(task)
    return task


def install_node_tasks() -> None:
    """Make the running loop know whose task is whose. Idempotent."""
    loop = asyncio.get_running_loop()
    if loop.get_task_factory() is not _node_tasks:
        loop.set_task_factory(_node_tasks)


# ----------------------------------------------------------------------------------- connections


class _Connection:
    """One call: the client's inbox, the server's ASGI channel, and the pipes between, if any."""

    def __init__(
        self, network: MemoryNetwork, node: Node | None, listener: Listener | None
    ) -> None:
        self.task: asyncio.Task[None] | None = None
        self._node = node
        self._listener = listener
        self._owner = _NODE.get()
        self._inbox: deque[_Item] = deque()
        self._final: _End | Broken | None = None  # the last item that the client will see
        self._waiter: asyncio.Future[None] | None = None
        self._left = False
        self._timer: asyncio.TimerHandle | None = None
        self._unread = 0
        self._room: asyncio.Future[None] | None = None
        self._body: bytes | None = None
        self._gone = asyncio.Event()  # what the app sees as http.disconnect
        self._started = False
        self._complete = False
        self._lingers: asyncio.Event | None = None  # set when the connection has ended
        self._up: Pipe | None = None
        self._down: Pipe | None = None
        self._hit: Rewriting | None = None  # an HTTP toxic, before the pipe to the client
        self.number = 0
        if node is None:
            self._gone.set()
        if listener is not None:
            self.number = listener.number()
            self._up = Pipe(self, _size, self._arrive)
            self._down = Pipe(self, _size, self._deliver)
            listener.opened(self)
        if node is not None:
            node._serving[self] = None
        if self._owner is not None:
            self._owner._calling[self] = None

    # -- the client's side

    async def ask(self, request: Request, timeout_s: float) -> _Head:
        """Send the request; the head of the answer. Raises CallFailedError."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(timeout_s, self._expire)
        if self._node is None:
            self._deliver(Broken.CLOSED)  # the proxy accepted, then found nobody behind it
        elif self._listener is not None:
            self._ask_through(self._listener, request)
        else:
            self._arrive(request)
        try:
            item = await self.next()
        except BaseException:
            self.leave()
            raise
        if isinstance(item, _Head):
            return item
        self.leave()
        raise CallFailedError(item if isinstance(item, Broken) else Broken.CLOSED)

    def watch_end(self) -> asyncio.Event:
        """Set when the server has ended the connection after its answer; before ``ask`` only."""
        self._lingers = asyncio.Event()
        return self._lingers

    async def next(self) -> _Item:
        """The next thing that arrives; the last one again and again. CallFailedError once left."""
        while not self._inbox:
            if self._left:
                raise CallFailedError(Broken.CLOSED, "left")
            if self._final is not None:
                return self._final
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        item = self._inbox.popleft()
        if isinstance(item, bytes):
            self._unread -= len(item)
            if self._room is not None and self._unread <= HIGH_WATER // 2:
                _wake(self._room)
        return item

    async def chunk(self) -> bytes:
        """The next piece of the body. Raises StopAsyncIteration at its end, CallFailedError."""
        item = await self.next()
        if isinstance(item, bytes):
            return item
        if isinstance(item, _End):
            raise StopAsyncIteration
        raise CallFailedError(item if isinstance(item, Broken) else Broken.PROTOCOL)

    def leave(self) -> None:
        """The client goes; the app sees a disconnect if it was not done. Idempotent."""
        if self._left:
            return
        self._left = True
        self._inbox.clear()
        self._end_client()
        if self._waiter is not None:
            _wake(self._waiter)
        if self._hit is not None:
            self._hit.drop()
        if self._down is not None:
            self._down.drop()
        if self._complete or self._node is None:
            return
        if self._up is not None:
            self._up.finish(_END)
        else:
            self._arrive(_END)

    def abandon(self) -> None:
        """Leave for good, watched or not."""
        self._lingers = None
        self.leave()
        self._maybe_closed()

    def _expire(self) -> None:
        self._deliver(Broken.TIMEOUT)

    def _deliver(self, item: _Item) -> None:
        """Put into the client's inbox."""
        if self._lingers is not None and self._final is not None:
            self._lingers.set()
        if self._left or self._final is not None:
            return
        if self._timer is not None:  # it bounds the head only
            self._timer.cancel()
            self._timer = None
        if isinstance(item, _End | Broken):
            self._final = item
            self._end_client()
        else:
            self._inbox.append(item)
        if self._waiter is not None:
            _wake(self._waiter)

    def _end_client(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._owner is not None:
            self._owner._calling.pop(self, None)
        self._maybe_closed()

    # -- between

    def _ask_through(self, listener: Listener, request: Request) -> None:
        """By way of the fault proxy, which may answer in the service's place."""
        up, down = self.pipes()
        self._hit = listener.http.draw(request, down, _END, self._client_gone)
        answer = self._hit.answer() if self._hit is not None else None
        if answer is None:
            up.push(request)
            return
        status, headers, body = answer
        self._hit, self._complete = None, True
        self._client_gone()
        down.push(_Head(status, headers))
        down.push(body)
        down.push(_END)

    def pipes(self) -> tuple[Pipe, Pipe]:
        """See Way."""
        assert self._up is not None and self._down is not None
        return self._up, self._down

    def _maybe_closed(self) -> None:
        """Neither side is there any more: its listener may forget it."""
        ended = self._left or self._final is not None
        if self._listener is not None and ended and self._gone.is_set() and not self._lingers:
            self._listener.closed(self)

    def proxy_closed(self) -> None:
        """See Way: a toxic ended the connection, on both sides."""
        self._proxy_ended(Broken.CLOSED)

    def proxy_reset(self) -> None:
        """See Way: the proxy cut the connection, on both sides."""
        self._proxy_ended(Broken.RESET)

    def _proxy_ended(self, how: Broken) -> None:
        if self._hit is not None:
            self._hit.drop()
        for pipe in self.pipes():
            pipe.drop()
        self._deliver(how)
        self._client_gone()

    # -- the server's side

    def _arrive(self, item: _Up) -> None:
        assert self._node is not None
        if isinstance(item, _End):
            self._client_gone()
        elif not self._node.dead and not self._gone.is_set():
            self._node.serve(self, item)

    def _client_gone(self) -> None:
        if self._gone.is_set():
            return
        self._gone.set()
        self._maybe_closed()
        if self._room is not None:
            _wake(self._room)
        if self._node is not None:
            self._node._serving.pop(self, None)
        if self.task is not None and not self.task.done():
            asyncio.get_running_loop().call_later(LEAVE_GRACE_S, self._expel)

    def _expel(self) -> None:
        """End an app that goes on though its client left; a paused one has not heard of it yet."""
        if self.task is None or self.task.done() or self._node is None:
            return
        if self._node.paused:
            asyncio.get_running_loop().call_later(LEAVE_GRACE_S, self._expel)
        else:
            self.task.cancel()

    def server_died(self) -> None:
        """The node is gone: a reset straight, an end of the stream behind a proxy."""
        self._gone.set()
        if self._node is not None:
            self._node._serving.pop(self, None)
        self._maybe_closed()
        if (way := self._hit or self._down) is not None:
            way.finish(Broken.CLOSED)
        else:
            self._deliver(Broken.RESET)

    async def respond(self, request: Request) -> None:
        """Run the app on one request, as a server does. A task of the node."""
        node = self._node
        assert node is not None and node.app is not None
        self._body = request.body
        try:
            await node.app(_scope(request), self._receive, self._send)
        except Exception as error:
            node.note("".join(traceback.format_exception(error)))
        finally:
            if not node.dead:
                self._settle()

    def _settle(self) -> None:
        """The app ended: make sure that the client learns it."""
        if not self._started and not self._gone.is_set():
            self._push(_Head(500, {"content-type": "text/plain; charset=utf-8"}))
            self._push(b"Internal Server Error")
            self._finish(_END)
        elif not self._complete:
            self._finish(Broken.CLOSED)

    def _finish(self, last: _End | Broken) -> None:
        self._complete = True
        self._gone.set()
        if self._node is not None:
            self._node._serving.pop(self, None)
        if self._hit is not None:
            self._hit.finish(last)
        elif self._down is None:
            self._deliver(last)
        elif isinstance(last, Broken):
            self._down.finish(last)
        else:
            self._down.push(last)
        lingers = self._lingers is not None and self._hit is None
        if lingers and isinstance(last, _End):  # the caller asked for the end
            finish = self._deliver if self._down is None else self._down.finish
            finish(last)
        self._maybe_closed()

    def _push(self, item: _Head | bytes) -> None:
        if (way := self._hit or self._down) is not None:
            way.push(item)
        else:
            self._deliver(item)

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if self._left or self._gone.is_set():
            if self._complete:
                raise RuntimeError(f"unexpected {message['type']} after the answer's end")
            return  # nobody listens: as uvicorn does
        if message["type"] == "http.response.body":
            self._send_body(message)
            if self._unread > HIGH_WATER and not self._complete:
                await self._until_read()
        elif message["type"] == "http.response.start":
            self._start_answer(message)
        else:
            raise RuntimeError(f"unexpected ASGI message {message['type']!r}")

    def _start_answer(self, message: dict[str, Any]) -> None:
        if self._started:
            raise RuntimeError("the answer has started already")
        self._started = True
        headers = {
            bytes(name).decode("latin-1").lower(): bytes(value).decode("latin-1")
            for name, value in message.get("headers", ())
        }
        self._push(_Head(int(message["status"]), headers))

    def _send_body(self, message: dict[str, Any]) -> None:
        if not self._started:
            raise RuntimeError("a body before the answer's start")
        body = bytes(message.get("body", b""))
        if body:
            if self._hit is None:  # a toxic may swallow it, and then nobody would ever read it
                self._unread += len(body)
            self._push(body)
        if not message.get("more_body", False):
            self._finish(_END)

    async def _until_read(self) -> None:
        """Until the client has taken enough of the answer."""
        self._room = asyncio.get_running_loop().create_future()
        try:
            await self._room
        finally:
            self._room = None


def _size(item: _Item | _Up) -> int:
    """Bytes on a wire, about; the end of an answer has none of its own."""
    if isinstance(item, bytes):
        return len(item)
    if isinstance(item, _Head):
        return 15 + sum(len(name) + len(value) + 4 for name, value in item.headers.items()) + 4
    if isinstance(item, Request):
        headers = sum(len(name) + len(value) + 4 for name, value in item.headers)
        return len(item.method) + len(item.path) + 13 + headers + 2 + len(item.body)
    return 0


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _scope(request: Request) -> Scope:
    """The ASGI scope that uvicorn would make."""
    path, _, query = request.path.partition("?")
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in request.headers]
    names = {name for name, _ in headers}
    if b"host" not in names:
        headers.insert(0, (b"host", b"127.0.0.1"))
    if request.body and b"content-length" not in names:
        headers.append((b"content-length", str(len(request.body)).encode()))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode("ascii", "replace"),
        "query_string": query.encode("ascii", "replace"),
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }


# --------------------------------------------------------------------------------------- network


@dataclass(slots=True)
class _Certificate:
    also_plain: bool
    expired: bool = False


class MemoryNetwork:
    """Who listens where. Addresses look like real ones, boots count up over all nodes."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._nodes: dict[str, Node] = {}
        self._listeners: dict[str, Listener] = {}
        self._next_port = _FIRST_PORT
        self._boots = 0
        self._certificates: dict[str, _Certificate] = {}

    def address(self) -> str:
        """A new ``127.0.0.1:port`` that nobody has."""
        self._next_port += 1
        return f"127.0.0.1:{self._next_port - 1}"

    def secure(self, address: str, *, also_plain: bool = False) -> None:
        """Whoever answers there speaks TLS; ``also_plain``: and plain text too."""
        self._certificates[address] = _Certificate(also_plain)

    def expire(self, address: str, *, on: bool) -> None:
        """The certificate served there has expired, or is good again. Raises KeyError."""
        self._certificates[address].expired = on

    def node(self, name: str) -> Node:
        """A new node, born now; it does not listen yet."""
        self._boots += 1
        return Node(name, self._boots, round(asyncio.get_running_loop().time() * SECOND))

    def listen(self, address: str, node: Node) -> None:
        """From now on ``node`` answers there. Raises ValueError if a living one does already."""
        if self._living(address) is not None or address in self._listeners:
            raise ValueError(f"{address} is taken")
        self._nodes[address] = node

    def proxy(self, upstream: str, chance: random.Random) -> Listener:
        """A fault proxy's listener in front of an address, at a new address."""
        listener = Listener(self.address(), upstream, chance)
        self._listeners[listener.address] = listener
        return listener

    def listener(self, address: str) -> Listener | None:
        """The fault proxy's listener at an address."""
        return self._listeners.get(address)

    def unlisten(self, address: str) -> None:
        """Take a fault proxy's listener away, with its connections. Idempotent."""
        listener = self._listeners.pop(address, None)
        if listener is not None:
            listener.enable(False)

    def node_of(self, address: str, boot: int) -> Node | None:
        """Exactly that boot at an address, if it lives: the way of signals, not of proof."""
        node = self._nodes.get(address)
        return node if node is not None and node.boot == boot and not node.dead else None

    def connect(self, address: str) -> int:
        """Connect and leave; the boot number of who accepts. Raises CallFailedError(REFUSED)."""
        listener = self._listeners.get(address)
        if listener is not None and not listener.enabled:
            raise CallFailedError(Broken.REFUSED, address)
        node = self._living(address if listener is None else listener.upstream)
        if node is None:
            raise CallFailedError(Broken.REFUSED, address)
        return node.boot

    def open(self, address: str) -> _Connection:
        """A connection for one call, ``https://`` a verified one. CallFailedError if none."""
        tls = address.startswith(HTTPS)
        address = address.removeprefix(HTTPS)
        listener = self._listeners.get(address)
        if listener is None:
            node = self._living(address)
            if node is None:
                raise CallFailedError(Broken.REFUSED, address)
            self._greet(address, tls=tls)
            return _Connection(self, node, None)
        if not listener.enabled:
            raise CallFailedError(Broken.REFUSED, address)
        node = self._living(listener.upstream)
        if node is not None:
            listener.seen["tls" if tls else "plain"] += 1
            self._greet(listener.upstream, tls=tls)
        return _Connection(self, node, listener)

    def _greet(self, address: str, *, tls: bool) -> None:
        """The handshake, in no time: both speak the same, and the certificate holds."""
        served = self._certificates.get(address)
        if tls and served is None:
            raise CallFailedError(Broken.TLS, f"{address} speaks no TLS")
        if served is not None and not tls and not served.also_plain:
            raise CallFailedError(Broken.CLOSED, f"{address} speaks TLS only")
        if served is not None and tls and served.expired:
            raise CallFailedError(Broken.TLS, f"{address}: certificate has expired")

    def _living(self, address: str) -> Node | None:
        node = self._nodes.get(address)
        return None if node is None or node.dead or node.leaving else node


class _Chunks(AsyncIterator[bytes]):
    """The body as it arrives. No async generator: its finalizer would need the loop's help."""

    __slots__ = ("_connection",)

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    def __anext__(self) -> Coroutine[Any, Any, bytes]:
        return self._connection.chunk()


class MemoryResponse:
    """See survive.transport.Response."""

    __slots__ = ("_connection", "_head")

    def __init__(self, head: _Head, connection: _Connection) -> None:
        self._head = head
        self._connection = connection

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self._head.status

    @property
    def headers(self) -> dict[str, str]:
        """Lower-case names; of repeated headers the last."""
        return self._head.headers

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises CallFailedError if it ends early."""
        return _Chunks(self._connection)

    async def close(self) -> None:
        """Leave. Idempotent."""
        self._connection.leave()


class MemoryTransport:
    """See survive.transport.Transport: calls the app of the node behind an address."""

    def __init__(self, network: MemoryNetwork) -> None:
        self.network = network

    async def call(self, address: str, request: Request, *, timeout_s: float) -> MemoryResponse:
        """The answer's head within ``timeout_s`` of loop time or CallFailedError."""
        connection = self.network.open(address)
        return MemoryResponse(await connection.ask(request, timeout_s), connection)

    async def linger(self, address: str, request: Request, *, timeout_s: float) -> float:
        """See Transport.linger."""
        connection = self.network.open(address)
        ended = connection.watch_end()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                await connection.ask(request, timeout_s)
                async for _ in _Chunks(connection):
                    pass
                answered = loop.time()
                await ended.wait()
                return loop.time() - answered
        except TimeoutError as error:
            raise CallFailedError(Broken.TIMEOUT, address) from error
        finally:
            connection.abandon()
