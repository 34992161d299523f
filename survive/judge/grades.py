"""How real a run was: the lowest grade of its faults and of its target (DESIGN §9.5)."""

from __future__ import annotations

from collections.abc import Iterator

from survive.catalog import Catalog
from survive.contracts import Grade
from survive.errors import UsageError
from survive.record.events import EventName
from survive.record.reader import Record
from survive.scenario.model import Scenario


def fault_grades(record: Record, scenario: Scenario) -> dict[str, Grade]:
    """Fault → grade: as ``run_started`` tells (``grades``), else of the built-in kind.

    A kind that neither knows counts as simulated: nothing is claimed that was not shown.
    """
    if _virtual(record):
        return dict.fromkeys(scenario.faults, Grade.SIMULATED)
    told: dict[str, object] = {}
    for event in record.named(EventName.RUN_STARTED):
        grades = event.fields.get("grades")
        told.update(grades if isinstance(grades, dict) else {})
    return {
        name: _known(told[name]) if name in told else _built_in(fault.kind)
        for name, fault in scenario.faults.items()
    }


def _known(grade: object) -> Grade:
    return next((known for known in Grade if known == grade), Grade.SIMULATED)


def _built_in(kind: str) -> Grade:
    try:
        return Catalog(plugins=False).fault(kind).grade
    except UsageError:
        return Grade.SIMULATED


def ungraded(record: Record, found: Grade) -> Iterator[str]:
    """Why the run is less real than `--require-grade` asked for, if it is."""
    asked = asked_of(record, "require_grade")
    wanted = next((grade for grade in Grade if grade == asked), None)
    if asked and (wanted is None or found.rank > wanted.rank):
        yield f"its grade is {found}, and {asked} is required (--require-grade)"


def asked_of(record: Record, option: str) -> str:
    """What the command line asked the judge for: recorded, so that judging again repeats it."""
    return next((e.text(option) for e in record.named(EventName.RUN_STARTED)), "")


def _virtual(record: Record) -> bool:
    return any(e.fields.get("host") == "virtual" for e in record.named(EventName.RUN_STARTED))


def lowest(record: Record, scenario: Scenario, grades: dict[str, Grade]) -> Grade:
    """Of all faults and of the target: a simulated GPU or a virtual host makes it simulated."""
    services = scenario.target.services.values()
    stand_in = _virtual(record) or any(service.gpu == "simulated" for service in services)
    target = Grade.SIMULATED if stand_in else Grade.REAL
    return max([target, *grades.values()], key=lambda grade: grade.rank)
