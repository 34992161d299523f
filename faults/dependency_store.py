"""A store that gives old answers, takes in nothing, or refuses its callers.

Only a stand-in can play that (``simulates: [store]``, the reference retrieval): no proxy can make a
store give old answers. Proven by writes and searches straight to the store.
"""

from __future__ import annotations

import itertools
import json
from typing import ClassVar

from survive.contracts import Active, Injection, Json, Observation, StandInHandle
from survive.transport import Broken, Request

from .calls import answer_of, posted, status_of
from .stand_ins import ANSWER_S, OnStandIn

GLANCE_S = 0.3  # three calls fit in a look (1 s)
_NUMBERS = itertools.count()


class _OnStore(OnStandIn):
    """What all faults of this file share."""

    layer: ClassVar[str] = "dependency"
    part: ClassVar[str] = "store"

    async def round_trip(self, injection: Injection, handle: StandInHandle) -> bool:
        """A search is answered."""
        return await status_of(handle, _search("ping"), ANSWER_S) == 200


class _HidesWrites(_OnStore):
    """Proven by a canary: a document with a word that nobody else has, written and searched for."""

    async def observe(
        self, injection: Injection, handle: StandInHandle, before: float | None
    ) -> Observation:
        """Active if a write is accepted and the very next search does not find it."""
        # In virtual time two looks may share their moment, in real time two children a number.
        word = f"canary{handle.clock.now_us()}x{next(_NUMBERS)}"
        # One document an injection, replaced by each look, so that looks do not fill the store.
        document = posted("/v1/documents", {"id": f"survive-{injection.id}", "text": word})
        wrote = await status_of(handle, document, GLANCE_S)
        found, body = await answer_of(handle, _search(word), GLANCE_S)
        where = f"{handle.spec.replica_id} (stand-in)"
        if wrote not in {200, 201, 202} or found != 200:
            return Observation(Active.UNKNOWN, f"{where}: write {wrote}, search {found}")
        there = any(word in str(hit.get("text")) for hit in json.loads(body)["results"])
        text = f"{where}: a canary just written is {'' if there else 'not '}found"
        return Observation(Active.NO if there else Active.YES, text)


class DependencyStale(_HidesWrites):
    """``dependency.stale``: searches answer from a copy as old as the fault."""

    kind: ClassVar[str] = "dependency.stale"
    broken: ClassVar[dict[str, Json]] = {"stale": True}
    healthy: ClassVar[dict[str, Json]] = {"stale": False}
    certifies: ClassVar[str] = (
        "the stack keeps answering over a store whose reads are old (a lagging copy, a cache that "
        "does not expire), and what is measured of freshness tells"
    )
    does_not_certify: ClassVar[str] = (
        "any real store or its replication; wrong answers other than old ones"
    )


class DependencyFrozenFeed(_HidesWrites):
    """``dependency.frozen_feed``: writes are accepted and never indexed, until it is healed."""

    kind: ClassVar[str] = "dependency.frozen_feed"
    broken: ClassVar[dict[str, Json]] = {"frozen_feed": True}
    healthy: ClassVar[dict[str, Json]] = {"frozen_feed": False}
    certifies: ClassVar[str] = (
        "the stack keeps answering while what it takes in is not indexed, what is measured of "
        "freshness tells, and nothing accepted is lost once the feed goes on"
    )
    does_not_certify: ClassVar[str] = (
        "any real pipeline: the backlog is small, in memory, and indexed at once after the heal"
    )


class DependencyRevokedKey(_OnStore):
    """``dependency.revoked_key``: the store refuses its callers, and its health route says 200."""

    kind: ClassVar[str] = "dependency.revoked_key"
    broken: ClassVar[dict[str, Json]] = {"key_revoked": True}
    healthy: ClassVar[dict[str, Json]] = {"key_revoked": False}
    certifies: ClassVar[str] = (
        "callers cope with a dependency that answers 401 at once while its health route says 200"
    )
    does_not_certify: ClassVar[str] = (
        "any real key: none is checked, the stand-in just refuses; renewal of credentials"
    )

    async def observe(
        self, injection: Injection, handle: StandInHandle, before: float | None
    ) -> Observation:
        """Active if a search straight to the store is answered with 401."""
        seen = await status_of(handle, _search("ping"), ANSWER_S)
        text = f"a search of {handle.spec.replica_id} (stand-in): {seen}"
        known: dict[int | Broken, Active] = {200: Active.NO, 401: Active.YES}
        return Observation(known.get(seen, Active.UNKNOWN), text)


def _search(word: str) -> Request:
    return Request("GET", f"/v1/search?q={word}")
