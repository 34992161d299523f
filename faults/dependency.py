"""Faults of what a service depends on: slow or frozen on any link; stale or closed on a stand-in.

``dependency.slow`` and ``dependency.frozen`` act on a link, so on any stack. The others act on the
switches of a service that ``simulates: [store]`` (the reference retrieval): no proxy can make a
store give old answers. They are proven by writes and searches straight to the store.
``dependency.expired_certificate`` needs a service that is called over TLS.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from survive.contracts import (
    Active,
    CertifiedHandle,
    FaultFailedError,
    Grade,
    HandleSpec,
    Injection,
    LinkHandle,
    Needs,
    Observation,
    StandInHandle,
    Toxic,
)
from survive.transport import Broken, CallFailedError, Request, read_all
from survive.units import MS, Duration, UnitError

from .network import NetworkLatency

ANSWER_S = 0.45  # two calls fit in a look (1 s)
GLANCE_S = 0.3  # three do
_NUMBERS = itertools.count()
FROZEN_MS = 24 * 3600 * 1000  # longer than any run


@dataclass(frozen=True, slots=True)
class Slow:
    """Every answer comes ``delay`` later."""

    delay: Duration

    def __post_init__(self) -> None:
        if self.delay < MS or self.delay % MS:
            raise UnitError("delay is whole milliseconds, at least 1ms")


@dataclass(frozen=True, slots=True)
class Nothing:
    """No settings."""


class _Dependency:
    """What all faults of this file share."""

    held: ClassVar[bool] = True
    layer: ClassVar[str] = "dependency"
    privileges: ClassVar[str] = ""
    keeps_down: ClassVar[bool] = False


class _OnLink(_Dependency):
    """Those that work on any stack."""

    grade: ClassVar[Grade] = Grade.EMULATED
    needs: ClassVar[Needs] = Needs.LINK

    def preflight(self, settings: Any, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """Every listener of the link."""
        return list(victims)

    async def heal(self, injection: Injection, handle: LinkHandle) -> None:
        """Take the toxic off; what it held back arrives now. One that is not there is fine."""
        await handle.remove(_toxic(injection))

    async def round_trip(self, injection: Injection, handle: LinkHandle) -> bool:
        """The dependency answers 200 through the link."""
        request = Request("GET", handle.spec.probe_path)
        return (await _ask(handle, handle.spec.via, request))[0] == 200


class DependencySlow(_OnLink):
    """``dependency.slow``: answers come late."""

    kind: ClassVar[str] = "dependency.slow"
    settings: ClassVar[type] = Slow
    certifies: ClassVar[str] = (
        "callers cope with a dependency that answers late by this much: deadlines, pools, fallbacks"
    )
    does_not_certify: ClassVar[str] = (
        "a dependency that is slow because it is loaded: this one's own resources stay free; what "
        "a proxy on the path cannot do (see network.latency)"
    )

    async def inject(self, injection: Injection, handle: LinkHandle) -> None:
        """Put a latency toxic on the link."""
        delay = Duration.parse(injection.settings["delay"]) // MS
        await handle.add(Toxic(_toxic(injection), "latency", attributes={"latency": delay}))

    async def observe(
        self, injection: Injection, handle: LinkHandle, before: float | None
    ) -> Observation:
        """As network.latency: a timed call through the link minus one around it."""
        return await NetworkLatency().observe(_as_latency(injection), handle, before)

    def look_s(self, injection: Injection) -> float:
        """As network.latency."""
        return NetworkLatency().look_s(_as_latency(injection))


def _as_latency(injection: Injection) -> Injection:
    return replace(injection, settings={"latency": injection.settings["delay"]})


class DependencyFrozen(_OnLink):
    """``dependency.frozen``: connections are accepted, nothing is ever answered."""

    kind: ClassVar[str] = "dependency.frozen"
    settings: ClassVar[type] = Nothing
    certifies: ClassVar[str] = (
        "callers cope with a dependency that accepts and never answers: only deadlines help; and "
        "with the flood of late answers when it thaws"
    )
    does_not_certify: ClassVar[str] = (
        "a dependency that stops working: calls still reach it and are carried out, only their "
        "answers are held back; nor one whose backlog of connections fills up"
    )

    async def inject(self, injection: Injection, handle: LinkHandle) -> None:
        """Hold back all answers for a day."""
        await handle.add(Toxic(_toxic(injection), "latency", attributes={"latency": FROZEN_MS}))

    async def observe(
        self, injection: Injection, handle: LinkHandle, before: float | None
    ) -> Observation:
        """Active if nothing comes through the link in 450 ms while an answer comes around it."""
        request = Request("GET", handle.spec.probe_path)
        (through, _), (around, _) = await asyncio.gather(
            _ask(handle, handle.spec.via, request), _ask(handle, handle.spec.address, request)
        )
        text = f"through the link: {through}; around it: {around}"
        if isinstance(through, int):
            return Observation(Active.NO, text)
        frozen = through is Broken.TIMEOUT and isinstance(around, int)
        return Observation(Active.YES if frozen else Active.UNKNOWN, text)


class _OnStore(_Dependency):
    """Those that only a stand-in can play. ``switch`` is its word for them."""

    grade: ClassVar[Grade] = Grade.SIMULATED
    needs: ClassVar[Needs] = Needs.STAND_IN
    settings: ClassVar[type] = Nothing
    switch: ClassVar[str]

    def preflight(self, settings: Any, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """Victims that simulate a store."""
        return [victim for victim in victims if "store" in victim.simulates.split()]

    async def inject(self, injection: Injection, handle: StandInHandle) -> None:
        """Turn the switch on."""
        await handle.set_state(**{self.switch: True})

    async def heal(self, injection: Injection, handle: StandInHandle) -> None:
        """Turn the switch off; a store that is gone is healthy when it is back."""
        try:
            await handle.set_state(**{self.switch: False})
        except FaultFailedError:
            seen, _ = await _ask(
                handle, handle.spec.address, Request("GET", handle.spec.probe_path)
            )
            if seen is not Broken.REFUSED:
                raise

    async def round_trip(self, injection: Injection, handle: StandInHandle) -> bool:
        """A search is answered."""
        return (await _ask(handle, handle.spec.address, _search("ping")))[0] == 200


class _HidesWrites(_OnStore):
    """Proven by a canary: a document with a word that nobody else has, written and searched for."""

    async def observe(
        self, injection: Injection, handle: StandInHandle, before: float | None
    ) -> Observation:
        """Active if a write is accepted and the very next search does not find it."""
        # In virtual time two looks may share their moment, in real time two children a number.
        word = f"canary{handle.clock.now_us()}x{next(_NUMBERS)}"
        wrote, _ = await _ask(handle, handle.spec.address, _write(injection, word), GLANCE_S)
        found, body = await _ask(handle, handle.spec.address, _search(word), GLANCE_S)
        where = f"{handle.spec.replica_id} (stand-in)"
        if wrote not in {200, 201, 202} or found != 200:
            return Observation(Active.UNKNOWN, f"{where}: write {wrote}, search {found}")
        there = any(word in str(hit.get("text")) for hit in json.loads(body)["results"])
        text = f"{where}: a canary just written is {'' if there else 'not '}found"
        return Observation(Active.NO if there else Active.YES, text)


class DependencyStale(_HidesWrites):
    """``dependency.stale``: searches answer from a copy as old as the fault."""

    kind: ClassVar[str] = "dependency.stale"
    switch: ClassVar[str] = "stale"
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
    switch: ClassVar[str] = "frozen_feed"
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
    switch: ClassVar[str] = "key_revoked"
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
        seen, _ = await _ask(handle, handle.spec.address, _search("ping"))
        text = f"a search of {handle.spec.replica_id} (stand-in): {seen}"
        known: dict[int | Broken, Active] = {200: Active.NO, 401: Active.YES}
        return Observation(known.get(seen, Active.UNKNOWN), text)


class DependencyExpiredCertificate(_Dependency):
    """``dependency.expired_certificate``: nobody renewed what the service shows its callers."""

    kind: ClassVar[str] = "dependency.expired_certificate"
    grade: ClassVar[Grade] = Grade.INDUCED
    needs: ClassVar[Needs] = Needs.REPLICA
    settings: ClassVar[type] = Nothing
    certifies: ClassVar[str] = (
        "callers verify: of a replica whose certificate has expired they take no answer, go to "
        "another one, and never fall back to plain text"
    )
    does_not_certify: ClassVar[str] = (
        "the renewal of certificates; revocation; a wrong clock; connections that nobody closes: "
        "the server closes those that stand when it takes the expired one, at the first handshake "
        "after the swap; services of your own must read a changed SURVIVE_TLS_CERT themselves"
    )

    def preflight(self, settings: Any, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """Victims that a `tls: true` link leads to."""
        return [victim for victim in victims if victim.tls]

    async def inject(self, injection: Injection, handle: CertifiedHandle) -> None:
        """Swap the files: one that the same authority issued, and that has ended."""
        await handle.certify(expired=True)

    async def observe(
        self, injection: Injection, handle: CertifiedHandle, before: float | None
    ) -> Observation:
        """Active if a verifying handshake from outside fails and says that it has expired."""
        where = handle.spec.replica_id
        try:
            status = await _fresh_call(handle)
        except TimeoutError:
            return Observation(Active.UNKNOWN, f"{where}: {Broken.TIMEOUT}")
        except CallFailedError as error:
            expired = error.how is Broken.TLS and "expired" in str(error)
            return Observation(Active.YES if expired else Active.UNKNOWN, f"{where}: {error}")
        return Observation(Active.NO, f"{where}: its certificate holds (status {status})")

    async def heal(self, injection: Injection, handle: CertifiedHandle) -> None:
        """The good one is served again."""
        await handle.certify(expired=False)

    async def round_trip(self, injection: Injection, handle: CertifiedHandle) -> bool:
        """Verified, and answered 200."""
        try:
            return await _fresh_call(handle) == 200
        except (CallFailedError, TimeoutError):
            return False


async def _fresh_call(handle: CertifiedHandle) -> int:
    """The status of a health probe on a connection of its own. CallFailedError, TimeoutError."""
    spec = handle.spec
    request = Request("GET", spec.probe_path, (("connection", "close"),))
    async with asyncio.timeout(ANSWER_S):
        answer = await handle.transport.call(spec.address, request, timeout_s=ANSWER_S)
        await read_all(answer)
    return answer.status


def _toxic(injection: Injection) -> str:
    return f"sv-{injection.id}"


def _search(word: str) -> Request:
    return Request("GET", f"/v1/search?q={word}")


def _write(injection: Injection, word: str) -> Request:
    """One document an injection, replaced by each look, so that looks do not fill the store."""
    body = json.dumps({"id": f"survive-{injection.id}", "text": word})
    headers = (("content-type", "application/json"),)
    return Request("POST", "/v1/documents", headers, body.encode())


async def _ask(
    handle: LinkHandle | StandInHandle, address: str, request: Request, within_s: float = ANSWER_S
) -> tuple[int | Broken, bytes]:
    """Status and body of a whole answer, or how it failed."""
    try:
        async with asyncio.timeout(within_s):
            answer = await handle.transport.call(address, request, timeout_s=within_s)
            return answer.status, await read_all(answer)
    except TimeoutError:
        return Broken.TIMEOUT, b""
    except CallFailedError as error:
        return error.how, b""
