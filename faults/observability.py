"""Faults of what watches a stack. Users must not feel them; whoever scales or pages by it does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from survive.contracts import (
    Active,
    FaultFailedError,
    Grade,
    HandleSpec,
    Injection,
    Needs,
    Observation,
    StandInHandle,
)
from survive.transport import Broken, CallFailedError, Request, read_all

ANSWER_S = 0.45  # two calls fit in a look (1 s)


class MetricsDown:
    """``observability.metrics_down``: the metrics route accepts and never answers."""

    @dataclass(frozen=True, slots=True)
    class Settings:
        """None."""

    kind: ClassVar[str] = "observability.metrics_down"
    held: ClassVar[bool] = True
    grade: ClassVar[Grade] = Grade.SIMULATED
    layer: ClassVar[str] = "observability"
    needs: ClassVar[Needs] = Needs.STAND_IN
    privileges: ClassVar[str] = ""
    keeps_down: ClassVar[bool] = False
    settings: ClassVar[type] = Settings
    certifies: ClassVar[str] = (
        "users are served while a metrics route does not answer: nothing on their way waits for it"
    )
    does_not_certify: ClassVar[str] = (
        "the monitoring system itself, its alerts, or an autoscaler that goes by these metrics"
    )

    def preflight(self, settings: Settings, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """Victims that simulate their metrics and say where they are."""
        return [v for v in victims if "metrics" in v.simulates.split() and v.metrics_path]

    async def inject(self, injection: Injection, handle: StandInHandle) -> None:
        """Turn the switch on."""
        await handle.set_state(metrics_down=True)

    async def observe(
        self, injection: Injection, handle: StandInHandle, before: float | None
    ) -> Observation:
        """Active if the metrics route is silent for 450 ms while the health route answers."""
        metrics, health = await asyncio.gather(
            _get(handle, handle.spec.metrics_path), _get(handle, handle.spec.probe_path)
        )
        text = f"{handle.spec.replica_id}: metrics {metrics}, health {health}"
        if isinstance(metrics, int):
            return Observation(Active.NO if metrics == 200 else Active.UNKNOWN, text)
        silent = metrics is Broken.TIMEOUT and isinstance(health, int)
        return Observation(Active.YES if silent else Active.UNKNOWN, text)

    async def heal(self, injection: Injection, handle: StandInHandle) -> None:
        """Turn the switch off; a service that is gone is healthy when it is back."""
        try:
            await handle.set_state(metrics_down=False)
        except FaultFailedError:
            if await _get(handle, handle.spec.probe_path) is not Broken.REFUSED:
                raise

    async def round_trip(self, injection: Injection, handle: StandInHandle) -> bool:
        """The metrics are there again."""
        return await _get(handle, handle.spec.metrics_path) == 200


async def _get(handle: StandInHandle, path: str) -> int | Broken:
    """The status of a whole answer, or how it failed."""
    try:
        async with asyncio.timeout(ANSWER_S):
            answer = await handle.transport.call(
                handle.spec.address, Request("GET", path), timeout_s=ANSWER_S
            )
            await read_all(answer)
            return answer.status
    except TimeoutError:
        return Broken.TIMEOUT
    except CallFailedError as error:
        return error.how
