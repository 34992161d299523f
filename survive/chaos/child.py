"""``python -m survive.chaos.child START plugins|built-ins``: runs the verbs of one injection.

One JSON object a line on stdin ({id, verb, injection, before}) and on stdout ({id, result} or
{id, failed}); {"ready": true} once. Verbs run side by side, so that a slow look never delays a
heal. It ends with its stdin or its parent, and remembers nothing that a successor would need.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from survive.catalog import Catalog
from survive.chaos.executor import get_ready, perform
from survive.chaos.handles import open_handle
from survive.clock import LoopClock
from survive.contracts import Fault, FaultFailedError, Injection, Json, Observation
from survive.errors import SurviveError
from survive.transport import Transport

_LONGEST_LINE = 1 << 20


class Worker:
    """Answers questions until stdin ends."""

    def __init__(self, catalog: Catalog, transport: Transport, out: int) -> None:
        self._catalog = catalog
        self._transport = transport
        self._clock = LoopClock(0.0)
        self._faults: dict[str, Fault] = {}
        self._out = out
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, lines: asyncio.StreamReader) -> None:
        """See the class."""
        self._say({"ready": True})
        while line := await lines.readline():
            task = asyncio.create_task(self._answer(json.loads(line)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, question: dict[str, Any]) -> None:
        try:
            self._say({"id": question["id"], "result": await self._do(question)})
        except (FaultFailedError, SurviveError) as error:
            self._say({"id": question["id"], "failed": str(error)})

    async def _do(self, question: dict[str, Any]) -> Json:
        injection = Injection.from_json(question["injection"])
        fault = self._fault(injection.kind)
        # Opened for "load" too: a handle's library can take 0.2 s to import, of a look's second.
        handle = open_handle(injection.handle, fault.needs, self._clock, self._transport)
        if question["verb"] == "load":
            await get_ready(fault, injection)
            return True
        result = await perform(fault, question["verb"], injection, handle, question["before"])
        return asdict(result) if isinstance(result, Observation) else result

    def _fault(self, kind: str) -> Fault:
        if kind not in self._faults:
            try:
                self._faults[kind] = self._catalog.fault(kind)
            except SurviveError:
                raise
            except Exception as error:  # a team's file that cannot even be executed
                raise FaultFailedError(f"{kind} cannot be loaded: {error}") from error
        return self._faults[kind]

    def _say(self, message: dict[str, Json]) -> None:
        os.write(self._out, json.dumps(message).encode() + b"\n")


async def main(start: str, plugins: str) -> None:
    """Serve stdin; return when it ends."""
    from survive.host.sockets import SocketTransport

    # A fault that prints must not garble the protocol: its stdout becomes our stderr.
    out = os.dup(1)
    os.dup2(2, 1)
    lines = asyncio.StreamReader(limit=_LONGEST_LINE)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), os.fdopen(os.dup(0), "rb", 0)
    )
    catalog = Catalog(Path(start) if start else None, plugins == "plugins")
    await Worker(catalog, SocketTransport(), out).serve(lines)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
