"""The network of the virtual host: nodes, calls between them, and fault proxies, all in memory.

A *node* is one replica: an ASGI app and its tasks. It can be killed (its tasks never run another
step but for synchronous ``finally`` blocks, its connections are reset) and paused (no task of it
takes a step; ports accept, timers that expire meanwhile fire on resume): what SIGKILL and SIGSTOP
do. Tasks that a node's tasks create belong to it too, whatever asyncio call made them.

A *listener* is a fault proxy's listener in front of an address, with Toxiproxy's semantics. A call
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
from typing import Any, ClassVar, TypeAlias
from urllib.parse import unquote

from survive.clock import Clock
from survive.contracts import AsgiApp, Scope, Toxic
from survive.transport import Broken, CallFailedError, Request

LEAVE_GRACE_S = 1.0  # how long an app may go on after its client left
HIGH_WATER = 256 * 1024  # unread bytes of an answer at which its app has to wait
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
    """One boot of one replica. ``boot`` is unique in its network, as a pid is on a host.

    ``on_end`` is called once, with the reason, when the node is gone for whatever cause.
    """

    def __init__(self, name: str, boot: int, born_us: int) -> None:
        self.name = name
        self.boot = boot
        self.born_us = born_us
        self.paused = False
        self.dead = False
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


# --------------------------------------------------------------------------------- fault proxies


class Listener:
    """One listener of a fault proxy: Toxiproxy's semantics, in memory.

    ``latency``: each chunk leaves at its arrival + latency ± jitter, order kept, pipelined.
    Removing the last toxic of a stream lets go what it held back, in order. Disabling resets every
    connection and refuses new ones. A dead upstream is accepted, then closed.
    """

    KNOWN: ClassVar[frozenset[str]] = frozenset({"latency"})

    def __init__(
        self, network: MemoryNetwork, address: str, upstream: str, chance: random.Random
    ) -> None:
        self.address = address
        self.upstream = upstream
        self.enabled = True
        self.toxics: dict[str, Toxic] = {}
        self._network = network
        self._chance = chance
        self._connections: dict[_Connection, None] = {}

    def add(self, toxic: Toxic) -> None:
        """Create or replace a toxic; live connections feel it. Raises ValueError if unknown."""
        if toxic.type not in self.KNOWN or toxic.stream not in {"upstream", "downstream"}:
            raise ValueError(f"invalid toxic: {toxic.type} on {toxic.stream}")
        for name in ("latency", "jitter"):
            value = toxic.attributes.get(name, 0)
            if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
                raise ValueError(f"invalid {name}: {value!r}")
        self.toxics[toxic.name] = toxic

    def remove(self, name: str) -> None:
        """Remove a toxic; absent is fine."""
        gone = self.toxics.pop(name, None)
        if gone is None:
            return
        freed = not any(toxic.stream == gone.stream for toxic in self.toxics.values())
        for connection in list(self._connections):
            connection.toxic_removed(gone, freed)

    def enable(self, on: bool) -> None:
        """Open or close the listener and its connections."""
        self.enabled = on
        if not on:
            for connection in list(self._connections):
                connection.proxy_reset()

    def opened(self, connection: _Connection) -> None:
        """A connection runs through this listener."""
        self._connections[connection] = None

    def closed(self, connection: _Connection) -> None:
        """It does no longer."""
        self._connections.pop(connection, None)

    def delay_us(self, stream: str, hit: dict[str, bool]) -> int:
        """How long a chunk is held back. ``hit``: what toxicity drew for this connection."""
        total = 0
        for toxic in self.toxics.values():
            if toxic.stream != stream or not self._hits(toxic, hit):
                continue
            total += _ms(toxic, "latency")
            jitter = _ms(toxic, "jitter")
            if jitter:
                total += self._chance.randrange(-jitter, jitter)
        return max(0, total)

    def _hits(self, toxic: Toxic, hit: dict[str, bool]) -> bool:
        if toxic.toxicity >= 1.0:
            return True
        if toxic.name not in hit:
            hit[toxic.name] = self._chance.random() < toxic.toxicity
        return hit[toxic.name]


def _ms(toxic: Toxic, name: str) -> int:
    """An attribute in Toxiproxy's milliseconds, as microseconds."""
    value = toxic.attributes.get(name, 0)
    return round(value * 1000) if isinstance(value, int | float) else 0


