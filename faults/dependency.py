"""A dependency that is slow, or frozen: on any link, of any stack."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from survive.contracts import Active, Injection, Json, LinkHandle, Observation
from survive.transport import Broken
from survive.units import MS, Duration, UnitError

from .calls import health
from .common import Nothing, asked
from .links import OnLink, put
from .network import NetworkLatency

ANSWER_S = 0.45  # two calls fit in a look (1 s)
FROZEN_MS = 24 * 3600 * 1000  # longer than any run


@dataclass(frozen=True, slots=True)
class Slow:
    """Every answer comes ``delay`` later."""

    delay: Duration

    def __post_init__(self) -> None:
        if self.delay < MS or self.delay % MS:
            raise UnitError("delay is whole milliseconds, at least 1ms")


class _Dependency(OnLink):
    """What both kinds share; what is held back arrives when the toxic is taken off."""

    layer: ClassVar[str] = "dependency"


class DependencySlow(_Dependency):
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
        await put(injection, handle, "latency", latency=asked(Slow, injection).delay // MS)

    async def observe(
        self, injection: Injection, handle: LinkHandle, before: float | None
    ) -> Observation:
        """As network.latency: a timed call through the link minus one around it."""
        return await NetworkLatency().observe(_as_latency(injection), handle, before)

    def look_s(self, settings: Mapping[str, Json]) -> float:
        """As network.latency."""
        return NetworkLatency().look_s({"latency": settings["delay"]})


def _as_latency(injection: Injection) -> Injection:
    return replace(injection, settings={"latency": injection.settings["delay"]})


class DependencyFrozen(_Dependency):
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
        await put(injection, handle, "latency", latency=FROZEN_MS)

    async def observe(
        self, injection: Injection, handle: LinkHandle, before: float | None
    ) -> Observation:
        """Active if nothing comes through the link in 450 ms while an answer comes around it."""
        through, around = await asyncio.gather(
            health(handle, ANSWER_S, handle.spec.via), health(handle, ANSWER_S)
        )
        text = f"through the link: {through}; around it: {around}"
        if isinstance(through, int):
            return Observation(Active.NO, text)
        frozen = through is Broken.TIMEOUT and isinstance(around, int)
        return Observation(Active.YES if frozen else Active.UNKNOWN, text)
