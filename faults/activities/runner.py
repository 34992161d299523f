"""Asks an activity server (server.py), one per injection of this process."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from survive.contracts import FaultFailedError

_SERVER = Path(__file__).with_name("server.py")
_LONGEST = 1 << 20


class Runner:
    """One server process. It dies with this one, and every activity with it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, str(_SERVER), str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=2,  # an extension that prints must not garble its parent's protocol
                pass_fds=[theirs.fileno()],
                process_group=0,
            )
        self._control = ours

    @property
    def alive(self) -> bool:
        """It can still be asked."""
        return self._process.poll() is None

    async def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Its answer; cancelled = the activity is killed. Raises FaultFailedError.

        Unbounded: the caller has a limit for each verb.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                packet = json.dumps(question).encode()
                socket.send_fds(self._control, [packet], [theirs.fileno()])
        except OSError as error:
            ours.close()
            raise FaultFailedError(f"the activity server cannot be asked: {error}") from error
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=_LONGEST)
        try:
            answer = await reader.read()
        finally:
            writer.close()
        if not answer:
            raise FaultFailedError("the activity's process ended without a word")
        result: dict[str, Any] = json.loads(answer)
        return result

    def close(self) -> None:
        """End it and whatever it runs."""
        self._control.close()
        self._process.wait()


_runners: dict[str, Runner] = {}


def runner(injection_id: str) -> Runner:
    """The server of an injection; a fresh one if it is gone. Nothing of a fault lives in it."""
    known = _runners.get(injection_id)
    if known is None or not known.alive:
        known = _runners[injection_id] = Runner()
    return known


def close_all() -> None:
    """End every server of this process."""
    while _runners:
        _runners.popitem()[1].close()
