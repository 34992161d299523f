"""When probes are due. Pure: the judge counts findings against it, the prober keeps it."""

from __future__ import annotations

from collections.abc import Mapping

from survive.scenario.model import GAUGES, Metric, Scenario, Service
from survive.units import SECOND

SCRAPE_EVERY_US = SECOND
_SCRAPED = GAUGES | {Metric.COST, Metric.SCALE_UP}


def probe_slots(scenario: Scenario) -> Mapping[str, range]:
    """The intended start of every probing, by probe, µs of the run.

    Probes are shifted against each other by parts of their own period, so that they do not call
    together for as long as the run lasts. A slot that is kept is one finding.
    """
    count = len(scenario.probes)
    return {
        probe.name: range(
            (2 * number + 1) * probe.every_us // (2 * count), scenario.load.end_us, probe.every_us
        )
        for number, probe in enumerate(scenario.probes.values())
    }


def scraped_services(scenario: Scenario) -> tuple[Service, ...]:
    """Whose metrics are read: none unless something asks for them, or probes run anyway."""
    asked = any(o.metric in _SCRAPED for o in scenario.objectives.values())
    if not asked and not scenario.probes:
        return ()
    target = scenario.target
    gauges = (o for o in scenario.objectives.values() if o.metric in GAUGES)
    named = {*target.prices, *(service for objective in gauges for service in objective.of)}
    return tuple(s for s in target.services.values() if s.metrics or s.name in named)


def scrape_slots(scenario: Scenario) -> range:
    """The intended start of every scrape of each scraped service."""
    return range(SCRAPE_EVERY_US // 4, scenario.load.end_us, SCRAPE_EVERY_US)
