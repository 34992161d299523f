"""What faults may do to the simulated GPU of a replica: the state that its admin route sets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeGuard

from survive.contracts import Json

from .asgi import RefusalError

MAX_SLOW_DOWN = 1000.0
DEATHS = ("", "red", "lying", "exit")  # how a replica takes Xid 79; "" = it has none


@dataclass(frozen=True, slots=True)
class GpuState:
    """The default is a healthy one."""

    lost: bool = False  # every call fails, health says so
    hung: bool = False  # no step is taken any more, health says 200
    slow_down: float = 1.0  # a factor on the time of each step
    retries: float = 0.0  # share of steps that are taken twice, as after an ECC error
    taken: float = 0.0  # share of the KV space that something else holds
    xid: str = ""  # see DEATHS

    @property
    def gone(self) -> bool:
        """Nothing can be computed."""
        return self.lost or self.xid != ""

    @property
    def looks_healthy(self) -> bool:
        """What the health route says."""
        return not self.lost and self.xid in {"", "lying"}

    def changed(self, wanted: Mapping[str, Json]) -> GpuState:
        """With some fields set, or as new by ``{"reset": true}``. Raises RefusalError 400."""
        if dict(wanted) == {"reset": True}:
            return GpuState()
        unknown = sorted(set(wanted) - {field.name for field in fields(self)})
        if unknown:
            raise RefusalError(400, f"unknown: {', '.join(unknown)[:200]}")
        for name in ("lost", "hung"):
            if not isinstance(wanted.get(name, False), bool):
                raise RefusalError(400, f"{name} must be true or false")
        _within(wanted, "slow_down", MAX_SLOW_DOWN, least_is_legal=False)
        _within(wanted, "retries", 1.0, least_is_legal=True)
        _within(wanted, "taken", 1.0, least_is_legal=True)
        if wanted.get("xid", "") not in DEATHS:
            raise RefusalError(400, f"xid must be one of {', '.join(DEATHS[1:])}, or empty")
        values: dict[str, Any] = {name: _plain(value) for name, value in wanted.items()}
        return replace(self, **values)


def _within(wanted: Mapping[str, Json], name: str, most: float, *, least_is_legal: bool) -> None:
    value = wanted.get(name, 1.0)
    if _is_number(value) and (0 < value <= most or (value == 0 and least_is_legal)):
        return
    least = "from 0" if least_is_legal else "over 0"
    raise RefusalError(400, f"{name} must be a number {least}, at most {most:g}")


def _is_number(value: Json) -> TypeGuard[float]:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)  # type: ignore[arg-type]


def _plain(value: Json) -> Json:
    return float(value) if _is_number(value) else value
