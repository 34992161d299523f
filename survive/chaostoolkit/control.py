"""The control that ends every fault with its experiment, however that ends.

Name it in ``controls`` of the experiment. Rollbacks are not played on an interrupt; this is.
It also says ``deviated`` (exit 1) of an experiment whose fault was not proven on, or not proven
gone: Chaos Toolkit itself would call it completed.
"""

from __future__ import annotations

from typing import Any

from survive.chaostoolkit.held import experiment


def configure_control(experiment: Any = None, configuration: Any = None, secrets: Any = None,
                      settings: Any = None) -> None:  # fmt: skip
    """Nothing to set up; its presence shows that the control was found."""


def after_experiment_control(context: Any, state: Any, configuration: Any = None,
                             secrets: Any = None) -> None:  # fmt: skip
    """Heal what is still on; tell the journal what did not do its work."""
    left = experiment.heal_all()
    wrong = [*experiment.failed, *left]
    if wrong and isinstance(state, dict):
        state["deviated"] = True
        state["survive"] = wrong


def cleanup_control() -> None:
    """The last word."""
    experiment.close()
