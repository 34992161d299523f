"""The lanes of the real load: gevent greenlets on raw non-blocking sockets.

Shapes and figures are measured (docs of the design): one persistent io watcher a connection and
one wait point a lane cost what plain callbacks cost; deadlines are swept, since a timer per
request costs a fifth; arrivals are paced by a timerfd plus a spin of 60 us in libev's idle watcher,
because libev's own timers know only milliseconds. Everything but the lanes' own code runs in
callbacks of the hub, so nothing here needs a lock.

What a lane's one wait point can give: a Job (parked lanes only), READABLE, WRITABLE, LATE, STOP,
AGAIN (a user who waits before the next attempt has waited).
"""

from __future__ import annotations

import errno
import resource
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.event
from greenlet import greenlet  # type: ignore[import-untyped,unused-ignore]

from survive.address import Address
from survive.load.alarm import Alarm
from survive.load.core import Cursor, Exchange, Filing, Job, rules
from survive.load.desk import IDLE_ENDED, SPIN_US, Handed, make_desk
from survive.load.http1 import AnswerReader, NotHttpError, encode
from survive.load.leases import LEASE_US
from survive.load.secure import Secure
from survive.load.stalls import STALL_NS, Stalls
from survive.load.stripes import Ownership, Striped, Table
from survive.load.tcp import lain_us
from survive.load.template import CompiledKind
from survive.load.users import Turns
from survive.plan.arrivals import Block, Schedule
from survive.plan.model import Plan
from survive.record.samples import Frame
from survive.transport import Broken
from survive.units import SECOND

SWEEP_S = 0.05  # how often deadlines are looked at
BLOCKED_NS = 20_000  # a shorter poll found something ready: it was no idling
SWEEP_NS = round(SWEEP_S * 1e9)  # so no poll should last longer
# Below 5 % a second counts as never idle: single waits happen in a saturated loop too.
IDLE_FLOOR_US = 50_000
STALE_GRACE_US = 5_000  # beyond two connect times a close is no crossing of an idle close
STALE_MAX_US = 250_000
READ_BYTES = 65_536
BACKLOG_FULL_S = 0.001  # then a Unix socket is asked again: nothing says when there is room

READABLE, WRITABLE, LATE, STOP, AGAIN = 1, 2, 3, 4, 5
_READ, _WRITE = 1, 2  # libev's event bits
_NO_PORTS = {errno.EADDRNOTAVAIL: "no_ports", errno.EMFILE: "no_fds", errno.ENFILE: "no_fds",
             errno.ENOBUFS: "no_buffers", errno.ENOMEM: "no_memory"}  # fmt: skip
_DEAD = (ConnectionResetError, BrokenPipeError, ConnectionAbortedError)


