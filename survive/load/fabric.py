"""Several load workers on Locust: this side is its master, worker.py the other.

Locust carries processes, machines and messages; what the messages say is ours (message type
"survive", a dict with one word of ours each). Workers send sparse histograms, which pass through
here unchanged to the record: adding is exact, so is the merge. Leases and losses: leases.py.

Locust's wire is not encrypted and asks nobody who he is; see docs/distributed-load.md.
"""

# ruff: noqa: I001
from __future__ import annotations

from survive.load.locust_host import (
    Control,
    Pipe,
    RefusedHere,
    die_of,
    leave,
    user_class,
)  # Locust comes first of all

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gevent
import gevent.event
import locust
from locust import runners
from locust.env import Environment

from survive import __version__
from survive.errors import ExitCode, HarnessError
from survive.load.leases import Leases, TakeOver
from survive.load.wire import LoadFailed, Ready, decode, encode_frame
from survive.plan.arrivals import Schedule
from survive.plan.model import Plan
from survive.record.samples import Frame

MESSAGE = "survive"
VERSIONS = {"survive": __version__, "locust": locust.__version__}
MAX_CLOCK_ERROR_US = 5_000
COME_WITHIN_S = 60.0  # expected machines
_TICK_S = 0.05
_READ = 1  # libev's event bit
_PDEATHSIG = 1  # prctl


@dataclass(frozen=True, slots=True)
class Forked:
    """A worker process of our own that waits for the master's port."""

    pid: int
    port_fd: int


def fork_workers(count: int, not_theirs: Sequence[int]) -> list[Forked]:
    """Fork workers before any ZeroMQ socket or gevent hub exists; they die with this process.

    ``not_theirs``: our parent's pipes, which must end when *we* do.
    """
    parent = os.getpid()
    forked: list[Forked] = []
    for _ in range(count):
        read_fd, write_fd = os.pipe()
        pid = os.fork()
        if pid == 0:
            for fd in (*not_theirs, write_fd, *(other.port_fd for other in forked)):
                os.close(fd)
            _live_as_worker(read_fd, parent)
        os.close(read_fd)
        forked.append(Forked(pid, write_fd))
    return forked


def _live_as_worker(port_fd: int, parent: int) -> None:
    """What a fork does: never returns."""
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(int(ExitCode.TERMINATED))
    port = os.read(port_fd, 16)
    if not port:
        os._exit(int(ExitCode.TERMINATED))
    from survive.load.worker import serve  # it imports this module

    try:
        serve("127.0.0.1", int(port))
    except BaseException as error:
        print(f"load worker: {error!r}", file=sys.stderr, flush=True)
        os._exit(int(ExitCode.BUG))
    os._exit(0)


def run_master(
    spec_file: Path, control_fd: int, pipe: Pipe, bind: str, count: int, forked: Sequence[Forked]
) -> None:
    """The whole life of the master; see process.py for the pipes."""
    # The last worker that goes missing would make Locust stop the test and wait for a minute.
    runners.HEARTBEAT_LIVENESS = 1 << 30
    host, _, port = bind.rpartition(":")
    environment = Environment(user_classes=[user_class(lambda: None)])
    runner = environment.create_master_runner(host or "127.0.0.1", int(port))
    for fork in forked:
        os.write(fork.port_fd, str(runner.server.port).encode())
        os.close(fork.port_fd)
    _Master(json.loads(spec_file.read_text(encoding="utf-8")), runner, pipe, count, forked).live(
        control_fd
    )


