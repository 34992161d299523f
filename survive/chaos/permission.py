"""What needs root needs two yeses: the target file's and the command line's. Default-deny.

Two, because they are two people's: who owns the target says what may be done to it, who starts the
run says that it may be done on this host, now.
"""

from __future__ import annotations

from collections.abc import Callable

from survive.contracts import Fault
from survive.errors import RefusedError
from survive.scenario.model import Scenario

FLAG = "--allow-privileged"
NAMESPACES = "root: it makes network namespaces and one veth pair on this host"


def permitted(
    scenario: Scenario, fault_of: Callable[[str], Fault], *, flagged: bool, virtual: bool
) -> bool:
    """Whether this run may use privileges. Raises RefusedError if it needs them and may not.

    ``fault_of`` finds a fault by its kind. A virtual target makes no namespaces.
    """
    target = scenario.target
    needs = [
        (f"fault {plan.name!r} ({plan.kind})", fault_of(plan.kind).privileges)
        for plan in scenario.faults.values()
    ]
    if target.isolation and not virtual:
        needs.insert(0, (f"isolation {target.isolation!r} of target {target.name!r}", NAMESPACES))
    may = target.allow_privileged and flagged
    for what, privileges in needs:
        if privileges and not may:
            raise refusal(what, privileges, target.name, target.allow_privileged, flagged)
    return may


def refusal(
    what: str, privileges: str, target: str = "", allowed: bool = False, flagged: bool = False
) -> RefusedError:
    """Says what is missing, of the two yeses."""
    where = f"target {target!r}" if target else "the target file"
    steps = [] if allowed else [f"write `privileged: true` under `allow:` of {where}"]
    steps += [] if flagged else [f"run with {FLAG}"]
    return RefusedError(
        f"{what} needs {privileges}; this run may not use privileges", hint=", and ".join(steps)
    )