class Engine:
    """One worker: its lanes, pacer, sweep and frames.

    ``report`` takes a Frame each second, the last with ``done``. ``fail`` is told of a bug of ours,
    once; the engine is then dead. ``finished`` is set after the last frame.
    """

    def __init__(
        self, plan: Plan, kinds: list[CompiledKind], address: str,
        report: Callable[[Frame], None], fail: Callable[[BaseException], None],
        worker: int = 0, workers: int = 1, authority: str = "",
    ) -> None:  # fmt: skip
        self.loop = gevent.get_hub().loop
        self.hub = gevent.get_hub()
        self.finished = gevent.event.Event()
        self.filing = Filing(plan)
        self.rules = rules(plan, kinds)
        place = Address.parse(address)
        self.family, self.peer = resolve(place)
        self.secure = Secure(place.server_name, authority) if place.server_name else None
        self.payloads = [[encode(r, place.host_header) for r in kind.requests] for kind in kinds]
        self.head_only = [[r.method == "HEAD" for r in kind.requests] for kind in kinds]
        blocks: Iterator[Block] = Schedule.of(plan).blocks()
        if workers > 1:
            blocks = Striped(blocks, Ownership.of(workers), worker)
        self._lanes: list[Lane] = []
        self._desk = make_desk(
            plan, blocks, self.filing, self.rules, self.payloads, self.head_only,
            -(-plan.lanes // workers), self._lanes, self._new_lane, self.now_us,
            secure=self.secure is not None, part=(worker, workers),
        )  # fmt: skip
        self._cursor = self._desk.cursor
        if workers > 1:
            self._desk.lease_us = LEASE_US  # it sends until then
        # Others' work may become ours, and who waits for an answer may ask again.
        self._last_due_us = 0 if workers == 1 and not plan.closed else plan.end_us
        self._report, self._fail = report, fail
        self._origin_ns = 0
        self._alarm = Alarm()
        self._armed: int | None = None
        self._second = 0
        self._idle_ns = self._blocked_at_ns = self._awake_ns = 0
        self._stalls = Stalls()
        self._switches = 0  # voluntary ones of this thread, at the last idle poll
        self._called = False  # a call of _pace is on its way
        self._counted = False  # this turn's poll is in _idle_ns already
        self._running = False
        self._watch_alarm = self.loop.io(self._alarm.fd, _READ)
        self._watch_desk = self.loop.io(self._desk.fd, _READ) if self._desk.fd >= 0 else None
        self._spin = self.loop.idle()
        self._sweep = self.loop.timer(SWEEP_S, SWEEP_S)
        self._prepare = self.loop.prepare()
        self._check = self.loop.check()

    # ---------------------------------------------------------------------- from outside

    def start(self, origin_us: int) -> None:
        """Begin; t = 0 of the run is that moment of CLOCK_MONOTONIC, in µs."""
        self._origin_ns = origin_us * 1000
        self._desk.begin(self._origin_ns)
        self._running = True
        self._awake_ns = time.monotonic_ns()
        self._watch_alarm.start(self._guarded(self._alarmed))
        if self._watch_desk is not None:
            self._watch_desk.start(self._guarded(self._pace))
        self._sweep.start(self._guarded(self._swept))
        self._prepare.start(self._before_block)
        self._check.start(self._after_block)
        self._guarded(self._pace)()

    def stop(self) -> None:
        """Leave at once: what waits is unsent, what is unanswered in flight. From the hub."""
        self._guarded(self._stop)()

    def renew(self, until_us: int) -> None:
        """Nobody else sends this worker's part until then. From the hub."""
        self._desk.lease_us = max(self._desk.lease_us, until_us)
        self._guarded(self._pace)()

    def restripe(self, at_us: int, table: Table) -> None:
        """Who owns what has changed. From the hub."""
        cursor = self._cursor
        assert isinstance(cursor, Cursor), "nobody takes over users"
        self._guarded(lambda: cursor.restripe(at_us, table, self.now_us()))()
        self._guarded(self._pace)()

    def now_us(self) -> int:
        """The run's clock."""
        return (time.monotonic_ns() - self._origin_ns) // 1000

    # ------------------------------------------------------------------------ for lanes

    def next_job(self, lane: Lane, now_us: int) -> Job | None:
        """A lane is free: an overdue arrival for it, or None and it is parked."""
        job = self._desk.freed(lane, now_us, takes=self._running)
        if job is None and self._running:
            self._rearm(now_us)
        return job

    def broke(self, error: BaseException) -> None:
        """A bug of ours; nothing that follows could be trusted."""
        if self._running:
            self._running = False
            self._quiet()
            self._fail(error)

    # --------------------------------------------------------------------------- pacing

    def _alarmed(self) -> None:
        self._alarm.arm(0)
        self._armed = None
        self._pace()

    def _pace(self) -> None:
        """Hand out what is due, then sleep until just before what is next. In the hub."""
        self._called = False
        if self._running:
            self._desk.hand_out()
        self._rearm(self.now_us())

    def _rearm(self, now_us: int) -> None:
        """Wake up for the next arrival if a lane is free for it, else when one is."""
        due = self._desk.next_due_us()
        if due is None or now_us > self._desk.lease_us or not self._running:
            self._spin.stop()
        elif due <= now_us:  # not by the spin: a busy loop is never idle
            self._spin.stop()
            if not self._called:
                self._called = True
                self.loop.run_callback(self._guarded(self._pace))
        elif due - now_us <= SPIN_US:
            if not self._spin.active:
                self._spin.start(self._guarded(self._spun))
        else:
            self._spin.stop()
            if self._armed != due:
                self._armed = due
                self._alarm.arm(self._origin_ns + (due - SPIN_US) * 1000)

    def _spun(self) -> None:
        """libev calls this only when a turn of the loop had nothing else to do: idle time too."""
        if not self._counted:
            self._idle_ns += time.monotonic_ns() - self._blocked_at_ns
        due = self._cursor.next_due_us()
        if due is None or self.now_us() >= due:
            self._spin.stop()
            self._pace()

    def _new_lane(self) -> Lane:
        lane = Lane(self, len(self._lanes))
        self._lanes.append(lane)
        return lane

    # ------------------------------------------------------------------- sweep and frames

    def _swept(self) -> None:
        now = self.now_us()
        if time.monotonic_ns() - self._awake_ns < STALL_NS:
            self._stalls.look()
        for lane in list(self._lanes):
            exchange = lane.exchange
            if exchange is not None and now >= exchange.deadline_us:
                lane.switch(LATE)
        self._desk.wake_late(now, LATE)
        self._cursor.expire(now)
        if now >= (self._second + 1) * SECOND:
            self._cut_second(now)
        self._finish_if_drained()

    def _cut_second(self, now_us: int) -> None:
        waited, spun_ns = self._desk.second()
        idle_us = min((self._idle_ns + spun_ns) // 1000, now_us - self._second * SECOND)
        starved = waited > 0 and idle_us < IDLE_FLOOR_US
        self.filing.harness(self._second * SECOND, idle_us, waited if starved else None)
        self.filing.stalled(self._second * SECOND, *self._stalls.take())
        if isinstance(self._cursor, Turns):
            present = self._cursor.present((self._second + 1) * SECOND - 1)
            self.filing.users(self._second * SECOND, present)
        self._idle_ns = 0
        self._second = now_us // SECOND
        self._cursor.forget(now_us)
        self._desk.file()
        self._report(self.filing.cut(now_us))

    def _finish_if_drained(self) -> None:
        busy = self._desk.busy or any(lane.exchange is not None for lane in self._lanes)
        over = self._cursor.next_due_us() is None and self.now_us() >= self._last_due_us
        if self._running and over and not busy:
            self._end()

    def _stop(self) -> None:
        if not self._running:
            return
        self._running = False  # a lane that this frees must take nothing more
        for lane in list(self._lanes):
            if lane.exchange is not None:
                lane.switch(STOP)
        self._desk.wake_busy(STOP)
        self._cursor.stop(self.now_us())
        self._end()

    def _end(self) -> None:
        self._running = False
        self._quiet()
        self.filing.stalled(self._second * SECOND, *self._stalls.take())
        self._desk.file()
        self._report(self.filing.cut(self.now_us(), done=True))
        self.finished.set()

    def _quiet(self) -> None:
        for watcher in (
            self._watch_alarm, self._watch_desk, self._spin, self._sweep, self._prepare,
            self._check,
        ):  # fmt: skip
            if watcher is not None:
                watcher.stop()

    def _before_block(self) -> None:
        self._blocked_at_ns = now = time.monotonic_ns()
        if now - self._awake_ns > STALL_NS:
            self._stood_still(now - self._awake_ns, now)

    def _after_block(self) -> None:
        """A poll was idle time if it was long and really gave up the processor: one that a
        neighbour's process interrupted was long too, and yet something was ready all the time."""
        self._awake_ns = now = time.monotonic_ns()
        span = now - self._blocked_at_ns
        self._counted = False
        if span >= BLOCKED_NS:
            if span > SWEEP_NS + STALL_NS:
                self._stood_still(span - SWEEP_NS, now)
            switches = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
            if switches != self._switches:
                self._switches = switches
                self._idle_ns += span
                self._counted = True

    def _stood_still(self, span_ns: int, end_ns: int) -> None:
        self._stalls.seen(span_ns)
        end_us = (end_ns - self._origin_ns) // 1000
        self.filing.away(end_us - span_ns // 1000, end_us)

    def _guarded(self, callback: Callable[[], None]) -> Callable[[], None]:
        """gevent prints what a hub callback raises and goes on; we must not."""

        def run() -> None:
            try:
                callback()
            except BaseException as error:
                self.broke(error)

        return run


class Lane(greenlet):  # type: ignore[misc]  # greenlet is untyped here
    """One connection that sends one request at a time."""

    def __init__(self, engine: Engine, index: int) -> None:
        super().__init__(self._live, engine.hub)
        self.index = index
        self._engine = engine
        self._hub = engine.hub
        self._socket: socket.socket | None = None
        self._watcher: Any = None
        self._lent = False  # the connection is in the desk's hands
        self._reader = AnswerReader()
        self._connect_us = 0
        self.exchange: Exchange | None = None

    def lend(self) -> int:
        """See DeskLane."""
        if self._socket is None:
            return -1
        self._watcher.stop()
        self._lent = True
        return self._socket.fileno()

    def _live(self, work: Job | Handed) -> None:
        try:
            while True:
                now = self._serve(work)
                found = self._engine.next_job(self, now)
                work = found if found is not None else self._parked()
        except BaseException as error:
            self._engine.broke(error)

    def _parked(self) -> Job | Handed:
        """Wait for work. A byte or an end on an idle connection means: do not use it again."""
        while True:
            signal = self._hub.switch()
            if self._lent:  # the desk lets go of it in whatever it says
                self._lent = False
                self._watcher.start(self.switch, READABLE)
            if isinstance(signal, Job | Handed):
                return signal
            if signal is IDLE_ENDED or (signal == READABLE and not self._only_keys()):
                self._close()

    def _only_keys(self) -> bool:
        """What came on an idle connection is TLS's own (session tickets, new keys)."""
        if self._engine.secure is None or self._socket is None:
            return False
        try:
            self._socket.recv(1)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def _serve(self, work: Job | Handed) -> int:
        """One request to its fate; the moment at which the lane is free again."""
        engine = self._engine
        job, handed = (work.job, work) if isinstance(work, Handed) else (work, None)
        payloads = engine.payloads[job.kind]
        row = job.row % len(payloads)
        exchange = Exchange(engine.filing, engine.rules[job.kind], job)
        began = engine.now_us() if handed is None else handed.sent_us
        exchange.on_sent(began)
        self.exchange = exchange
        head_only = engine.head_only[job.kind][row]
        try:
            now = self._once(exchange, payloads[row], head_only, began, handed)
            while exchange.again_us is not None:
                now = self._until_again(exchange)
                if exchange.outcome is None:
                    now = self._once(exchange, payloads[row], head_only, now)
        finally:
            self.exchange = None
        return now

    def _until_again(self, exchange: Exchange) -> int:
        """Wait, as the user does, until the next attempt is due or the exchange has ended."""
        engine = self._engine
        assert exchange.again_us is not None
        if self._waited(max(0, exchange.again_us - engine.now_us()) / SECOND, exchange):
            now = engine.now_us()
            exchange.on_again(now)
            return now
        exchange.again_us = None
        return engine.now_us()

    def _waited(self, seconds: float, exchange: Exchange) -> bool:
        """Do nothing for a while; False if the exchange ended before it was over."""
        timer = self._engine.loop.timer(seconds)
        timer.start(self.switch, AGAIN)
        try:
            while True:
                signal = self._hub.switch()
                if signal == READABLE:
                    if not self._only_keys():
                        self._close()  # idle, and the server closed it
                elif signal == AGAIN:
                    return True
                elif self._ended(exchange, signal):
                    return False
        finally:
            timer.stop()
            timer.close()

    def _once(
        self, exchange: Exchange, payload: bytes, head_only: bool, began_us: int,
        handed: Handed | None = None,
    ) -> int:  # fmt: skip
        """One attempt, sent twice if it met a connection that the server had closed idle."""
        now, stale = self._attempt(exchange, payload, head_only, began_us, handed)
        if stale:
            exchange.on_stale(now)
            now, _ = self._attempt(exchange, payload, head_only, now)
        return now

    def _attempt(
        self, exchange: Exchange, payload: bytes, head_only: bool, sent_us: int,
        handed: Handed | None = None,
    ) -> tuple[int, bool]:  # fmt: skip
        """Once over the wire: when it ended, and whether it only met a stale connection."""
        reused = self._socket is not None
        if not reused:
            if not self._connect(exchange):
                return self._engine.now_us(), False
            sent_us = self._engine.now_us()
        self._reader.expect(exchange, head_only)
        if not self._send(exchange, payload, sent_us, handed):
            now = self._engine.now_us()
            self._close()
            if exchange.outcome is None and reused:
                return now, True
            exchange.on_broken(Broken.RESET, now)
            return now, False
        return self._receive(exchange, sent_us, reused, handed)

    # -------------------------------------------------------------------------- connect

    def _connect(self, exchange: Exchange) -> bool:
        engine = self._engine
        began = engine.now_us()
        try:
            made = socket.socket(engine.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            exchange.on_client_error(_NO_PORTS.get(error.errno or 0, "socket"), began)
            return False
        if engine.family != socket.AF_UNIX:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while (code := made.connect_ex(engine.peer)) == errno.EAGAIN:
            if not self._waited(BACKLOG_FULL_S, exchange):
                made.close()
                return False
        if code == errno.EINPROGRESS:
            if not self._until(made, WRITABLE, exchange):
                made.close()
                return False
            code = made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        now = engine.now_us()
        if not code and made.getsockname() == made.getpeername():
            code = errno.ECONNREFUSED  # loopback connected to itself: nobody listens there
        if code:
            made.close()
            self._unconnected(exchange, code, now)
            return False
        self._connect_us = now - began
        if engine.secure is not None:
            secured = self._shaken(engine.secure, made, exchange)
            if secured is None:
                return False
            made = secured
        self._socket = made
        self._reader = AnswerReader()
        self._watcher = engine.loop.io(made.fileno(), _READ)
        self._watcher.start(self.switch, READABLE)
        return True

    def _shaken(
        self, secure: Secure, made: socket.socket, exchange: Exchange
    ) -> socket.socket | None:
        """The verified connection; None if there is no trust, or the exchange ended before."""
        wire: socket.socket = secure.wrap(made)
        try:
            while wanted := secure.shake(wire):
                signal = READABLE if wanted == "read" else WRITABLE
                if not self._until(wire, signal, exchange):
                    wire.close()
                    return None
            return wire
        except secure.failures:
            exchange.on_broken(Broken.TLS, self._engine.now_us())
        except OSError:
            exchange.on_broken(Broken.RESET, self._engine.now_us())
        wire.close()
        return None

    def _unconnected(self, exchange: Exchange, code: int, now: int) -> None:
        if code in _NO_PORTS:
            exchange.on_client_error(_NO_PORTS[code], now)
        elif code in (errno.ECONNRESET, errno.ECONNABORTED):
            exchange.on_broken(Broken.RESET, now)
        elif code == errno.ETIMEDOUT:
            exchange.on_broken(Broken.TIMEOUT, now)
        else:
            exchange.on_broken(Broken.REFUSED, now)

    def _until(self, sock: socket.socket, wanted: int, exchange: Exchange) -> bool:
        """Wait until the socket is READABLE or WRITABLE; False if the exchange ended first."""
        watcher = self._engine.loop.io(sock.fileno(), _READ if wanted == READABLE else _WRITE)
        watcher.start(self.switch, wanted)
        try:
            while True:
                signal = self._hub.switch()
                if signal == wanted:
                    return True
                if self._ended(exchange, signal):
                    return False
        finally:
            watcher.stop()
            watcher.close()

    def _ended(self, exchange: Exchange, signal: object) -> bool:
        """The sweep or the stop of the run has ended it."""
        now = self._engine.now_us()
        if signal == LATE:
            return exchange.on_deadline(now) is not None
        if signal == STOP:
            exchange.on_stopped(now)
            return True
        return False

    # ------------------------------------------------------------------- send and receive

    def _send(
        self, exchange: Exchange, payload: bytes, sent_us: int, handed: Handed | None
    ) -> bool:
        """False if the connection turned out dead, or the exchange ended meanwhile."""
        sock = self._socket
        assert sock is not None
        try:
            done = sock.send(payload) if handed is None else handed.sent()
        except BlockingIOError:
            done = 0
        except _DEAD:
            return False
        exchange.on_attempt(sent_us)
        return done == len(payload) or self._send_rest(sock, exchange, memoryview(payload)[done:])

    def _send_rest(self, sock: socket.socket, exchange: Exchange, rest: memoryview) -> bool:
        self._watcher.stop()  # an early answer stays readable until all is sent
        try:
            while rest:
                if not self._until(sock, WRITABLE, exchange):
                    return False
                try:
                    rest = rest[sock.send(rest) :]
                except BlockingIOError:
                    continue
                except _DEAD:
                    break  # it may have answered before it closed: read that
        finally:
            self._watcher.start(self.switch, READABLE)
        return True

    def _receive(
        self, exchange: Exchange, sent_us: int, reused: bool, handed: Handed | None
    ) -> tuple[int, bool]:
        engine, reader, sock = self._engine, self._reader, self._socket
        assert sock is not None
        if handed is not None and not handed.has_read:
            handed = None
        while True:
            signal = self._hub.switch() if handed is None else READABLE
            if signal != READABLE:
                if self._ended(exchange, signal):
                    self._close()
                    return engine.now_us(), False
                continue
            try:
                data = sock.recv(READ_BYTES) if handed is None else handed.read()
                how = Broken.CLOSED
            except BlockingIOError:
                continue
            except OSError:
                data, how = b"", Broken.RESET
            now = engine.now_us() if handed is None else handed.at_us
            handed = None
            if not data:
                ended_us = now - (lain_us(sock) if how is Broken.CLOSED else 0)
                self._close()
                return now, self._broken(exchange, how, now, ended_us - sent_us, reused)
            try:
                reader.feed(data, now)
            except NotHttpError:
                exchange.on_broken(Broken.PROTOCOL, now)
            if exchange.outcome is not None or exchange.again_us is not None:
                if not reader.reusable:
                    self._close()
                return now, False

    def _broken(
        self, exchange: Exchange, how: Broken, now: int, held_us: int, reused: bool
    ) -> bool:
        """The connection ended under the request, ``held_us`` after it went. True if it was stale.

        Stale = closed by the server while idle, which our request crossed on its way: that shows
        within a round trip, and the time to connect has measured one. A server that dies later
        with our request in hand has failed it.
        """
        if how is Broken.CLOSED and self._reader.eof(now):
            return False
        window = min(2 * self._connect_us + STALE_GRACE_US, STALE_MAX_US)
        if reused and not self._reader.heard and held_us <= window:
            return True
        exchange.on_broken(how, now)
        return False

    def _close(self) -> None:
        if self._socket is not None:
            self._watcher.stop()
            self._watcher.close()
            self._socket.close()
            self._socket = self._watcher = None


def resolve(place: Address) -> tuple[socket.AddressFamily, Any]:
    """The family and the peer to connect to. Raises OSError."""
    if place.path:
        return socket.AF_UNIX, place.path
    found = socket.getaddrinfo(place.dial_host, place.dial_port, type=socket.SOCK_STREAM)
    return found[0][0], found[0][4]