class _Master:
    """Who came, who may go on, and when all is done."""

    def __init__(
        self, spec: dict[str, Any], runner: Any, pipe: Pipe, count: int, forked: Sequence[Forked]
    ) -> None:
        self._spec, self._runner, self._pipe, self._count = spec, runner, pipe, count
        self._pids = [fork.pid for fork in forked]
        plan = Plan.from_json(spec["plan"])
        self._leases = Leases(plan, count, lambda: Schedule.of(plan).blocks())
        self._ids: list[str] = []  # Locust's names, by our number of a worker
        self._pid_of: dict[str, int] = {}
        self._ready: set[str] = set()
        self._refused: list[str] = []
        self._came = gevent.event.Event()
        self._all_ready = gevent.event.Event()
        self._finished = gevent.event.Event()
        self._origin_us: int | None = None
        self._watchers: list[Any] = []
        self._last: Frame | None = None

    def live(self, control_fd: int) -> None:
        """Until every frame is handed on."""
        self._runner.register_message(MESSAGE, self._hear)
        self._watch_forks()
        if not self._came.wait(COME_WITHIN_S):
            raise RefusedHere(self._who_is_missing())
        gevent.spawn(self._runner.start, self._count, self._count)
        if not self._all_ready.wait(COME_WITHIN_S):
            raise HarnessError("not every load worker became ready")
        Control(control_fd, self._start, self._stop, self._fail, self._gone)
        self._pipe.send(Ready())
        while not self._finished.is_set():
            gevent.sleep(_TICK_S)
            self._tick()
        self._tell_all({"quit": True})
        for pid in self._pids:
            _end(pid)
        gevent.sleep(_TICK_S)  # for the sockets to carry it
        assert self._last is not None
        self._pipe.send(self._last)  # with it the run is over, and this process may be ended
        self._pipe.empty.wait()

    def _who_is_missing(self) -> str:
        refused = f"; refused: {'; '.join(self._refused)}" if self._refused else ""
        came = f"{len(self._ids)} of {self._count} load workers came"
        return f"{came} within {COME_WITHIN_S:.0f} s{refused}"

    # ------------------------------------------------------------------------ the parent

    def _start(self, origin_us: int) -> None:
        self._origin_us = origin_us
        self._tell_all({"start": origin_us})

    def _stop(self) -> None:
        self._leases.stop()
        self._tell_all({"stop": True})

    def _fail(self, error: BaseException) -> None:
        gevent.spawn(die_of, error, self._pipe)

    def _gone(self) -> None:
        if not self._finished.is_set():
            leave(ExitCode.TERMINATED)  # the parent died; our forks die with us, others of silence

    def _now_us(self) -> int:
        return time.monotonic_ns() // 1000 - (self._origin_us or 0)

    # ----------------------------------------------------------------------- the workers

    def _hear(self, environment: Any, msg: Any, **_: Any) -> None:
        """One message of a worker. Locust swallows what a listener raises; we must not."""
        try:
            for word, value in msg.data.items():
                getattr(self, f"_on_{word}")(msg.node_id, value)
        except Exception as error:
            self._fail(error)

    def _on_hello(self, node: str, hello: dict[str, Any]) -> None:
        wrong = self._unfit(hello)
        if wrong:
            self._refused.append(f"{hello.get('name')}: {wrong}")
            self._tell(node, {"refuse": wrong})
            return
        self._ids.append(node)
        self._pid_of[node] = int(hello["pid"])
        if len(self._ids) == self._count:
            common = {"workers": self._count, "boot": boot_id()}
            for number, one in enumerate(self._ids):
                self._tell(one, {"plan": {**self._spec, **common, "worker": number}})
            self._came.set()

    def _unfit(self, hello: dict[str, Any]) -> str:
        if len(self._ids) == self._count:
            return "the run has all its workers"
        if hello["versions"] != VERSIONS:
            return f"it has {_shown(hello['versions'])}, the master has {_shown(VERSIONS)}"
        return ""

    def _on_clock(self, node: str, sent_ns: int) -> None:
        self._tell(node, {"clock": [sent_ns, time.monotonic_ns()]})

    def _on_ready(self, node: str, clock_error_us: int) -> None:
        if clock_error_us > MAX_CLOCK_ERROR_US:
            raise HarnessError(
                f"the clock of load worker {node} is only known to ±{clock_error_us / 1000:g} ms; "
                "a network that slow cannot share one schedule"
            )
        self._ready.add(node)
        if len(self._ready) == self._count:
            self._all_ready.set()

    def _on_lease(self, node: str, _: Any) -> None:
        if node not in self._ids:
            return
        until_us = self._leases.asked(self._ids.index(node), self._now_us())
        self._tell(node, {"out": True} if until_us is None else {"lease": until_us})

    def _on_frame(self, node: str, payload: bytes) -> None:
        frame = decode(payload)
        assert isinstance(frame, Frame)
        if self._leases.frame(self._ids.index(node), frame):
            self._pass_on(frame)

    def _on_failed(self, node: str, text: str) -> None:
        self._pipe.send(LoadFailed(f"load worker {self._ids.index(node)}: {text}"))
        self._pipe.empty.wait(timeout=2.0)
        leave(ExitCode.BUG)

    def _pass_on(self, frame: Frame) -> None:
        """The last frame of one worker is not the last one of all."""
        if self._leases.done:
            self._last = Frame(frame.at_us, frame.sets, done=True)
            self._finished.set()
        else:
            self._pipe.send(Frame(frame.at_us, frame.sets))

    # ------------------------------------------------------------------- deaths and silence

    def _watch_forks(self) -> None:
        for pid in self._pids:
            watcher = gevent.get_hub().loop.io(os.pidfd_open(pid), _READ)
            watcher.start(partial(gevent.spawn, self._died, pid, watcher))
            self._watchers.append(watcher)

    def _died(self, pid: int, watcher: Any) -> None:
        watcher.stop()
        node = next((n for n, its in self._pid_of.items() if its == pid), None)
        if self._finished.is_set():
            return
        if node is None or self._origin_us is None:
            self._fail(HarnessError(f"load worker with pid {pid} died before the start"))
            return
        self._try(
            lambda: self._given_over(self._leases.died(self._ids.index(node), self._now_us()))
        )

    def _tick(self) -> None:
        if self._origin_us is None:
            return
        now = self._now_us()

        def book() -> None:
            for over in self._leases.tick(now):
                self._given_over(over)
            for lost in self._leases.losses(now):
                self._pass_on(lost)

        self._try(book)

    def _given_over(self, over: TakeOver | None) -> None:
        if over is None:
            return
        if over.table is None:
            print(
                f"load worker {over.worker} {over.why}; its users went with it",
                file=sys.stderr,
                flush=True,
            )
            return
        at_s = over.at_us / 1e6
        print(
            f"load worker {over.worker} {over.why}; the others send its part from {at_s:.2f} s on",
            file=sys.stderr,
            flush=True,
        )
        message = {"owners": [over.at_us, over.table.astype("<i2").tobytes()]}
        for number in self._leases.living:
            self._tell(self._ids[number], message)

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except HarnessError as error:
            self._pipe.send(LoadFailed(error.message))
            self._pipe.empty.wait(timeout=2.0)
            leave(ExitCode.BUG)

    def _tell(self, node: str, message: dict[str, Any]) -> None:
        self._runner.send_message(MESSAGE, message, node)

    def _tell_all(self, message: dict[str, Any]) -> None:
        for node in self._ids:
            self._tell(node, message)


def encoded(frame: Frame) -> dict[str, bytes]:
    """A frame as a worker tells it."""
    return {"frame": encode_frame(frame)}


def boot_id() -> str:
    """Processes of one boot share the monotonic clock."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _shown(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))


def _end(pid: int) -> None:
    """A fork of ours that had time to leave."""
    for _ in range(40):
        if os.waitpid(pid, os.WNOHANG)[0]:
            return
        gevent.sleep(_TICK_S)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
