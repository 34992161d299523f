"""Probes of an experiment: whether a fault of survive bites."""

from __future__ import annotations

from survive.chaostoolkit.held import experiment
from survive.contracts import Active
from survive.errors import SurviveError

__all__ = ["fault_active", "fault_evidence"]


def fault_active(name: str) -> bool:
    """Whether a fault is seen to be on, from outside. Fails if that cannot be told."""
    from chaoslib.exceptions import ActivityFailed

    try:
        seen = experiment.active(name)
    except SurviveError as error:
        raise ActivityFailed(str(error)) from error
    if seen.active is Active.UNKNOWN:
        raise ActivityFailed(seen.evidence)
    return seen.active is Active.YES


def fault_evidence(name: str) -> str:
    """What was seen of a fault, in words."""
    from chaoslib.exceptions import ActivityFailed

    try:
        return experiment.active(name).evidence
    except SurviveError as error:
        raise ActivityFailed(str(error)) from error


def not_written_yet() -> bool:
    """What `survive import` puts where an experiment proves nothing: it always fails."""
    from chaoslib.exceptions import ActivityFailed

    raise ActivityFailed("no probe says yet whether this fault is on: write one for `verify:`")
