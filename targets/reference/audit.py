"""The audit log: one line of JSON for each admitted request, each bound to the one before.

A line is ``{"seq","request_id","tenant","method","path","status","prev","hash"}``; ``hash`` is the
SHA-256 of ``prev`` and the line without its hash as compact JSON with sorted keys, and the first
``prev`` is 64 zeros. Cut or change a line, and the chain breaks there. A record is in the hands of
the operating system before its answer ends, so a kill of the gateway loses none that a client saw.
After a restart the chain goes on from the last whole line; one that the kill tore is removed.

Weakness ``lossy_audit``: records wait in memory and are written each two seconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from pathlib import Path

from survive.clock import sleep_us
from survive.contracts import Json, ServiceContext

WRITE_EVERY_US = 2_000_000
FIRST = "0" * 64


class AuditLog:
    """The open log of one gateway."""

    def __init__(self, context: ServiceContext, path: Path, *, lossy: bool) -> None:
        self.repaired = 0  # bytes of a torn last line that were removed at the start
        self._prev, self._seq = self._continued(path)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        weakref.finalize(self, os.close, self._file)  # nobody closes the log of a killed node
        self._waiting: list[bytes] | None = None
        if lossy:
            self._waiting = []
            context.spawn(self._write_now_and_then(context))

    @property
    def pending(self) -> int:
        """Records that a crash would lose."""
        return len(self._waiting or ())

    @property
    def written(self) -> int:
        """Records of this file, those before a restart included."""
        return self._seq

    def add(self, request_id: str, tenant: str, method: str, path: str, status: int) -> None:
        """Record one request."""
        record: dict[str, Json] = {
            "method": method,
            "path": path,
            "prev": self._prev,
            "request_id": request_id,
            "seq": self._seq,
            "status": status,
            "tenant": tenant,
        }
        self._prev = record["hash"] = chained(self._prev, record)
        self._seq += 1
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        if self._waiting is None:
            os.write(self._file, line)
        else:
            self._waiting.append(line)

    async def _write_now_and_then(self, context: ServiceContext) -> None:
        assert self._waiting is not None
        while True:
            await sleep_us(context.clock, WRITE_EVERY_US)
            os.write(self._file, b"".join(self._waiting))
            self._waiting.clear()

    def _continued(self, path: Path) -> tuple[str, int]:
        """The hash and number to go on from; a torn last line is cut off."""
        if not path.exists():
            return FIRST, 0
        with path.open("r+b") as file:
            text = file.read()
            whole = text.rfind(b"\n") + 1
            self.repaired = len(text) - whole
            file.truncate(whole)
        lines = text[:whole].splitlines()
        if not lines:
            return FIRST, 0
        last = json.loads(lines[-1])
        return str(last["hash"]), int(last["seq"]) + 1


def chained(prev: str, record: dict[str, Json]) -> str:
    """The hash of a record that has none yet."""
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256((prev + canonical).encode()).hexdigest()
