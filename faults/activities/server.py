"""Runs Chaos Toolkit activities, each in a fork of its own: the only place that imports chaoslib.

``python server.py FD``: FD is a SOCK_SEQPACKET socket. One JSON question a packet, with a socket to
answer on; closing that socket kills the activity and whatever it started. It ends, and all
activities with it, with the socket or its parent. Extensions are imported once, on ``check``: a
fork then costs milliseconds.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import logging
import os
import selectors
import signal
import socket
import sys
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_LONGEST = 1 << 20
_SAID = 500  # characters of an output that evidence shows


def serve(control: socket.socket, stop_fd: int) -> None:
    """Until ``control`` ends, or ``stop_fd`` is readable."""
    waiting = selectors.DefaultSelector()
    waiting.register(control, selectors.EVENT_READ)
    waiting.register(stop_fd, selectors.EVENT_READ)
    jobs: dict[int, tuple[int, socket.socket]] = {}  # pidfd → pid, asker
    try:
        while True:
            for key, _ in waiting.select():
                if key.fileobj == stop_fd:
                    return
                if key.fileobj is control:
                    packet, fds, _, _ = socket.recv_fds(control, _LONGEST, 1)
                    if not packet:
                        return
                    _begin(json.loads(packet), socket.socket(fileno=fds[0]), waiting, jobs)
                elif key.data in jobs:  # it ended, or nobody waits for it any more
                    _end(key.data, waiting, jobs)
    finally:
        for pidfd in list(jobs):
            _end(pidfd, waiting, jobs)


def _begin(
    question: dict[str, Any],
    asker: socket.socket,
    waiting: selectors.BaseSelector,
    jobs: dict[int, tuple[int, socket.socket]],
) -> None:
    for module in question.get("import", ()):
        try:
            importlib.import_module(module)
        except Exception:  # the fork meets the same and says it to whoever asked
            pass
    server = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            os.setpgid(0, 0)
            _die_with_parent(signal.SIGKILL, server)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            asker.sendall(json.dumps(_answer(question)).encode())
        finally:
            os._exit(0)
    try:
        os.setpgid(pid, pid)
    except OSError:  # it did so itself and went on
        pass
    pidfd = os.pidfd_open(pid)
    jobs[pidfd] = (pid, asker)
    waiting.register(pidfd, selectors.EVENT_READ, pidfd)
    waiting.register(asker, selectors.EVENT_READ, pidfd)


def _end(
    pidfd: int, waiting: selectors.BaseSelector, jobs: dict[int, tuple[int, socket.socket]]
) -> None:
    """Kill its whole group, then reap it: until then the group's number is its own."""
    pid, asker = jobs.pop(pidfd)
    waiting.unregister(pidfd)
    waiting.unregister(asker)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(pidfd)
    asker.close()


# ------------------------------------------------------------------------------ in the fork


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    try:
        return _VERBS[question["verb"]](question)
    except BaseException as error:  # an extension may raise anything; it is only evidence
        return {"wrong": f"{type(error).__name__}: {error}"[:_SAID]}


def _check(question: dict[str, Any]) -> dict[str, Any]:
    """All activities can be called here: importable, with these arguments, secrets at hand."""
    from chaoslib.activity import ensure_activity_is_valid
    from chaoslib.hypothesis import ensure_hypothesis_tolerance_is_valid

    _blocks(question)
    for activity in question["activities"]:
        ensure_activity_is_valid(activity)
        if "tolerance" in activity:
            ensure_hypothesis_tolerance_is_valid(activity["tolerance"])
    return {"wrong": ""}


def _act(question: dict[str, Any]) -> dict[str, Any]:
    """Run an action and judge it: Chaos Toolkit itself says "succeeded" of all but exceptions."""
    run = _run(question, *_blocks(question))
    return {"wrong": complaint(question["activity"], run)}


def _look(question: dict[str, Any]) -> dict[str, Any]:
    """Run a probe and hold its output against its tolerance."""
    from chaoslib import substitute
    from chaoslib.hypothesis import within_tolerance

    blocks = _blocks(question)
    run = _run(question, *blocks)
    if run["status"] != "succeeded":
        return {"wrong": complaint(question["activity"], run)}
    tolerance = question["activity"]["tolerance"]
    if isinstance(tolerance, str):
        tolerance = substitute(tolerance, *blocks)
    within = within_tolerance(tolerance, run["output"], *blocks)
    return {"wrong": "", "within": within is True, "said": _shown(run["output"])}


_VERBS = {"check": _check, "act": _act, "look": _look}


def _blocks(question: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    from chaoslib.configuration import load_configuration, load_dynamic_configuration
    from chaoslib.secret import load_secrets

    configuration = load_configuration(question.get("configuration") or {}, {})
    secrets = load_secrets(question.get("secrets") or {}, configuration)
    return load_dynamic_configuration(configuration, secrets), secrets


def _run(
    question: dict[str, Any], configuration: dict[str, Any], secrets: dict[str, Any]
) -> dict[str, Any]:
    from chaoslib.activity import execute_activity

    run: dict[str, Any] = execute_activity(
        experiment={},
        activity=question["activity"],
        configuration=configuration,
        secrets=secrets,
        dry=None,
    )
    return run


def complaint(activity: dict[str, Any], run: dict[str, Any]) -> str:
    """What is wrong with a run of an action; "" = it did its work."""
    output = run.get("output")
    provider = activity["provider"]["type"]
    if run.get("status") != "succeeded":
        said = run.get("exception") or [f"status {run.get('status')}"]
        return str(said[-1]).strip()[:_SAID]
    status = output.get("status") if isinstance(output, dict) else None
    if provider == "process" and status != 0:
        return f"exit {status}: {_shown(output)}"
    if provider == "http" and not (isinstance(status, int) and status < 400):
        return f"HTTP {status}: {_shown(output)}"
    return "its output is False" if output is False else ""


def _shown(output: object) -> str:
    if isinstance(output, dict) and "status" in output:
        said = output.get("stderr") or output.get("stdout") or output.get("body") or ""
        return f"{output['status']} {str(said).strip()}".strip()[:_SAID]
    return str(output)[:_SAID]


# ------------------------------------------------------------------------------- the process


def _die_with_parent(number: signal.Signals, parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(1)


def main(control_fd: int, parent: int) -> None:
    """See the module."""
    _die_with_parent(signal.SIGTERM, parent)
    sys.path[0] = str(Path.cwd())  # as `chaos run` does: modules beside the experiment
    import chaoslib.activity
    import chaoslib.hypothesis

    assert chaoslib.activity and chaoslib.hypothesis
    logging.getLogger("logzero_default").setLevel(logging.CRITICAL)
    logging.getLogger("chaostoolkit").setLevel(logging.CRITICAL)
    # The parent's death is heard twice, by its socket and by a signal. A handler that raised could
    # strike while activities are being killed, and leave one: so it only wakes the loop.
    stop_fd, wake_fd = os.pipe()
    signal.signal(signal.SIGTERM, lambda *_: os.write(wake_fd, b"."))
    serve(socket.socket(fileno=control_fd), stop_fd)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
