"""A team's own locustfile as the load: ``python -m survive.load.journeys --spec FILE ...``.

Locust runs its users as ever, in a process of their own with its monkey patch; only how many there
are comes from the phases, and where they go from the target. Every request that Locust reports
becomes samples of the kind ``USER CLASS/REQUEST NAME`` (``Shopper/pay`` of ``/pay`` too).

Spec: ``{"plan": …, "locustfile": path, "address": …, "authority": PEM text, "environment":
{variable: key}, "cores": […]}``. Control, report and exits as in process.py, and 2 if it is the
locustfile that cannot run.
"""

# ruff: noqa: I001
from __future__ import annotations

import os

os.environ["GEVENT_LOOP"] = "libev-cext"  # libuv is three times slower, if it is there at all
os.environ.pop("LOCUST_SKIP_MONKEY_PATCH", None)

import locust  # first of all: it patches, and what was imported before stays unpatched

from survive.load.locust_host import Control, Pipe, TheirsIsWrong, die_of, leave

import argparse
import json
import resource
import signal
import ssl
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import gevent.event
from locust import argument_parser, clients
from locust.env import Environment
from locust.exception import CatchResponseError
from locust.user.users import User
from locust.util.load_locustfile import load_locustfile

from survive.address import UNIX, Address
from survive.errors import ExitCode
from survive.load.core import Filing, Job
from survive.load.locust_host import RefusedHere
from survive.load.wire import Ready
from survive.plan.model import JOURNEY_END_US, Plan
from survive.plan.users import users_at
from survive.record.samples import Outcome
from survive.scenario.model import Phase
from survive.transport import REPLICA_HEADER, Broken
from survive.units import SECOND

MAX_KINDS = 200  # distinct names; who puts an id into each fills memory, in Locust too
OTHERS = "other"  # the kind of what comes after those
_JOURNEY = "survive.journey"  # of the context of a request event: the user's class
_MAX_NAME = 120
_UNFIT = frozenset(":,\\\"'`")  # of a tag in the interval log
_BUSY_US = 950_000  # of a second of this process: then it is what users wait for
_LOOK_US = 50_000
_SPAWN_WITHIN_S = 1.0
_LATE_S = 5.0  # beyond the time that users have to end

_HOW: tuple[tuple[type[BaseException], Broken], ...] = (
    (ConnectionRefusedError, Broken.REFUSED),
    (ConnectionResetError, Broken.RESET),
    (BrokenPipeError, Broken.RESET),
    (ConnectionAbortedError, Broken.RESET),
    (ssl.SSLError, Broken.TLS),
    (TimeoutError, Broken.TIMEOUT),
)


