"""What a run's prober is told: where things are, whose keys there are, what is due when."""

from __future__ import annotations

from pathlib import Path

from survive.address import HTTPS
from survive.chaos.ports import AgentPort
from survive.host.command import RunContext
from survive.host.driver import data_path
from survive.plan.probing import probe_slots, scrape_slots, scraped_services
from survive.probe.engine import Job, Probing, Slots
from survive.probe.scrape import Scraped
from survive.scenario.model import Scenario, Service


async def make_probing(
    context: RunContext, agent: AgentPort, entry: str, scratch: Path
) -> Probing | None:
    """None if nothing asks for it: such a run is as if probes did not exist."""
    scenario = context.scenario
    services = scraped_services(scenario)
    if not scenario.probes and not services:
        return None
    slots = probe_slots(scenario)
    job = Job(
        seed=context.plan.seed,
        entry=entry,
        probes=tuple(Slots(probe, slots[name]) for name, probe in scenario.probes.items()),
        variables=scenario.target.vars,
        keys={"bearer": context.key, **context.identities},
        logs=_logs(scenario, scratch),
        scraped=tuple([await _scraped(service, agent) for service in services]),
        scrapes=scrape_slots(scenario),
    )
    links = {probe.link for probe in scenario.probes.values() if probe.link}
    return Probing(job, {link: await agent.listeners(link) for link in sorted(links)})


def _logs(scenario: Scenario, scratch: Path) -> dict[str, tuple[str, ...]]:
    """The audit log of each replica of the services that a probe names."""
    named = dict.fromkeys(probe.service for probe in scenario.probes.values() if probe.service)
    services = [scenario.target.services[name] for name in named]
    return {
        service.name: tuple(
            str(data_path(scratch, f"{service.name}-{number}") / service.audit_file)
            for number in range(service.replicas)
        )
        for service in services
    }


async def _scraped(service: Service, agent: AgentPort) -> Scraped:
    replicas = await agent.replicas(service.name)
    addresses = tuple(HTTPS + spec.address if spec.tls else spec.address for spec in replicas)
    tls = next((spec.tls for spec in replicas if spec.tls), "")
    return Scraped(service.name, service.health.path, service.metrics, addresses, tls)
