"""A full-text store of documents that belong to tenants: SQLite FTS5 with bm25, in memory.

A document without a tenant ("") is public. A tenant finds the public ones and its own. What a
document is *about* may come with it as a vector; ``similar`` ranks by its cosine.
"""

from __future__ import annotations

import math
import re
import sqlite3
import unicodedata
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from survive.contracts import Json

TOP = 5
MAX_TERMS = 32  # of a query; the rest is ignored
MAX_KNOWN = 2048  # answers that are kept until a document comes
MAX_DOCUMENTS = 100_000  # the store is bounded

_FIND = (
    "SELECT id, text, bm25(documents), rowid FROM documents WHERE documents MATCH ? "
    "AND (tenant = '' OR tenant = ?) ORDER BY bm25(documents), rowid LIMIT ?"
)


@dataclass(frozen=True, slots=True)
class Found:
    """What a search gave: its hits as JSON, best first, and the oldest row among them."""

    hits: list[Json]
    oldest_row: int  # 0 = none was found


class Store:
    """Documents by (tenant, id)."""

    def __init__(self) -> None:
        # Autocommit: a copy cannot be made of a store within a transaction.
        self._db = self._opened()
        self._db.execute(
            "CREATE VIRTUAL TABLE documents USING fts5(id UNINDEXED, text, tenant UNINDEXED)"
        )
        self._past: sqlite3.Connection | None = None  # what searches see while it is stale
        self._known: dict[tuple[str, str], Found] = {}  # by expression and tenant
        self._rows: dict[tuple[str, str], int] = {}
        self._texts: dict[tuple[str, str], str] = {}
        self._vectors: dict[tuple[str, str], Sequence[float]] = {}

    def _opened(self) -> sqlite3.Connection:
        """Nobody closes the store of a killed node, and its garbage falls in any thread."""
        made = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        weakref.finalize(self, made.close)
        return made

    def __len__(self) -> int:
        return len(self._rows)

    def has(self, tenant: str, name: str) -> bool:
        """Whether there is such a document."""
        return (tenant, name) in self._rows

    def text(self, tenant: str, name: str) -> str:
        """The text of a document; "" if there is none."""
        return self._texts.get((tenant, name), "")

    def put(self, tenant: str, name: str, text: str, vector: Sequence[float] | None = None) -> int:
        """Add or replace a document; its row, which grows from write to write."""
        self._known.clear()
        key = (tenant, name)
        row = self._rows.get(key)
        if row is not None:
            self._db.execute("DELETE FROM documents WHERE rowid = ?", (row,))
        cursor = self._db.execute(
            "INSERT INTO documents (id, text, tenant) VALUES (?, ?, ?)", (name, text, tenant)
        )
        assert cursor.lastrowid is not None
        self._rows[key] = cursor.lastrowid
        self._texts[key] = text
        self._vectors.pop(key, None)
        if vector:
            self._vectors[key] = vector
        return cursor.lastrowid

    def find(self, query: str, tenant: str = "") -> Found:
        """The best documents for a query that the tenant may see."""
        match = match_expression(query)
        if not match:
            return Found([], 0)
        known = self._known.get((match, tenant))
        if known is None:
            known = self._ask(match, tenant)
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[match, tenant] = known
        return known

    def _ask(self, match: str, tenant: str) -> Found:
        rows = (self._past or self._db).execute(_FIND, (match, tenant, TOP)).fetchall()
        hits: list[Json] = [
            {"id": name, "text": text, "bm25": round(rank, 6)} for name, text, rank, _ in rows
        ]
        return Found(hits, min((row for *_, row in rows), default=0))

    def similar(self, tenant: str, name: str) -> list[Json] | None:
        """The nearest documents by cosine that the tenant may see; None without a vector."""
        own = self._vectors.get((tenant, name))
        if own is None:
            return None
        near = sorted(
            (-_cosine(own, vector), owner, other)
            for (owner, other), vector in self._vectors.items()
            if owner in ("", tenant) and (owner, other) != (tenant, name)
        )
        return [{"id": other, "cosine": round(-angle, 6)} for angle, _, other in near[:TOP]]

    @property
    def is_past(self) -> bool:
        """Whether searches see a copy of old."""
        return self._past is not None

    def look_back(self, on: bool) -> None:
        """Let searches see the documents as they are now, until it is turned off. Idempotent."""
        self._known.clear()
        if on and self._past is None:
            self._past = self._opened()
            self._db.backup(self._past)
        elif not on and self._past is not None:
            self._past.close()
            self._past = None

    def ping(self) -> None:
        """Raises sqlite3.Error if the index does not answer."""
        self._db.execute("SELECT rowid FROM documents LIMIT 1").fetchone()


def match_expression(query: str) -> str:
    """A query by people as an FTS5 expression: each word quoted, any of them may match.

    Only letters, digits and underscores survive, so FTS5's own syntax cannot be reached.
    """
    words = re.findall(r"\w+", query)[:MAX_TERMS]
    return " OR ".join(f'"{word}"' for word in words)


def terms(*texts: str) -> set[str]:
    """The words of texts as the index sees them: no case, no accents."""
    plain = unicodedata.normalize("NFKD", " ".join(texts)).casefold()
    return set(re.findall(r"[^\W_]+", "".join(c for c in plain if not unicodedata.combining(c))))


def clean(text: str) -> str:
    """JSON may hold lone surrogates, which no UTF-8 store can."""
    return text.encode("utf-8", "replace").decode("utf-8")


def vector_of(value: Json) -> tuple[float, ...] | None:
    """A vector from JSON; None if it is none."""
    if not isinstance(value, list) or not value:
        return None
    numbers = tuple(float(v) for v in value if isinstance(v, int | float))
    return numbers if len(numbers) == len(value) else None


def _cosine(one: Iterable[float], other: Iterable[float]) -> float:
    pairs = list(zip(one, other, strict=False))
    size = math.hypot(*(a for a, _ in pairs)) * math.hypot(*(b for _, b in pairs))
    return sum(a * b for a, b in pairs) / size if size else 0.0
