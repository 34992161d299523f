"""What every process of the load is made of: Locust, the way to the parent, orders, the end.

Imported before anything else by each of them: Locust's import ends in a RecursionError when it
patches after a module that uses ``ssl`` (https://github.com/gevent/gevent/issues/1016). Lanes need
no patched sockets, so it does not patch.
"""

# ruff: noqa: I001
from __future__ import annotations

import os

os.environ["GEVENT_LOOP"] = "libev-cext"  # libuv is three times slower, if it is there at all
os.environ["LOCUST_SKIP_MONKEY_PATCH"] = "1"

import locust

import fcntl
import json
import logging
import resource
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import gevent
import gevent.event

from survive.errors import ExitCode
from survive.load.wire import LoadFailed, Message, encode

_SPARE_FDS = 64  # what is open beside the lanes
_MAX_BACKLOG = 64 * 1024 * 1024  # of frames that the parent does not read
_READ, _WRITE = 1, 2  # libev's event bits

logging.getLogger("locust").setLevel(logging.ERROR)  # its "CPU > 90 %" is false here


class RefusedHere(Exception):  # noqa: N818  it is no error of ours
    """This host cannot run this load."""


class TheirsIsWrong(Exception):  # noqa: N818  the same
    """The team's own locustfile cannot be run; the text says where and why."""


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


def go_to_core(spec: Mapping[str, Any], worker: int) -> None:
    """This thread goes to the core of that worker, if the spec has one for it."""
    cores = spec.get("cores", ())
    if worker < len(cores):
        os.sched_setaffinity(0, {cores[worker]})


def user_class(host: Callable[[], None]) -> type[locust.User]:
    """A Locust user that hosts the lanes. Its task must never end: Locust would call it again."""

    def task(_: locust.User) -> None:
        host()
        gevent.event.Event().wait()

    return type("LaneHost", (locust.User,), {"tasks": [task], "abstract": False})


def die_of(error: BaseException, pipe: Pipe) -> None:
    """Tell the parent why, and leave."""
    refused, theirs = isinstance(error, RefusedHere), isinstance(error, TheirsIsWrong)
    plain = refused or theirs
    text = str(error) if plain else "".join(traceback.format_exception(error))
    pipe.send(LoadFailed(text, refused, theirs))
    pipe.empty.wait(timeout=2.0)
    leave(ExitCode.REFUSED if refused else ExitCode.INVALID if theirs else ExitCode.BUG)
