"""The load process: ``python -m survive.load.process --spec FILE --control FD --report FD``.

Locust's LocalRunner hosts one user, and that user hosts the lanes. Locust is imported before
anything else: after a module that uses ``ssl`` its import ends in a RecursionError when it patches
(https://github.com/gevent/gevent/issues/1016). Lanes need no patched sockets, so it does not patch.

Spec: ``{"plan": …, "kinds": […], "address": "host:port"}``. Control, lines of JSON:
``{"start": µs of CLOCK_MONOTONIC at t = 0}``, ``{"stop": true}``. Report: see wire.py.
The end of the control pipe means that the parent is gone: leave at once. Exit 0 after the last
frame, 6 if this host cannot run it, 70 for a bug of ours, 143 if the parent went away.
"""

# ruff: noqa: I001
from __future__ import annotations

import os

os.environ["GEVENT_LOOP"] = "libev-cext"  # libuv is three times slower, if it is there at all
os.environ["LOCUST_SKIP_MONKEY_PATCH"] = "1"

import locust

import argparse
import fcntl
import gc
import json
import logging
import resource
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import gevent.event
from locust.env import Environment

from survive.errors import ExitCode
from survive.load.lanes import Engine
from survive.load.template import CompiledKind
from survive.load.wire import LoadFailed, Message, Ready, encode
from survive.plan.model import Plan

_SPARE_FDS = 64  # what is open beside the lanes
_MAX_BACKLOG = 64 * 1024 * 1024  # of frames that the parent does not read
_READ, _WRITE = 1, 2  # libev's event bits


class RefusedHere(Exception):  # noqa: N818  it is no error of ours
    """This host cannot run this load."""


class Pipe:
    """The way to the parent: never blocks the lanes, leaves when the parent is gone."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._backlog = bytearray()
        _nonblocking(fd)
        self._watcher = gevent.get_hub().loop.io(fd, _WRITE)
        self.empty = gevent.event.Event()
        self.empty.set()

    def send(self, message: Message) -> None:
        """Queue a message and write what the pipe takes."""
        self._backlog += encode(message)
        if len(self._backlog) > _MAX_BACKLOG:
            leave(ExitCode.TERMINATED)
        self._flush()

    def _flush(self) -> None:
        try:
            while self._backlog:
                del self._backlog[: os.write(self._fd, self._backlog[:65_536])]
        except BlockingIOError:
            pass  # the watcher goes on when there is room
        except OSError:
            leave(ExitCode.TERMINATED)  # a broken pipe: nobody is there to hear more
        if self._backlog:
            self.empty.clear()
            if not self._watcher.active:
                self._watcher.start(self._flush)
        else:
            self._watcher.stop()
            self.empty.set()


class Control:
    """Orders from the parent, a line of JSON each."""

    def __init__(
        self, fd: int, start: Callable[[int], None], stop: Callable[[], None],
        fail: Callable[[BaseException], None], gone: Callable[[], None],
    ) -> None:  # fmt: skip
        self._fd = fd
        self._start, self._stop, self._fail, self._gone = start, stop, fail, gone
        self._partial = b""
        _nonblocking(fd)
        self._watcher = gevent.get_hub().loop.io(fd, _READ)
        self._watcher.start(self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, 65_536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._watcher.stop()
            self._gone()
            return
        try:
            *lines, self._partial = (self._partial + data).split(b"\n")
            for line in lines:
                self._obey(json.loads(line))
        except Exception as error:  # a hub callback's error would only be printed
            self._fail(error)

    def _obey(self, order: dict[str, Any]) -> None:
        if "start" in order:
            self._start(int(order["start"]))
        elif order.get("stop") is True:
            self._stop()
        else:
            raise ValueError(f"unknown order {order!r}")


def _nonblocking(fd: int) -> None:
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK)


def leave(code: ExitCode) -> None:
    """End at once, without any clean-up that could hang."""
    os._exit(int(code))


def allow_fds(lanes: int) -> None:
    """Room for one descriptor a lane. Raises RefusedHere if the hard limit is too low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = lanes + _SPARE_FDS
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise RefusedHere(
                f"{lanes} lanes need {needed} file descriptors, the hard limit is {hard}"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def user_class(host: Callable[[], None]) -> type[locust.User]:
    """A Locust user that hosts the lanes. Its task must never end: Locust would call it again."""

    def task(_: locust.User) -> None:
        host()
        gevent.event.Event().wait()

    return type("LaneHost", (locust.User,), {"tasks": [task], "abstract": False})


def run(spec_file: Path, control_fd: int, pipe: Pipe) -> None:
    """The whole life of the worker: ready, start, frames, the last frame."""
    spec = json.loads(spec_file.read_text(encoding="utf-8"))
    plan = Plan.from_json(spec["plan"])
    kinds = [CompiledKind.from_json(kind) for kind in spec["kinds"]]
    allow_fds(plan.lanes)

    def fail(error: BaseException) -> None:
        gevent.spawn(_die_of, error, pipe)

    engine = Engine(plan, kinds, spec["address"], pipe.send, fail)
    del spec

    def gone() -> None:
        if not engine.finished.is_set():
            leave(ExitCode.TERMINATED)  # the parent died: load must not outlive it

    def host() -> None:
        Control(control_fd, engine.start, engine.stop, fail, gone)
        gc.collect()
        gc.freeze()  # a full collection with Locust loaded stops the loop for 24 ms
        pipe.send(Ready())

    logging.getLogger("locust").setLevel(logging.ERROR)  # its "CPU > 90 %" is false here
    environment = Environment(user_classes=[user_class(host)])
    runner = environment.create_local_runner()
    runner.start(1, spawn_rate=1)
    engine.finished.wait()
    pipe.empty.wait()
    runner.quit()


def _die_of(error: BaseException, pipe: Pipe) -> None:
    refused = isinstance(error, RefusedHere)
    text = str(error) if refused else "".join(traceback.format_exception(error))
    pipe.send(LoadFailed(text, refused))
    pipe.empty.wait(timeout=2.0)
    leave(ExitCode.REFUSED if refused else ExitCode.BUG)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--spec", type=Path, required=True)
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("--report", type=int, required=True)
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    pipe = Pipe(arguments.report)
    try:
        run(arguments.spec, arguments.control, pipe)
    except Exception as error:
        _die_of(error, pipe)
    leave(ExitCode.SURVIVED)


if __name__ == "__main__":
    main()