class _Pipe:
    """One direction of a connection through a listener."""

    __slots__ = (
        "_clock",
        "_deliver",
        "_due_us",
        "_hit",
        "_listener",
        "_queue",
        "_stream",
        "_timer",
    )

    def __init__(
        self, listener: Listener, stream: str, clock: Clock, deliver: Callable[[Any], None]
    ) -> None:
        self._listener = listener
        self._stream = stream
        self._clock = clock
        self._deliver = deliver
        self._hit: dict[str, bool] = {}
        self._queue: deque[tuple[int, Any]] = deque()
        self._due_us = 0
        self._timer: asyncio.TimerHandle | None = None

    def push(self, item: Any, *, chunk: bool = True) -> None:
        """Send on. An end of the stream (``chunk`` False) is not held back, but keeps its place."""
        if not self._queue and not (chunk and self._listener.toxics):
            self._deliver(item)
            return
        now = self._clock.now_us()
        due = now + (self._listener.delay_us(self._stream, self._hit) if chunk else 0)
        if self._queue:
            due = max(due, self._due_us)
        self._queue.append((due, item))
        self._due_us = due
        if len(self._queue) == 1:
            self._release()

    def flush(self) -> None:
        """Everything leaves now."""
        while self._queue:
            self._deliver(self._queue.popleft()[1])
        self._disarm()

    def drop(self) -> None:
        """Everything is lost."""
        self._queue.clear()
        self._disarm()

    def forget(self, toxic: Toxic) -> None:
        """A toxic of that name, added later, draws anew."""
        self._hit.pop(toxic.name, None)

    @property
    def stream(self) -> str:
        """``upstream`` or ``downstream``."""
        return self._stream

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _release(self) -> None:
        self._timer = None
        now = self._clock.now_us()
        while self._queue and self._queue[0][0] <= now:
            self._deliver(self._queue.popleft()[1])
        if self._queue:
            wait_s = (self._queue[0][0] - now) / 1e6
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._release)


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
        self._up: _Pipe | None = None
        self._down: _Pipe | None = None
        if listener is not None:
            self._up = _Pipe(listener, "upstream", network.clock, self._arrive)
            self._down = _Pipe(listener, "downstream", network.clock, self._deliver)
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
        elif self._up is not None:
            self._up.push(request)
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

    def leave(self) -> None:
        """The client goes; the app sees a disconnect if it was not done. Idempotent."""
        if self._left:
            return
        self._left = True
        self._inbox.clear()
        self._end_client()
        if self._waiter is not None:
            _wake(self._waiter)
        if self._down is not None:
            self._down.drop()
        if self._complete or self._node is None:
            return
        if self._up is not None:
            self._up.push(_END, chunk=False)
        else:
            self._arrive(_END)

    def _expire(self) -> None:
        self._deliver(Broken.TIMEOUT)

    def _deliver(self, item: _Item) -> None:
        """Put into the client's inbox."""
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
        if self._listener is not None:
            self._listener.closed(self)

    # -- between

    def toxic_removed(self, toxic: Toxic, freed: bool) -> None:
        """``freed``: no toxic is left on its stream, so what was held back leaves."""
        for pipe in (self._up, self._down):
            if pipe is not None and pipe.stream == toxic.stream:
                pipe.forget(toxic)
                if freed:
                    pipe.flush()

    def proxy_reset(self) -> None:
        """The proxy cut the connection, on both sides."""
        for pipe in (self._up, self._down):
            if pipe is not None:
                pipe.drop()
        self._deliver(Broken.RESET)
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
        if self._down is not None:
            self._down.push(Broken.CLOSED, chunk=False)
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
        if self._down is not None:
            self._down.push(last, chunk=False)
        else:
            self._deliver(last)

    def _push(self, item: _Head | bytes) -> None:
        if self._down is not None:
            self._down.push(item)
        else:
            self._deliver(item)

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if self._gone.is_set() or self._left:
            if self._complete:
                raise RuntimeError(f"unexpected {message['type']} after the answer's end")
            return  # nobody listens: as uvicorn does
        if message["type"] == "http.response.start":
            self._start_answer(message)
        elif message["type"] == "http.response.body":
            await self._send_body(message)
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

    async def _send_body(self, message: dict[str, Any]) -> None:
        if not self._started:
            raise RuntimeError("a body before the answer's start")
        body = bytes(message.get("body", b""))
        if body:
            self._unread += len(body)
            self._push(body)
        if not message.get("more_body", False):
            self._finish(_END)
        elif self._unread > HIGH_WATER:
            self._room = asyncio.get_running_loop().create_future()
            try:
                await self._room
            finally:
                self._room = None


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


class MemoryNetwork:
    """Who listens where. Addresses look like real ones, boots count up over all nodes."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._nodes: dict[str, Node] = {}
        self._listeners: dict[str, Listener] = {}
        self._next_port = _FIRST_PORT
        self._boots = 0

    def address(self) -> str:
        """A new ``127.0.0.1:port`` that nobody has."""
        self._next_port += 1
        return f"127.0.0.1:{self._next_port - 1}"

    def node(self, name: str) -> Node:
        """A new node, born now; it does not listen yet."""
        self._boots += 1
        return Node(name, self._boots, self.clock.now_us())

    def listen(self, address: str, node: Node) -> None:
        """From now on ``node`` answers there. Raises ValueError if a living one does already."""
        if self._living(address) is not None or address in self._listeners:
            raise ValueError(f"{address} is taken")
        self._nodes[address] = node

    def proxy(self, upstream: str, chance: random.Random) -> Listener:
        """A fault proxy's listener in front of an address, at a new address."""
        listener = Listener(self, self.address(), upstream, chance)
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
        node = self._living(address)
        return node if node is not None and node.boot == boot else None

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
        """A connection for one call. Raises CallFailedError(REFUSED)."""
        listener = self._listeners.get(address)
        if listener is None:
            node = self._living(address)
            if node is None:
                raise CallFailedError(Broken.REFUSED, address)
            return _Connection(self, node, None)
        if not listener.enabled:
            raise CallFailedError(Broken.REFUSED, address)
        return _Connection(self, self._living(listener.upstream), listener)

    def _living(self, address: str) -> Node | None:
        node = self._nodes.get(address)
        return None if node is None or node.dead else node


class _Chunks(AsyncIterator[bytes]):
    """The body as it arrives. No async generator: its finalizer would need the loop's help."""

    __slots__ = ("_connection",)

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    async def __anext__(self) -> bytes:
        item = await self._connection.next()
        if isinstance(item, bytes):
            return item
        if isinstance(item, _End):
            raise StopAsyncIteration
        raise CallFailedError(item if isinstance(item, Broken) else Broken.PROTOCOL)


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
