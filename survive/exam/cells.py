"""The three cells of a claim: a scenario as it is run with and without weakness and fault. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from survive.contracts import Json
from survive.scenario.model import Scenario
from survive.scenario.variants import calm

HEALTHY = ""  # no weakness


class Weather(StrEnum):
    """Whether the scenario's faults come."""

    FAULT = "fault"
    CALM = "calm"


@dataclass(frozen=True, slots=True)
class Claim:
    """A scenario says that this weakness breaks this objective."""

    scenario: str
    weakness: str
    objective: str


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of the exam. ``weakness`` "" = the healthy stack."""

    scenario: str
    weakness: str
    weather: Weather
    seed: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run of the exam showed. ``failed``: names of the objectives with a failed cell."""

    cell: Cell
    host: str  # virtual | real
    verdict: str  # survived | failed | inconclusive | error
    exit_code: int
    failed: tuple[str, ...]
    reasons: tuple[str, ...]  # the first few
    wall_s: float
    cpu_s: float
    at: str  # UTC

    def to_json(self) -> dict[str, Json]:
        """A line of results.ndjson, but for its key."""
        plain = asdict(self)
        return {**plain.pop("cell"), **plain}

    @classmethod
    def of_json(cls, line: Mapping[str, Any]) -> Outcome:
        """Back again. Raises KeyError, ValueError or TypeError for another kind of line."""
        cell = Cell(
            str(line["scenario"]), str(line["weakness"]), Weather(line["weather"]), line["seed"]
        )
        return cls(
            cell=cell,
            host=str(line["host"]),
            verdict=str(line["verdict"]),
            exit_code=int(line["exit_code"]),
            failed=tuple(line["failed"]),
            reasons=tuple(line["reasons"]),
            wall_s=float(line["wall_s"]),
            cpu_s=float(line["cpu_s"]),
            at=str(line["at"]),
        )


def cells_of(claim: Claim, seeds: range) -> Iterator[Cell]:
    """Healthy and fault, weak and calm, weak and fault, for each seed."""
    for seed in seeds:
        yield Cell(claim.scenario, HEALTHY, Weather.FAULT, seed)
        yield Cell(claim.scenario, claim.weakness, Weather.CALM, seed)
        yield Cell(claim.scenario, claim.weakness, Weather.FAULT, seed)


def variant(scenario: Scenario, cell: Cell) -> Scenario:
    """The scenario of a cell; what is written of it says the same as what is run.

    Raises ValueError if calm weather leaves no objective: a run that judges nothing proves nothing.
    """
    found = _planted(scenario, cell)
    return calm(found) if cell.weather is Weather.CALM else found


def _planted(scenario: Scenario, cell: Cell) -> Scenario:
    weaknesses = (cell.weakness,) if cell.weakness else ()
    return replace(
        scenario,
        seed=cell.seed,
        target=replace(scenario.target, weaknesses=weaknesses),
        raw={**scenario.raw, "seed": cell.seed},
        raw_target={**scenario.raw_target, "weaknesses": list(weaknesses)},
    )
