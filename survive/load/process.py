"""The load process: ``python -m survive.load.process --spec FILE --control FD --report FD``.

Locust's LocalRunner hosts one user, and that user hosts the lanes. With ``--workers N`` this
process is Locust's master instead, and N forks of it (or ``--expect N`` machines that run
``survive worker``) host the lanes; see fabric.py.

Spec: ``{"plan": …, "kinds": […], "address": …, "authority": PEM text, "cores": […]}`` (see
survive.address; no authority = the system's; a core for each worker, none = any). Control, lines
of JSON:
``{"start": µs of CLOCK_MONOTONIC at t = 0}``, ``{"stop": true}``. Report: see wire.py.
The end of the control pipe means that the parent is gone: leave at once. Exit 0 after the last
frame, 6 if this host cannot run it, 70 for a bug of ours, 143 if the parent went away.
"""

# ruff: noqa: I001
from __future__ import annotations

from survive.load.locust_host import (
    Control,
    Pipe,
    allow_fds,
    die_of,
    go_to_core,
    leave,
    user_class,
)  # Locust comes first of all

import argparse
import gc
import json
import signal
from pathlib import Path

import gevent
from locust.env import Environment

from survive.errors import ExitCode
from survive.load.fabric import fork_workers, run_master
from survive.load.lanes import Engine
from survive.load.template import CompiledKind
from survive.load.wire import Ready
from survive.plan.model import Plan


def run(spec_file: Path, control_fd: int, pipe: Pipe) -> None:
    """The whole life of a single worker: ready, start, frames, the last frame."""
    spec = json.loads(spec_file.read_text(encoding="utf-8"))
    plan = Plan.from_json(spec["plan"])
    kinds = [CompiledKind.from_json(kind) for kind in spec["kinds"]]
    allow_fds(plan.lanes)
    go_to_core(spec, 0)

    def fail(error: BaseException) -> None:
        gevent.spawn(die_of, error, pipe)

    engine = Engine(
        plan, kinds, spec["address"], pipe.send, fail, authority=spec.get("authority", "")
    )
    del spec

    def gone() -> None:
        if not engine.finished.is_set():
            leave(ExitCode.TERMINATED)  # the parent died: load must not outlive it

    def host() -> None:
        Control(control_fd, engine.start, engine.stop, fail, gone)
        gc.collect()
        gc.freeze()  # a full collection with Locust loaded stops the loop for 24 ms
        pipe.send(Ready())

    environment = Environment(user_classes=[user_class(host)])
    runner = environment.create_local_runner()
    runner.start(1, spawn_rate=1)
    engine.finished.wait()
    pipe.empty.wait()
    runner.quit()


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--spec", type=Path, required=True)
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("--report", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--expect", type=int, default=0)
    parser.add_argument("--bind", default="127.0.0.1:0")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    forked = (
        fork_workers(arguments.workers, (arguments.control, arguments.report))
        if arguments.workers > 1 and not arguments.expect
        else []
    )
    pipe = Pipe(arguments.report)
    try:
        if forked or arguments.expect:
            count = arguments.expect or arguments.workers
            run_master(arguments.spec, arguments.control, pipe, arguments.bind, count, forked)
        else:
            run(arguments.spec, arguments.control, pipe)
    except Exception as error:
        die_of(error, pipe)
    leave(ExitCode.SURVIVED)


if __name__ == "__main__":
    main()