class Journeys:
    """The users of one run: as many as the phases say, and what they ask as samples."""

    def __init__(
        self, plan: Plan, environment: Environment, pipe: Pipe,
        fail: Callable[[BaseException], None],
    ) -> None:  # fmt: skip
        self._plan = plan
        self._environment = environment
        self._runner = environment.create_local_runner()
        self._pipe = pipe
        self._fail = fail
        self._filing = Filing(plan)
        self._kinds: dict[str, int] = {}
        self._number = 0
        self._origin_ns = 0
        self._second = 0
        self._asked = 0  # in this second
        self._cpu_s = 0.0
        self.finished = gevent.event.Event()
        environment.events.request.add_listener(self._on_request)

    def start(self, origin_us: int) -> None:
        """Begin; t = 0 of the run is that moment of CLOCK_MONOTONIC, in µs."""
        self._origin_ns = origin_us * 1000
        gevent.spawn(self._guarded, self._live)
        gevent.spawn(self._guarded, self._report_each_second)

    def stop(self) -> None:
        """Leave at once: what users are at is in flight. Nobody's on_stop is waited for."""
        gevent.spawn(self._guarded, self._end)

    def now_us(self) -> int:
        """The run's clock."""
        return (time.monotonic_ns() - self._origin_ns) // 1000

    # ---------------------------------------------------------------------------- users

    def _live(self) -> None:
        """All phases, and the time after them in which users end what they are at."""
        for phase in self._plan.phases:
            self._until(phase.start_us)
            self._spawn(phase)
        self._until(self._plan.end_us)
        stopping = gevent.spawn(self._runner.stop)
        stopping.join(timeout=JOURNEY_END_US / SECOND)
        self._end()

    def _spawn(self, phase: Phase) -> None:
        """As Locust does it: at once to the number that a phase begins with, then evenly."""
        users = phase.users
        assert users is not None
        if self._runner.user_count != users.start:
            self._runner.start(users.start, spawn_rate=max(users.start, self._runner.user_count))
            self._runner.spawning_greenlet.join(timeout=_SPAWN_WITHIN_S)
        if users.end != users.start:
            span_s = (phase.end_us - self.now_us()) / SECOND
            self._runner.start(users.end, spawn_rate=abs(users.end - users.start) / span_s)

    def _until(self, t_us: int) -> None:
        gevent.sleep(max(0, t_us - self.now_us()) / SECOND)

    def _end(self) -> None:
        """The last frame. What is not answered by now is in flight: nobody waits for it."""
        if self.finished.is_set():
            return
        self.finished.set()
        now = self.now_us()
        for user in list(self._runner.user_greenlets):
            if user.args[0]._state != "waiting":
                self._file(f"{_class_of(user.args[0])}/unfinished", now, now, Outcome.IN_FLIGHT)
        self._pipe.send(self._filing.cut(now, done=True))
        self._pipe.empty.wait()

    # -------------------------------------------------------------------------- samples

    def _on_request(
        self, name: str, response_time: float | None, exception: BaseException | None = None,
        context: dict[str, Any] | None = None, response: Any = None,
        start_time: float | None = None, **_: Any,
    ) -> None:  # fmt: skip
        """Locust has a request to report. Its own wall clock said when it began."""
        try:
            now, took = self.now_us(), max(0, round((response_time or 0.0) * 1000))
            ago = took if start_time is None else round((time.time() - start_time) * 1e6)
            began = now - max(took, ago)
            kind = f"{_journey(context)}/{str(name).removeprefix('/')}"
            if exception is None:
                who = _header(response, REPLICA_HEADER)
                self._file(kind, began, began + took, Outcome.OK, who=self._filing.who(who))
            else:
                why = why_of(exception, response)
                self._file(kind, began, began + took, Outcome.FAILED, why=why)
        except Exception as error:  # Locust would log it, and go on without the request
            self._fail(error)

    def _file(
        self, kind: str, began: int, ended: int, outcome: Outcome, *, who: str = "", why: str = ""
    ) -> None:
        if self.finished.is_set() and outcome is not Outcome.IN_FLIGHT:
            return  # after the last frame; it was counted as in flight
        self._number += 1
        self._asked += 1
        where = self._filing.slice_of(began)
        job = Job(self._number, began, self._kind(kind), 0, where, began)
        took = ended - began
        self._filing.sent(job, began)
        wired = None if why == Broken.REFUSED else took
        service = took if outcome is Outcome.OK else None
        self._filing.settle(job, ended, outcome, who, why, wired, service)

    def _kind(self, name: str) -> int:
        plain = "".join("_" if c in _UNFIT or not c.isprintable() or c.isspace() else c
                        for c in name)[:_MAX_NAME]  # fmt: skip
        if plain not in self._kinds and len(self._kinds) >= MAX_KINDS:
            plain = OTHERS
        if plain not in self._kinds:
            self._kinds[plain] = self._filing.learn(plain)
        return self._kinds[plain]

    def _report_each_second(self) -> None:
        while not self.finished.is_set():
            end_us = (self._second + 1) * SECOND
            self._until(end_us - _LOOK_US)  # at the very end Locust stops its users
            planned = users_at(self._plan.phases, end_us - 1)
            present = min(planned, self._runner.user_count)
            self._until(end_us)
            if self.finished.is_set():
                return
            used = resource.getrusage(resource.RUSAGE_SELF)
            cpu_s = used.ru_utime + used.ru_stime
            busy_us = round((cpu_s - self._cpu_s) * 1e6) if self._cpu_s else 0
            self._cpu_s = cpu_s
            starved = busy_us > _BUSY_US and self._asked > 0
            start_us = self._second * SECOND
            idle_us = max(0, SECOND - busy_us)
            self._filing.harness(start_us, idle_us, self._asked if starved else None)
            self._filing.users(start_us, present)
            self._second += 1
            self._asked = 0
            self._pipe.send(self._filing.cut(self.now_us()))

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self._fail(error)


def why_of(exception: BaseException, response: Any) -> str:
    """A short class of a failure: what the connection did, the status, or what the team's own
    check said (``check:…``)."""
    if isinstance(exception, CatchResponseError):
        return f"check:{exception}"
    status = getattr(response, "status_code", 0) or 0
    if status >= 400:
        return f"status:{status}"
    seen: set[int] = set()
    cause: BaseException | None = exception
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        for kind, how in _HOW:
            if isinstance(cause, kind):
                return str(how)
        if "Timeout" in type(cause).__name__:  # of requests and urllib3, which are no TimeoutError
            return str(Broken.TIMEOUT)
        cause = cause.__cause__ or cause.__context__
    return type(exception).__name__


