"""``dependency.expired_certificate``, for services that are called over TLS (``tls: true``)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import ClassVar

from survive.contracts import (
    Active,
    CertifiedHandle,
    Grade,
    HandleSpec,
    Injection,
    Observation,
)
from survive.transport import Broken, CallFailedError, Request, read_all

from .common import Nothing
from .replicas import OnReplica

ANSWER_S = 0.45  # two calls fit in a look (1 s)


class DependencyExpiredCertificate(OnReplica):
    """``dependency.expired_certificate``: nobody renewed what the service shows its callers."""

    kind: ClassVar[str] = "dependency.expired_certificate"
    grade: ClassVar[Grade] = Grade.INDUCED
    layer: ClassVar[str] = "dependency"
    certifies: ClassVar[str] = (
        "callers verify: of a replica whose certificate has expired they take no answer, go to "
        "another one, and never fall back to plain text"
    )
    does_not_certify: ClassVar[str] = (
        "the renewal of certificates; revocation; a wrong clock; connections that nobody closes: "
        "the server closes those that stand when it takes the expired one, at the first handshake "
        "after the swap; services of your own must read a changed SURVIVE_TLS_CERT themselves"
    )

    def preflight(self, settings: Nothing, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
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
