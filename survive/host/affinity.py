"""``load: {affinity: auto}``: each load worker on a core of its own, all else of the run elsewhere.

survive confines *itself* to the cores that are left before it starts anything, and takes its own
mask back when the run is over. What a run starts inherits that (agent, target, proxy, probes,
children of faults), so nothing of the target can have a load worker's core; only the workers go to
theirs. Never a core outside the mask that survive was started with.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from survive.contracts import Json
from survive.scenario.model import Scenario

_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
_STARTED_BY_OTHERS = {"compose", "external"}  # drivers whose targets inherit nothing from us


@dataclass(frozen=True, slots=True)
class Division:
    """Cores of the load, one a worker, and those of all else; ``why`` nothing is pinned, if so."""

    load: tuple[int, ...] = ()
    rest: tuple[int, ...] = ()
    why: str = ""

    def to_json(self) -> dict[str, Json]:
        """As ``run_ended`` tells it."""
        return {"load": [*self.load], "rest": [*self.rest], "why": self.why}


def division_of(scenario: Scenario, workers: int, expected: int) -> Division | None:
    """What a run does; None if it was not asked for."""
    if scenario.load.affinity != "auto":
        return None
    if scenario.target.driver in _STARTED_BY_OTHERS:
        return Division(why=f"a target of driver {scenario.target.driver} is not started from here")
    if expected:
        return Division(why="the load comes from other machines")
    return divide(workers, os.sched_getaffinity(0), siblings)


def divide(workers: int, cores: Set[int], siblings_of: Callable[[int], Set[int]]) -> Division:
    """The last cores for the load, as interrupts like the first.

    Whole physical cores if there are enough: a busy sibling would slow a worker down, so it stays
    empty.
    """
    physical = sorted({min(siblings_of(core) & cores | {core}) for core in cores})
    units: Sequence[int] = physical if len(physical) > workers else sorted(cores)
    if len(units) <= workers:
        return Division(why=f"{len(cores)} cores do not suffice for {workers} workers and a target")
    load = units[-workers:]
    taken = set(load)
    if units is physical:
        taken = taken.union(*(siblings_of(core) for core in load))
    return Division(tuple(load), tuple(sorted(cores - taken)))


def siblings(core: int) -> set[int]:
    """The hardware threads of its physical core; itself alone if the kernel does not say."""
    try:
        told = Path(_SIBLINGS.format(core)).read_text(encoding="ascii").strip()
        ranges = [part.partition("-") for part in told.split(",")]
        return {n for low, _, high in ranges for n in range(int(low), int(high or low) + 1)}
    except (OSError, ValueError):
        return {core}


@contextlib.contextmanager
def confined(cores: Sequence[int]) -> Iterator[None]:
    """This thread, and whatever it starts, on those cores only; as before afterwards. () = free."""
    before = os.sched_getaffinity(0)
    if cores:
        os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        if cores:
            os.sched_setaffinity(0, before)
