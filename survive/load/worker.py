"""One of several load workers: a fork of the load process, or ``survive worker`` elsewhere.

It is told everything by the master: the plan, the requests (and their key), its number, the moment
of t = 0. It sends only under a lease, and leaves when it is told to, when it is out, or when
nothing was heard of the master for five seconds.
"""

# ruff: noqa: I001
from __future__ import annotations

from survive.load.locust_host import (
    RefusedHere,
    allow_fds,
    go_to_core,
    leave,
    user_class,
)  # Locust comes first of all

import gc
import os
import socket
import sys
import time
import traceback
from typing import Any

import gevent
import gevent.event
import numpy as np
from locust import runners
from locust.env import Environment

from survive.errors import ExitCode
from survive.load.fabric import MESSAGE, VERSIONS, boot_id, encoded
from survive.load.lanes import Engine
from survive.load.template import CompiledKind
from survive.plan.model import Plan
from survive.record.samples import Frame

ASK_EVERY_S = 0.5  # for the lease
SILENCE_S = 5.0  # of the master, then it is gone
CLOCK_ASKS = 20


def serve(host: str, port: int, patience_s: float = 30.0) -> None:
    """Work for one run. Returns when the master says quit; ConnectionError if there is none."""
    runners.MASTER_HEARTBEAT_TIMEOUT = 1 << 30  # our own silence counts
    runners.WORKER_REPORT_INTERVAL = 86_400.0
    runners.WORKER_LOG_REPORT_INTERVAL = -1
    runners.CONNECT_RETRY_COUNT = max(1, round(patience_s / runners.CONNECT_TIMEOUT))
    _Worker(host, port).live()


class _Worker:
    """What the master says, and what the lanes do."""

    def __init__(self, host: str, port: int) -> None:
        self._environment = Environment(user_classes=[user_class(self._host)])
        self._runner = self._environment.create_worker_runner(host, port)
        self._hub = gevent.get_hub()
        self._engine: Engine | None = None
        self._work: dict[str, Any] | None = None
        self._clock: gevent.event.AsyncResult[list[int]] = gevent.event.AsyncResult()
        self._offset_us = 0  # our monotonic clock minus the master's
        self._quit = gevent.event.Event()
        self._heard_s = time.monotonic()
        self._started = False

    def live(self) -> None:
        """Until the master says quit."""
        self._runner.register_message(MESSAGE, self._hear)
        self._say({"hello": {"versions": VERSIONS, "pid": os.getpid(), "name": _name()}})
        while not self._quit.wait(ASK_EVERY_S):
            if self._started:
                if time.monotonic() - self._heard_s > SILENCE_S:
                    print("load worker: the master is gone", file=sys.stderr, flush=True)
                    leave(ExitCode.TERMINATED)
                self._say({"lease": True})

    def _say(self, message: dict[str, Any]) -> None:
        self._runner.send_message(MESSAGE, message)

    def _hear(self, environment: Any, msg: Any, **_: Any) -> None:
        self._heard_s = time.monotonic()
        try:
            for word, value in msg.data.items():
                getattr(self, f"_on_{word}")(value)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """A bug of ours, or a host that cannot carry its part: the run is told."""
        text = str(error) if isinstance(error, RefusedHere) else "".join(
            traceback.format_exception(error)
        )  # fmt: skip
        gevent.spawn(self._say, {"failed": text})

    # ------------------------------------------------------------------------ the master

    def _on_refuse(self, why: str) -> None:
        print(f"load worker: refused by the master: {why}", file=sys.stderr, flush=True)
        leave(ExitCode.REFUSED)

    def _on_plan(self, work: dict[str, Any]) -> None:
        self._work = work  # the user that Locust starts next takes it up

    def _on_clock(self, answer: list[int]) -> None:
        self._clock.set([*answer, time.monotonic_ns()])

    def _on_start(self, origin_us: int) -> None:
        assert self._engine is not None
        self._started = True
        self._hub.loop.run_callback(self._engine.start, origin_us + self._offset_us)

    def _on_lease(self, until_us: int) -> None:
        if self._engine is not None:
            self._hub.loop.run_callback(self._engine.renew, until_us)

    def _on_owners(self, change: list[Any]) -> None:
        at_us, table = change
        assert self._engine is not None
        self._hub.loop.run_callback(
            self._engine.restripe, at_us, np.frombuffer(table, "<i2").astype(np.int64)
        )

    def _on_stop(self, _: bool) -> None:
        if self._engine is not None:
            self._hub.loop.run_callback(self._engine.stop)

    def _on_out(self, _: bool) -> None:
        print("load worker: others send its part; it leaves", file=sys.stderr, flush=True)
        leave(ExitCode.TERMINATED)

    def _on_quit(self, _: bool) -> None:
        self._quit.set()

    # -------------------------------------------------------------------------- the lanes

    def _host(self) -> None:
        """Locust's user hosts the lanes."""
        try:
            assert self._work is not None, "Locust started a user before the plan came"
            work, self._work = self._work, None
            plan = Plan.from_json(work["plan"])
            kinds = [CompiledKind.from_json(kind) for kind in work["kinds"]]
            allow_fds(-(-plan.lanes // work["workers"]))
            go_to_core(work, work["worker"])
            self._engine = Engine(
                plan, kinds, work["address"], self._report, self._fail,
                work["worker"], work["workers"], work.get("authority", ""),
            )  # fmt: skip
            error_us = self._learn_clock(work["boot"])
            gc.collect()
            gc.freeze()
            self._say({"ready": error_us})
        except Exception as error:
            self._fail(error)

    def _report(self, frame: Frame) -> None:
        """From the hub: a socket may have to wait, the hub may not."""
        gevent.spawn(self._say, encoded(frame))

    def _learn_clock(self, boot: str) -> int:
        """Offset of our clock by the quickest of some questions (Cristian 1989); its error, µs."""
        if boot == boot_id():
            return 0
        best_ns, offset_ns = 1 << 62, 0
        for _ in range(CLOCK_ASKS):
            self._clock = gevent.event.AsyncResult()
            self._say({"clock": time.monotonic_ns()})
            sent, theirs, back = self._clock.get(timeout=5.0)
            if back - sent < best_ns:
                best_ns, offset_ns = back - sent, (sent + back) // 2 - theirs
        self._offset_us = offset_ns // 1000
        return best_ns // 2000


def _name() -> str:
    return f"{socket.gethostname()} pid {os.getpid()}"


def main() -> None:
    """``python -m survive.load.worker HOST PORT SECONDS``."""
    host, port, patience = sys.argv[1:]
    if not port.isdecimal():
        print(f"error: {host}:{port} is no HOST:PORT", file=sys.stderr)
        leave(ExitCode.INVALID)
    try:
        serve(host, int(port), float(patience))
    except ConnectionError:
        print(f"error: no run at {host}:{port} within {patience} s", file=sys.stderr, flush=True)
        leave(ExitCode.REFUSED)
    leave(ExitCode.SURVIVED)


if __name__ == "__main__":
    main()
