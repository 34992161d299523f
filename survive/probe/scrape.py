"""What a service says of itself: ready replicas, and the gauges of model servers and GPUs.

vLLM's names, older ones too, and DCGM's exporter; a simulated GPU says ``simulated_gpu_busy``. The
gauges of a replica that is not ready are not read: an empty queue of a dead replica is no relief.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from survive.contracts import Json
from survive.probe.calls import fetch
from survive.tls import trust_run
from survive.transport import Request, Transport

TIMEOUT_US = 900_000  # below a scrape's period

_QUEUE = ("vllm:num_requests_waiting",)
_KV = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
_GPU = ("DCGM_FI_DEV_GPU_UTIL", "simulated_gpu_busy")
_PERCENT = frozenset({"DCGM_FI_DEV_GPU_UTIL"})
_SLEEP = "vllm:engine_sleep_state"
_LINE = re.compile(r"([A-Za-z_:][A-Za-z0-9_:]*)(\{.*\})?\s+(\S+)")


@dataclass(frozen=True, slots=True)
class Scraped:
    """One service whose replicas are looked at. ``metrics`` "" = only whether they are ready."""

    service: str
    health: str
    metrics: str
    addresses: tuple[str, ...]  # host:port, or https://host:port
    tls: str = ""  # folder of a certificate of theirs, if they speak TLS

    def to_json(self) -> dict[str, Json]:
        """Plain data."""
        return {
            "service": self.service,
            "health": self.health,
            "metrics": self.metrics,
            "addresses": [*self.addresses],
            "tls": self.tls,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Scraped:
        """The inverse of to_json."""
        return cls(**{**data, "addresses": tuple(data["addresses"])})


@dataclass(frozen=True, slots=True)
class Gauges:
    """What one ready replica says; None = it does not."""

    queue: float | None = None
    kv: float | None = None
    gpu: float | None = None


async def scrape(transport: Transport, service: Scraped) -> dict[str, float]:
    """The values of one service now; what could not be read is absent."""
    if service.tls:
        trust_run(transport, service.tls)
    found = await asyncio.gather(*(_replica(transport, service, a) for a in service.addresses))
    ready = [gauges for gauges in found if gauges is not None]
    values: dict[str, float] = {"replicas": len(ready)}
    for name in ("gpu", "kv", "queue"):
        told = [value for gauges in ready if (value := getattr(gauges, name)) is not None]
        if told:
            values[name] = round(sum(told) if name == "queue" else sum(told) / len(told), 6)
    return values


async def _replica(transport: Transport, service: Scraped, address: str) -> Gauges | None:
    """None if it is not ready."""
    health = await fetch(transport, address, Request("GET", service.health), TIMEOUT_US)
    if not health.whole or health.status != 200:
        return None
    if not service.metrics:
        return Gauges()
    answer = await fetch(transport, address, Request("GET", service.metrics), TIMEOUT_US)
    if not answer.whole or answer.status != 200:
        return Gauges()
    return parse(answer.body.decode("utf-8", "replace"))


def parse(text: str) -> Gauges | None:
    """The gauges of a Prometheus text; None if it says that its engine sleeps."""
    found: dict[str, list[float]] = {}
    for line in text.splitlines():
        if not line.startswith(("vllm:", "DCGM_FI_DEV_GPU_UTIL", "simulated_gpu_busy")):
            continue
        read = _LINE.match(line)
        value = _number(read[3]) if read else None
        if read is None or value is None:
            continue
        if read[1] == _SLEEP and _sleeps(read[2] or "", value):
            return None
        found.setdefault(read[1], []).append(value)
    return Gauges(_first(found, _QUEUE, sum), _first(found, _KV), _first(found, _GPU))


def _sleeps(labels: str, value: float) -> bool:
    """vLLM has a series for each state, of which awake is one; the reference stack one that says
    1 = asleep."""
    if 'sleep_state="awake"' in labels:
        return value == 0
    return "sleep_state=" not in labels and value != 0


def _first(
    found: Mapping[str, list[float]], names: Sequence[str], join: Any = None
) -> float | None:
    for name in names:
        if values := found.get(name):
            value = float(join(values)) if join else sum(values) / len(values)
            return value / 100 if name in _PERCENT else value
    return None


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if value == value and abs(value) != float("inf") else None
