"""For users of Chaos Toolkit: our faults from ``chaos run``, their experiments as scenarios.

An experiment names ``survive.chaostoolkit.actions``, ``.probes`` and, always, the control
``survive.chaostoolkit.control``: Chaos Toolkit plays no rollbacks on an interrupt, but its controls
run.
"""

from __future__ import annotations

from typing import Any


def discover(discover_system: bool = True) -> dict[str, Any]:
    """What ``chaos discover`` shows (chaoslib.discovery's contract)."""
    from chaoslib.discovery import discover_actions, discover_probes, initialize_discovery_result

    from survive import __version__

    found: dict[str, Any] = initialize_discovery_result("survive", __version__, "survive")
    found["activities"].extend(discover_actions("survive.chaostoolkit.actions"))
    found["activities"].extend(discover_probes("survive.chaostoolkit.probes"))
    return found
