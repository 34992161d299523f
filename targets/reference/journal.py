"""What the pipeline has promised to index: a durable queue in SQLite, mirrored in memory.

One row a document, its latest version only. A promise outlives a kill of the process (WAL with
``synchronous=NORMAL``: it is in the kernel's hands once committed), not a power cut. Without a
folder it is in memory.
"""

from __future__ import annotations

import sqlite3
import weakref
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path


class Lane(IntEnum):
    """Small fresh writes go ahead of bulk."""

    FRESH = 0
    BULK = 1


@dataclass(slots=True, eq=False)
class Entry:
    """One version of one document."""

    seq: int
    tenant: str
    name: str
    text: str
    lane: Lane
    accepted_us: int = 0  # of this boot's clock; 0 = an earlier boot accepted it
    vector: Sequence[float] | None = None
    indexed: bool = False  # by one replica at least
    old: bool = False  # a newer version is there: not to be indexed any more

    @property
    def key(self) -> tuple[str, str]:
        """What it is known by."""
        return self.tenant, self.name


class Journal:
    """Entries by (tenant, id); writes are durable when a method returns."""

    def __init__(self, folder: str) -> None:
        file = Path(folder) / "queue.sqlite" if folder else ":memory:"
        # Nobody closes the queue of a killed node, and its garbage falls in any thread.
        self._db = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        weakref.finalize(self, self._db.close)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS documents (seq INTEGER PRIMARY KEY, tenant TEXT, name TEXT,"
            " text TEXT, lane INTEGER, vector BLOB, indexed INTEGER, UNIQUE (tenant, name))"
        )
        self._latest: dict[tuple[str, str], Entry] = {}
        self._seq = 0
        for entry in self._stored():
            self._latest[entry.key] = entry
            self._seq = max(self._seq, entry.seq)

    def __len__(self) -> int:
        return len(self._latest)

    def entries(self) -> list[Entry]:
        """The latest version of each document, in the order of writing."""
        return sorted(self._latest.values(), key=lambda entry: entry.seq)

    def knows(self, tenant: str, name: str) -> bool:
        """Whether there is such a document."""
        return (tenant, name) in self._latest

    def append(
        self, documents: Iterable[tuple[str, str, str]], lane: Lane, now_us: int
    ) -> list[Entry]:
        """Promise (tenant, id or "", text) in one transaction; older versions become ``old``."""
        entries: list[Entry] = []
        for tenant, name, text in documents:
            self._seq += 1
            entry = Entry(self._seq, tenant, name or f"added-{self._seq}", text, lane, now_us)
            entries.append(entry)
        with _transaction(self._db):
            self._db.executemany(
                "INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?, ?, NULL, 0)",
                [(e.seq, e.tenant, e.name, e.text, int(e.lane)) for e in entries],
            )
        for entry in entries:
            before = self._latest.pop(entry.key, None)
            if before is not None:
                before.old = True
            self._latest[entry.key] = entry
        return entries

    def note(self, entries: Iterable[Entry]) -> None:
        """Write down what became of entries: their vectors, and that they are indexed."""
        rows = [
            (array("d", e.vector).tobytes() if e.vector else None, int(e.indexed), e.seq)
            for e in entries
        ]
        with _transaction(self._db):
            self._db.executemany("UPDATE documents SET vector = ?, indexed = ? WHERE seq = ?", rows)

    def ping(self) -> None:
        """Raises sqlite3.Error if the queue does not answer."""
        self._db.execute("SELECT seq FROM documents LIMIT 1").fetchone()

    def _stored(self) -> list[Entry]:
        rows = self._db.execute(
            "SELECT seq, tenant, name, text, lane, vector, indexed FROM documents ORDER BY seq"
        )
        return [
            Entry(
                seq,
                tenant,
                name,
                text,
                Lane(lane),
                vector=tuple(array("d", vector)) if vector else None,
                indexed=bool(indexed),
            )
            for seq, tenant, name, text, lane, vector, indexed in rows
        ]


class _transaction:  # noqa: N801 - used like a function
    """BEGIN … COMMIT, or ROLLBACK."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN")

    def __exit__(self, kind: object, *_: object) -> None:
        self._db.execute("COMMIT" if kind is None else "ROLLBACK")
