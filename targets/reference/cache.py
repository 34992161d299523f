"""Answers of searches by (tenant, query): bounded, for a time, and none that a write made old.

A write drops exactly those answers that it may change: of queries that share a word with the new or
the old text, of tenants that may see the document. So a "nothing found" that was kept does not hide
the document that a poller waits for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from .store import terms

TTL_US = 30_000_000
MOST = 2048  # answers kept; the one that was asked for longest ago goes first

Key: TypeAlias = tuple[str, str]  # tenant, query


@dataclass(frozen=True, slots=True)
class Kept:
    """One answer, ready to be sent."""

    body: bytes
    hits: int
    until_us: int


class Cache:
    """The answers, and which words they hang on."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Key, Kept] = OrderedDict()
        self._by_word: dict[str, dict[Key, None]] = {}  # dicts: sets have no stable order

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Key) -> Kept | None:
        """The answer, be it past its time; None if there is none."""
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
        return kept

    def put(self, key: Key, kept: Kept) -> None:
        """Keep an answer."""
        if key not in self._kept:
            for word in terms(key[1]):
                self._by_word.setdefault(word, {})[key] = None
        self._kept[key] = kept
        if len(self._kept) > MOST:
            self._drop(next(iter(self._kept)))

    def invalidate(self, words: Iterable[str], tenant: str) -> None:
        """A document of ``tenant`` ("" = public) with these words has changed."""
        for word in words:
            for key in list(self._by_word.get(word, ())):
                if touches(tenant, key[0]):
                    self._drop(key)

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()
        self._by_word.clear()

    def of_any_tenant(self, query: str) -> Kept | None:
        """Somebody's answer to the query that found something, whoever it was made for."""
        for (_, other), kept in self._kept.items():
            if other == query and kept.hits:
                return kept
        return None

    def _drop(self, key: Key) -> None:
        del self._kept[key]
        for word in terms(key[1]):
            keys = self._by_word[word]
            del keys[key]
            if not keys:
                del self._by_word[word]


def touches(tenant: str, reader: str) -> bool:
    """Whether a reader may see what belongs to a tenant."""
    return tenant in ("", reader)
