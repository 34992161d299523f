"""Faults of what watches a stack. Users must not feel them; whoever scales or pages by it does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import ClassVar

from survive.contracts import Active, HandleSpec, Injection, Json, Observation, StandInHandle
from survive.transport import Broken

from .calls import get, health
from .common import Nothing
from .stand_ins import ANSWER_S, OnStandIn


class MetricsDown(OnStandIn):
    """``observability.metrics_down``: the metrics route accepts and never answers."""

    kind: ClassVar[str] = "observability.metrics_down"
    layer: ClassVar[str] = "observability"
    part: ClassVar[str] = "metrics"
    broken: ClassVar[dict[str, Json]] = {"metrics_down": True}
    healthy: ClassVar[dict[str, Json]] = {"metrics_down": False}
    certifies: ClassVar[str] = (
        "users are served while a metrics route does not answer: nothing on their way waits for it"
    )
    does_not_certify: ClassVar[str] = (
        "the monitoring system itself, its alerts, or an autoscaler that goes by these metrics"
    )

    def preflight(self, settings: Nothing, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """Victims that simulate their metrics and say where they are."""
        return [v for v in super().preflight(settings, victims) if v.metrics_path]

    async def observe(
        self, injection: Injection, handle: StandInHandle, before: float | None
    ) -> Observation:
        """Active if the metrics route is silent for 450 ms while the health route answers."""
        metrics, alive = await asyncio.gather(
            get(handle, handle.spec.metrics_path, ANSWER_S), health(handle, ANSWER_S)
        )
        text = f"{handle.spec.replica_id}: metrics {metrics}, health {alive}"
        if isinstance(metrics, int):
            return Observation(Active.NO if metrics == 200 else Active.UNKNOWN, text)
        silent = metrics is Broken.TIMEOUT and isinstance(alive, int)
        return Observation(Active.YES if silent else Active.UNKNOWN, text)

    async def round_trip(self, injection: Injection, handle: StandInHandle) -> bool:
        """The metrics are there again."""
        return await get(handle, handle.spec.metrics_path, ANSWER_S) == 200
