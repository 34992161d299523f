"""The quickstart in a few seconds of its own time: for tests that need any run that survives."""

from __future__ import annotations

_CHANGES = (
    "load.scale=1/1",
    "load.phases=[{name: production, rate: 40/s, for: 14s}]",
    "faults={slow: {kind: network.latency, link: gateway -> inference, with: {latency: 300ms},"
    " at: 3s, for: 4s}}",
    "objectives={answers: {metric: success, min: 50%, during: each fault}}",
    "claims={}",
    "kills={}",
    "stop_if={}",
)
SHORT = tuple(word for change in _CHANGES for word in ("--set", change))
