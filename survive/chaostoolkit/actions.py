"""Actions of an experiment: survive's faults, proven.

``{"type": "python", "module": "survive.chaostoolkit.actions", "func": "inject_fault"}``
"""

from __future__ import annotations

from typing import Any

from survive.chaostoolkit.held import experiment
from survive.contracts import FaultFailedError
from survive.errors import SurviveError

__all__ = ["heal_fault", "inject_fault"]


def inject_fault(
    kind: str, at: dict[str, Any], settings: dict[str, Any] | None = None, name: str = ""
) -> dict[str, Any]:
    """Break something with one of survive's faults and see that it is broken.

    `kind` is one of `survive faults`, `settings` are its settings. `at` says where: of faults on
    processes `address` and `pid`; of faults on links `address` (the service), `via` (the listener
    in front of it), `proxy` (the API) and `proxy_name` of a Toxiproxy server. `name` is what
    `heal_fault` and `fault_active` call it, by default its kind.
    """
    try:
        evidence = experiment.inject(name or kind, kind, at, settings or {})
    except (FaultFailedError, SurviveError) as error:
        raise _failed(error) from error
    return {"fault": name or kind, "kind": kind, "evidence": evidence}


def heal_fault(name: str) -> str:
    """Mend a fault and see that it is gone. Nothing to do if it was healed or never begun."""
    try:
        return experiment.heal(name)
    except FaultFailedError as error:
        raise _failed(error) from error


def _failed(error: Exception) -> Exception:
    from chaoslib.exceptions import ActivityFailed

    failed: Exception = ActivityFailed(str(error))
    return failed