def _header(response: Any, name: str) -> str:
    headers = getattr(response, "headers", None)
    return str(headers.get(name, "") or "") if headers is not None else ""


def _class_of(user: User) -> str:
    return type(user).__name__


def _journey(context: dict[str, Any] | None) -> str:
    """Whose request it is: said by its context, else by the greenlet that makes it."""
    if context and _JOURNEY in context:
        return str(context[_JOURNEY])
    arguments = getattr(gevent.getcurrent(), "args", None) or ()
    user = arguments[0] if arguments else None
    return _class_of(user) if isinstance(user, User) else OTHERS


def _tell_class(user_class: Any) -> None:
    """Have the context of its requests say its name, beside whatever else it says."""
    plain = user_class.context

    def context(self: User) -> dict[str, Any]:
        return {**plain(self), _JOURNEY: _class_of(self)}

    user_class.context = context


def user_classes(file: Path) -> list[Any]:
    """The users of a locustfile, imported as Locust imports it. Raises TheirsIsWrong."""
    os.chdir(file.parent)  # what it opens lies beside it
    try:
        found, _ = load_locustfile(str(file))
    except BaseException as error:  # sys.exit() too
        raise TheirsIsWrong(_place_of(error, file)) from error
    if not found:
        raise TheirsIsWrong(f"{file} has no users: no class of it is a Locust User")
    return [*found.values()]


def _place_of(error: BaseException, file: Path) -> str:
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
    if isinstance(error, SyntaxError) and error.filename == str(file):
        lines = [error.lineno]
    said = traceback.format_exception_only(error)[-1].strip()
    return f"{file}:{lines[-1] or 1}: {said}" if lines else f"{file}: {said}"


def make_environment(spec: dict[str, Any]) -> Environment:
    """Locust, its users on the target. Raises TheirsIsWrong, RefusedHere."""
    os.environ.update(spec["environment"])
    if spec["address"].startswith(UNIX):
        raise RefusedHere("Locust's users cannot speak through a Unix socket")
    address = Address.parse(spec["address"])
    if address.server_name and spec["address"].partition("#")[2]:
        raise RefusedHere("Locust's users verify who they speak to: no fault proxy stands between")
    if spec.get("authority"):
        _trust(spec["authority"])
    classes = user_classes(Path(spec["locustfile"]))
    for user_class in classes:
        _tell_class(user_class)
    secure = "https" if address.server_name else "http"
    return Environment(
        user_classes=classes,
        events=locust.events,
        host=f"{secure}://{address.host_header}",
        locustfile=Path(spec["locustfile"]).name,
        stop_timeout=JOURNEY_END_US / SECOND + _LATE_S,  # we count who is left, before it kills
        parsed_options=_options(),
    )


def _trust(authority: str) -> None:
    """HttpUsers verify the entry with the target's own authority too, by the one context that
    Locust has for them. Raises RefusedHere."""
    context = getattr(clients, "_preloaded_ssl_context", None)
    if context is None:
        raise RefusedHere(f"Locust {locust.__version__} cannot be told of the target's `ca:`")
    context.load_verify_locations(cadata=authority)


def _options() -> argparse.Namespace:
    """Locust's own, and those that the locustfile adds: from a locust.conf, LOCUST_* variables and
    defaults. Raises TheirsIsWrong."""
    try:
        found: argparse.Namespace = argument_parser.get_parser().parse_args([])
    except SystemExit as error:
        raise TheirsIsWrong("locust.conf or a LOCUST_ variable holds an unknown option") from error
    return found


def run(spec_file: Path, control_fd: int, pipe: Pipe) -> None:
    """The whole life of the process: ready, start, frames, the last frame."""

    def fail(error: BaseException) -> None:
        gevent.spawn(die_of, error, pipe)

    def gone() -> None:
        if not journeys.finished.is_set():
            leave(ExitCode.TERMINATED)  # the parent died: no user must outlive it

    spec = json.loads(spec_file.read_text(encoding="utf-8"))
    if spec.get("cores"):
        os.sched_setaffinity(0, spec["cores"])
    environment = make_environment(spec)
    journeys = Journeys(Plan.from_json(spec["plan"]), environment, pipe, fail)
    environment.events.init.fire(environment=environment, runner=environment.runner, web_ui=None)
    Control(control_fd, journeys.start, journeys.stop, fail, gone)
    pipe.send(Ready())
    journeys.finished.wait()
    pipe.empty.wait()


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
        die_of(error, pipe)
    leave(ExitCode.SURVIVED)


if __name__ == "__main__":
    main()
