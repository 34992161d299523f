"""The probe process of a real run: ``python -m survive.probe.process``.

Spec: a Probing as JSON. Control, lines of JSON: ``{"start": µs of CLOCK_MONOTONIC at t = 0}``; its
end means that the parent is gone: leave at once. Report: ``{"ready": true}``, then a line
``{"fields": {…}, "t_us": …}`` for each event; the last one says so itself. Exit 0 after it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Mapping
from pathlib import Path

from survive.chaos.handles import open_handle
from survive.clock import LoopClock
from survive.contracts import Handle, HandleSpec, Json, Needs
from survive.errors import ExitCode
from survive.host.sockets import SocketTransport
from survive.probe.engine import Prober, Probing
from survive.probe.links import looker


class Report:
    """Lines to the parent. Findings are few and the pipe is deep; a parent that is gone ends us."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def line(self, message: Mapping[str, Json]) -> None:
        """One message, whole."""
        data = json.dumps(message).encode() + b"\n"
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:
            leave()


def leave() -> None:
    """The parent is gone: end at once."""
    os._exit(int(ExitCode.TERMINATED))


async def main(spec_file: Path, control_fd: int, report_fd: int, authority: str = "") -> None:
    """Ready, start, every finding, the last line. ``authority``: a PEM file to verify with."""
    probing = Probing.from_json(json.loads(spec_file.read_text(encoding="utf-8")))
    report = Report(report_fd)
    control = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(control), os.fdopen(control_fd, "rb", 0)
    )
    report.line({"ready": True})
    order = await control.readline()
    if not order:
        leave()
    clock = LoopClock(json.loads(order)["start"] / 1e6)
    watch = asyncio.create_task(_until_gone(control))
    transport = SocketTransport()
    if authority:
        transport.trust(authority, "")

    def open_link(spec: HandleSpec) -> Handle:
        return open_handle(spec, Needs.LINK, clock, transport)

    def tell(fields: Mapping[str, Json]) -> None:
        report.line({"fields": dict(fields), "t_us": clock.now_us()})

    look = looker(probing.listeners, open_link)
    await Prober(probing.job, clock, transport, tell, look).run()
    watch.cancel()
    await transport.close()


async def _until_gone(control: asyncio.StreamReader) -> None:
    while await control.readline():
        pass
    leave()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--spec", type=Path, required=True)
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("--report", type=int, required=True)
    parser.add_argument("--authority", default="")
    given = parser.parse_args()
    asyncio.run(main(given.spec, given.control, given.report, given.authority))
