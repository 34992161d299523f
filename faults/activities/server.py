"""Runs Chaos Toolkit activities, each in a fork of its own (in_fork.py).

``python server.py FD``: FD is a SOCK_SEQPACKET socket. One JSON question a packet, with a socket to
answer on; closing that socket kills the activity and whatever it started. It ends, and all
activities with it, with the socket or its parent. Extensions are imported once, on ``check``: a
fork then costs milliseconds.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import selectors
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .in_fork import answer, ready
else:  # a script: the first place where it looks is its own folder
    from in_fork import answer, ready

_PR_SET_PDEATHSIG = 1
_LONGEST = 1 << 20


class Server:
    """Runs until ``control`` ends, or ``stop_fd`` is readable."""

    def __init__(self, control: socket.socket, stop_fd: int) -> None:
        self._control, self._stop_fd = control, stop_fd
        self._jobs: dict[int, tuple[int, socket.socket]] = {}  # pidfd → pid, asker
        self._waiting = selectors.DefaultSelector()
        for end in (control, stop_fd):
            self._waiting.register(end, selectors.EVENT_READ)

    def serve(self) -> None:
        """One fork a question; it is killed when nobody waits for it any more."""
        try:
            while True:
                for key, _ in self._waiting.select():
                    if key.fileobj == self._stop_fd:
                        return
                    if key.fileobj is self._control:
                        packet, fds, _, _ = socket.recv_fds(self._control, _LONGEST, 1)
                        if not packet:
                            return
                        self._begin(json.loads(packet), socket.socket(fileno=fds[0]))
                    elif key.data in self._jobs:
                        self._end(key.data)
        finally:
            for pidfd in list(self._jobs):
                self._end(pidfd)

    def _begin(self, question: dict[str, Any], asker: socket.socket) -> None:
        for module in question.get("import", ()):
            with suppress(Exception):  # the fork meets the same and says it to whoever asked
                importlib.import_module(module)
        server, pid = os.getpid(), os.fork()
        if pid == 0:
            try:
                os.setpgid(0, 0)
                _die_with_parent(signal.SIGKILL, server)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                asker.sendall(json.dumps(answer(question)).encode())
            finally:
                os._exit(0)
        with suppress(OSError):  # it did so itself and went on
            os.setpgid(pid, pid)
        pidfd = os.pidfd_open(pid)
        self._jobs[pidfd] = (pid, asker)
        for end in (pidfd, asker):
            self._waiting.register(end, selectors.EVENT_READ, pidfd)

    def _end(self, pidfd: int) -> None:
        """Kill its whole group, then reap it: until then the group's number is its own."""
        pid, asker = self._jobs.pop(pidfd)
        for end in (pidfd, asker):
            self._waiting.unregister(end)
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(pidfd)
        asker.close()


def _die_with_parent(number: signal.Signals, parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(1)


def main(control_fd: int, parent: int) -> None:
    """See the module."""
    _die_with_parent(signal.SIGTERM, parent)
    sys.path[0] = str(Path.cwd())  # as `chaos run` does: modules beside the experiment
    ready()
    # The parent's death is heard twice, by its socket and by a signal. A handler that raised could
    # strike while activities are being killed, and leave one: so it only wakes the loop.
    stop_fd, wake_fd = os.pipe()
    signal.signal(signal.SIGTERM, lambda *_: os.write(wake_fd, b"."))
    Server(socket.socket(fileno=control_fd), stop_fd).serve()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
