"""The chaos agent: ledger, then inject, then observe; heal, then observe. On both hosts the same.

It believes nobody: not the fault that reports success (it is observed from outside), not the heal
that reports success (the ladder goes on until the fault is seen to be gone).
"""

from __future__ import annotations

import asyncio
import itertools
import signal
import statistics
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from survive.catalog import Catalog
from survive.chaos import processes
from survive.chaos.conductor import PREPARE_AHEAD_US, together
from survive.chaos.executor import Executor
from survive.chaos.handles import by_hand
from survive.chaos.ledger import PROXY, Ledger, LedgerError
from survive.chaos.netns import Namespace
from survive.chaos.permission import refusal
from survive.chaos.ports import Emit
from survive.clock import Clock, seeded, sleep_us
from survive.contracts import (
    OBSERVE_S,
    Active,
    Fault,
    FaultFailedError,
    HandleSpec,
    Injection,
    Json,
    Needs,
    Observation,
    look_s,
)
from survive.errors import HarnessError, RefusedError
from survive.host.driver import Driver
from survive.scenario.model import FaultPlan
from survive.scenario.settings import parse_settings
from survive.units import MS, SECOND, UnitError

BASELINE_LOOKS = 3
LOOK_EVERY_US = 250 * MS
PATIENT_LOOKS = 8  # that overlap at most, of a fault whose looks take longer than 1 s
PROOF_EVERY_US = 100 * MS
HEAL_WITHIN_US = 3 * SECOND  # DESIGN §7, exit 5
HEAL_CONTAINER_WITHIN_US = 10 * SECOND  # the same; docker's own calls may queue
START_WITHIN_US = 10 * SECOND  # of a service that a heal has to start, unless it says itself
STOPPING_START_US = 4 * SECOND  # the same while the run is stopped: 5 s from SIGINT to the end
STOPPING_RUNG_US = 300 * MS  # a later rung while the run is stopped
ONE_SHOT_WITHIN_US = 3 * SECOND  # a one-shot that was not seen by then did not happen
RUNG_S = 3.0


class Rung(StrEnum):
    """The heal ladder, gentlest first."""

    UNDO = "undo"  # the fault's own heal
    DISABLE = "disable"  # by the kind of handle, without the fault
    KILL = "kill"  # of the thing that carries the effect, which is ours


@dataclass(slots=True)
class _Hit:
    """One injection, and what is known of it."""

    injection: Injection
    before: float | None = None
    looking: asyncio.Task[None] | None = None
    again: int = 0  # times that it was injected once more
    owed: bool = False  # its victim was restarted and is not hit yet


@dataclass(slots=True)
class _Life:
    """One fault from prepare to heal."""

    plan: FaultPlan
    fault: Fault
    hits: list[_Hit]
    injecting: asyncio.Task[None] | None = None
    rolling: asyncio.Task[None] | None = None
    healing: asyncio.Task[None] | None = None


class Agent:
    """See survive.chaos.ports.AgentPort. ``seed`` chooses the victims.

    ``privileged``: faults that need privileges may be used (see survive.chaos.permission).

    ``standby``: how many replicas of a service, the last ones, may sleep; faults draw them last.
    ``start_within_us``: how long each service may take to start (its ``health.within``); bounds
    the heal of a fault that kept one down. ``sweep`` ends what else the run started, after the
    target, and tells whether nothing is left.
    """

    def __init__(
        self,
        run_id: str,
        catalog: Catalog,
        ledger: Ledger,
        driver: Driver,
        executor: Executor,
        clock: Clock,
        emit: Emit,
        *,
        seed: int = 0,
        privileged: bool = False,
        start_within_us: Mapping[str, int] | None = None,
        standby: Mapping[str, int] | None = None,
        sweep: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        self._run_id = run_id
        self._catalog = catalog
        self._ledger = ledger
        self._driver = driver
        self._executor = executor
        self._clock = clock
        self._emit = emit
        self._seed = seed
        self._privileged = privileged
        self._start_within_us = dict(start_within_us or {})
        self._standby = dict(standby or {})
        self._sweep = sweep
        self._faults: dict[str, Fault] = {}
        self._lives: dict[str, _Life] = {}
        self._unproven: list[dict[str, Any]] = []
        self._stopping: asyncio.Task[list[dict[str, Any]]] | None = None

    # -------------------------------------------------------------------- target and helpers

    async def start_target(self) -> str:
        """See AgentPort."""
        await self._driver.start()
        return self._driver.entry()

    async def replicas(self, service: str) -> list[HandleSpec]:
        """See AgentPort."""
        return list(self._driver.replicas(service))

    async def listeners(self, link: str) -> list[HandleSpec]:
        """See AgentPort."""
        return list(self._driver.listeners(link))

    async def spawn(self, name: str, argv: list[str], fds: list[int]) -> int:
        """Only the real host has processes; its agent process overrides this."""
        raise HarnessError(f"this host starts no process {name!r}")

    async def usage(self) -> dict[str, float]:
        """See AgentPort."""
        return {"target": self._driver.cpu_s(), "chaos": self._executor.cpu_s()}

    # -------------------------------------------------------------------- before

    async def preflight(self, fault: FaultPlan) -> int:
        """See AgentPort. Raises RefusedError, UsageError for an unknown kind."""
        injections = len(self._resolve(fault))
        if fault.at_us < PREPARE_AHEAD_US:  # its own time would not do on a loaded machine
            self._executor.expect(injections)
        return injections

    def _fault(self, kind: str) -> Fault:
        if kind not in self._faults:
            self._faults[kind] = self._catalog.fault(kind)
        return self._faults[kind]

    def _resolve(self, plan: FaultPlan) -> list[Injection]:
        """What will be hit. Changes nothing."""
        fault = self._fault(plan.kind)
        if fault.privileges and not self._privileged:
            what = f"fault {plan.name!r} ({plan.kind})"
            raise refusal(what, fault.privileges)
        try:
            settings = parse_settings(fault.settings, plan.settings)
        except (UnitError, ValueError) as error:
            raise RefusedError(f"fault {plan.name!r}: {error}") from error
        chosen = fault.preflight(settings, self._candidates(plan, fault))
        if not chosen:
            where = plan.link or plan.service
            raise RefusedError(
                f"fault {plan.name!r} ({plan.kind}) matches nothing of {where!r} here",
                hint="a fault that hits nothing would prove nothing",
            )
        return [
            Injection(
                f"{plan.name}#{number}",
                plan.name,
                plan.kind,
                {**plan.settings, **_remembered(fault, settings, victim)},
                victim,
                plan.at_us,
                plan.until_us,
            )
            for number, victim in enumerate(chosen, 1)
        ]

    def _candidates(self, plan: FaultPlan, fault: Fault) -> list[HandleSpec]:
        """Every listener of a link; of replicas as many as asked, drawn by the seed."""
        if fault.needs is Needs.TARGET:
            whole = HandleSpec("target", "target", 0, self._driver.entry())
            self._driver.open(whole, Needs.TARGET)  # refuses where there is nothing real to reach
            return [whole]
        if fault.needs is Needs.LINK:
            # In a namespace there are no proxies, and rules are for a target's own namespace only.
            listeners = self._listeners(plan)
            chosen = [spec for spec in listeners if bool(spec.netns) is bool(fault.privileges)]
            if listeners and not chosen and not fault.privileges:
                raise RefusedError(
                    f"fault {plan.name!r} ({plan.kind}) needs a fault proxy on {plan.link!r}",
                    hint="an isolated target has none; network.drop, reject and loss act there",
                )
            return chosen
        replicas = sorted(self._driver.replicas(plan.service), key=lambda spec: spec.replica)
        if _rolls(fault):
            return replicas
        seeded(self._seed, plan.name).shuffle(replicas)
        # Spares last: a fault on who sleeps would hit nobody.
        awake = len(replicas) - self._standby.get(plan.service, 0)
        replicas.sort(key=lambda spec: spec.replica >= awake)
        return sorted(replicas[: plan.count], key=lambda spec: spec.replica)

    async def prepare(self, fault: FaultPlan) -> None:
        """See AgentPort. Looks that do not say *no* are evidence for the judge, not an error."""
        life = _Life(fault, self._fault(fault.kind), [_Hit(i) for i in self._resolve(fault)])
        self._lives[fault.name] = life
        await asyncio.gather(*(self._baseline(hit) for hit in life.hits))

    async def _baseline(self, hit: _Hit) -> None:
        began_us = self._clock.now_us()
        try:
            await self._executor.prepare(hit.injection)
        except FaultFailedError as error:
            self._show(hit, "before", Observation(Active.UNKNOWN, str(error)), began_us)
            return
        looks = [await self._look(hit, "before") for _ in range(BASELINE_LOOKS)]
        values = [look.value for look in looks if look.value is not None]
        hit.before = statistics.median(values) if values else None

    async def _look(self, hit: _Hit, stage: str, within_s: float = OBSERVE_S) -> Observation:
        began_us = self._clock.now_us()
        seen = await self._executor.observe(hit.injection, hit.before, within_s)
        self._show(hit, stage, seen, began_us)
        return seen

    def _show(self, hit: _Hit, stage: str, seen: Observation, began_us: int) -> None:
        self._tell(
            "fault_observed",
            hit,
            stage=stage,
            active=str(seen.active),
            evidence=seen.evidence,
            value=seen.value,
            began_us=began_us,
        )

    def _tell(self, name: str, hit: _Hit, **fields: Any) -> None:
        self._emit(name, {"fault": hit.injection.fault, "injection": hit.injection.id, **fields})

    # -------------------------------------------------------------------- inject

    async def inject(self, name: str) -> None:
        """See AgentPort. Raises LedgerError, and then nothing was done."""
        life = self._lives[name]
        if self._stopping is not None or life.injecting is not None:
            return
        life.injecting = asyncio.create_task(self._inject(life))
        await _outcome(life.injecting)

    async def _inject(self, life: _Life) -> None:
        for hit in life.hits:
            hit.injection = hit.injection.aimed_at(self._now(life, hit.injection.handle))
        self._ledger.inject([hit.injection for hit in life.hits])
        if life.fault.keeps_down:
            for hit in life.hits:
                self._driver.hold(hit.injection.handle)
        at_once = life.hits[:1] if _rolls(life.fault) else life.hits
        await asyncio.gather(*(self._inject_one(hit) for hit in at_once))
        for hit in at_once:
            hit.looking = asyncio.create_task(self._watch(life, hit))
        if len(at_once) < len(life.hits):
            life.rolling = asyncio.create_task(self._roll(life))

    async def _roll(self, life: _Life) -> None:
        """Each other victim once its forerunner is back, and after the fault's ``pause``.

        If one does not come back the roll ends there, as an orchestrator's does.
        """
        settings: Any = parse_settings(life.fault.settings, life.plan.settings)
        for number, (former, hit) in enumerate(itertools.pairwise(life.hits), 1):
            if not await self._came_back(life, former):
                name = former.injection.handle.replica_id
                for left in life.hits[number:]:
                    self._tell_injected(left, self._clock.now_us(), f"{name} did not come back")
                return
            await sleep_us(self._clock, settings.pause)
            aimed = hit.injection.aimed_at(self._now(life, hit.injection.handle))
            hit.injection = replace(aimed, at_us=self._clock.now_us())
            self._ledger.inject([hit.injection])
            await self._inject_one(hit)
            hit.looking = asyncio.create_task(self._watch(life, hit))

    async def _came_back(self, life: _Life, hit: _Hit) -> bool:
        """A successor of its victim answers, within the time that its service may take."""
        old = hit.injection.handle
        within_us = self._start_within_us.get(old.service, START_WITHIN_US)
        give_up_us = self._clock.now_us() + ONE_SHOT_WITHIN_US + within_us
        while self._clock.now_us() < give_up_us:
            now = self._now(life, old)
            if not _same(now, old) and await self._executor.round_trip(hit.injection.aimed_at(now)):
                return True
            await sleep_us(self._clock, PROOF_EVERY_US)
        return False

    def _now(self, life: _Life, spec: HandleSpec) -> HandleSpec:
        """The same thing as it is now: a replica may have restarted since it was chosen."""
        if life.fault.needs is Needs.TARGET:
            return spec
        known = (
            self._listeners(life.plan)
            if life.fault.needs is Needs.LINK
            else self._driver.replicas(life.plan.service)
        )
        which = (spec.link, spec.replica)
        return next((now for now in known if (now.link, now.replica) == which), spec)

    def _listeners(self, plan: FaultPlan) -> list[HandleSpec]:
        return [spec for link in plan.links for spec in self._driver.listeners(link)]

    async def _inject_one(self, hit: _Hit) -> None:
        began_us, error = self._clock.now_us(), None
        try:
            await self._executor.inject(hit.injection)
        except FaultFailedError as failed:
            error = str(failed)
        except asyncio.CancelledError:
            error = "cut short by its heal"
            raise
        finally:
            self._tell_injected(hit, began_us, error)

    def _tell_injected(self, hit: _Hit, began_us: int, error: str | None) -> None:
        spec = hit.injection.handle
        self._tell(
            "fault_injected",
            hit,
            planned_us=hit.injection.at_us,
            began_us=began_us,
            ended_us=self._clock.now_us(),
            error=error,
            target=f"{spec.link} #{spec.replica}" if spec.link else spec.replica_id,
        )

    async def _watch(self, life: _Life, hit: _Hit) -> None:
        """Look four times a second until healed; at a one-shot until it was seen, or 3 s."""
        if (within_s := look_s(life.fault, hit.injection.settings)) > OBSERVE_S:
            return await self._watch_patiently(hit, round(within_s * SECOND))
        give_up_us = self._clock.now_us() + ONE_SHOT_WITHIN_US
        while life.fault.held or self._clock.now_us() < give_up_us:
            began_us = self._clock.now_us()
            if _follows(life.fault):
                await self._follow(life, hit)
            seen = await self._executor.observe(hit.injection, hit.before)
            if _follows(life.fault) and seen.active is Active.NO:
                seen = await self._of_the_living(hit, seen)
            self._show(hit, "during", seen, began_us)
            if not life.fault.held and seen.active is Active.YES:
                return None
            await self._clock.sleep_until(began_us + LOOK_EVERY_US)
        return None

    async def _watch_patiently(self, hit: _Hit, within_us: int) -> None:
        """Looks that take so long overlap: else the last moments of the fault had no witness."""
        turns = min(PATIENT_LOOKS, -(-within_us // LOOK_EVERY_US))
        began_us = self._clock.now_us()

        async def turn(number: int) -> None:
            next_us = began_us + number * within_us // turns
            while True:
                await self._clock.sleep_until(next_us)
                await self._look(hit, "during", within_us / SECOND)
                next_us += within_us

        await together([turn(number) for number in range(turns)])

    async def _follow(self, life: _Life, hit: _Hit) -> None:
        """A held fault stays with its victim: one that was restarted meanwhile is hit again."""
        now = self._now(life, hit.injection.handle)
        if not _same(now, hit.injection.handle):
            aimed = hit.injection.aimed_at(now)
            if not await self._executor.round_trip(aimed):
                return  # hit while it starts, it would never be seen to live
            self._ledger.inject([aimed])
            hit.injection, hit.owed = aimed, True
        if not hit.owed:
            return
        began_us, error = self._clock.now_us(), None
        try:
            await self._executor.inject(hit.injection)
            hit.owed = False
        except FaultFailedError as failed:  # it may not listen yet: tried again at the next look
            error = str(failed)
        hit.again += not hit.owed
        self._tell(
            "fault_reinjected",
            hit,
            count=hit.again,
            began_us=began_us,
            ended_us=self._clock.now_us(),
            error=error,
            target=now.replica_id,
        )

    async def _of_the_living(self, hit: _Hit, seen: Observation) -> Observation:
        """What was seen says nothing of a fault whose victim is gone and not yet replaced."""
        victim: Any = self._driver.open(hit.injection.handle, Needs.REPLICA)
        if await victim.exists():
            return seen
        evidence = f"{seen.evidence}; its victim is gone, and is hit again once restarted"
        return replace(seen, active=Active.UNKNOWN, evidence=evidence)

    # -------------------------------------------------------------------- heal

    async def heal(self, name: str) -> None:
        """See AgentPort. Of a fault that was never begun: nothing to do. Idempotent."""
        life = self._lives.get(name)
        if life is None or life.injecting is None:
            return
        if life.healing is None:
            life.healing = asyncio.create_task(self._heal(life))
        await _outcome(life.healing)

    async def _heal(self, life: _Life) -> None:
        await _cancelled([life.injecting] if life.injecting else [])
        broken = await _cancelled([life.rolling] if life.rolling else [])
        broken += await _cancelled([hit.looking for hit in life.hits if hit.looking is not None])
        if life.fault.held:
            await asyncio.gather(*(self._heal_one(life, hit) for hit in life.hits))
        for error in broken:  # a bug of ours; it waits until the fault is off
            raise error

    async def _heal_one(self, life: _Life, hit: _Hit) -> None:
        """Up the ladder until it is seen to be gone."""
        began_us = self._clock.now_us()
        gone, evidence, rung = False, "", Rung.UNDO
        for rung in Rung:
            await self._mend(life, hit, rung)
            counted_us = began_us if rung is Rung.UNDO else self._clock.now_us()
            gone, evidence = await self._proof(life, hit, rung, counted_us)
            if gone:
                break
        took_us = self._clock.now_us() - began_us
        own = gone and rung is Rung.UNDO and took_us <= self._within_us(life, hit, rung)
        self._note_healed(hit, gone, rung)
        line = "" if gone else by_hand(hit.injection)
        self._tell(
            "heal_proven", hit, proven=gone, by_own_heal=own, evidence=evidence, by_hand=line
        )
        if not own:
            self._unproven.append(
                {
                    "fault": hit.injection.fault,
                    "injection": hit.injection.id,
                    "by_hand": line,
                    "why": _why(gone, rung, took_us, evidence),
                }
            )

    def _within_us(self, life: _Life, hit: _Hit, rung: Rung) -> int:
        """A fault that kept a service down is healed when that has started again.

        While the run is being stopped the target ends next, so nobody waits long for it.
        """
        if self._stopping is not None and rung is not Rung.UNDO:
            return STOPPING_RUNG_US
        if not life.fault.keeps_down or rung is not Rung.UNDO:
            patient = hit.injection.handle.container and self._stopping is None
            return HEAL_CONTAINER_WITHIN_US if patient else HEAL_WITHIN_US
        if self._stopping is not None:
            return STOPPING_START_US
        service = hit.injection.handle.service
        return max(HEAL_WITHIN_US, self._start_within_us.get(service, START_WITHIN_US))

    async def _mend(self, life: _Life, hit: _Hit, rung: Rung) -> None:
        began_us, error = self._clock.now_us(), None
        try:
            async with asyncio.timeout(RUNG_S + 0.5):  # the executor has its own 3 s
                await self._step(life, hit, rung)
        except (FaultFailedError, OSError) as failed:
            error = str(failed) or type(failed).__name__
        if life.fault.keeps_down:
            self._driver.release(self._now(life, hit.injection.handle))
        self._tell(
            "fault_healed",
            hit,
            planned_us=hit.injection.until_us,
            began_us=began_us,
            ended_us=self._clock.now_us(),
            rung=str(rung),
            error=error,
        )

    async def _step(self, life: _Life, hit: _Hit, rung: Rung) -> None:
        """One rung, bounded by the caller. Raises FaultFailedError."""
        spec, needs = hit.injection.handle, life.fault.needs
        if rung is Rung.UNDO or (rung is Rung.DISABLE and needs is Needs.TARGET):
            await self._executor.heal(hit.injection)  # of a target as a whole: once more
        elif rung is Rung.DISABLE:
            await disable(self._driver, hit.injection, needs)
        elif in_namespace(hit.injection):
            Namespace(spec.netns).end()
        elif needs is Needs.LINK and spec.lent:
            from survive.chaos.lent import clean  # its library is slow to import

            await clean(self._run_id, spec.proxy)  # the run's own proxies: the server is not ours
        elif needs is Needs.LINK:
            self._kill_proxies()
        elif needs is Needs.TARGET:
            raise FaultFailedError("nothing of ours carries it that could be ended")
        else:
            replica: Any = self._driver.open(self._now(life, spec), Needs.REPLICA)
            await replica.kill()

    def _kill_proxies(self) -> None:
        """The last resort for a link: its traffic ends with the fault."""
        for name, process in self._ledger.started:
            if name == PROXY:
                processes.send(process.pid, process.start_time, signal.SIGKILL)

    async def _proof(self, life: _Life, hit: _Hit, rung: Rung, began_us: int) -> tuple[bool, str]:
        """Seen to be gone, with a positive round trip, in time; and the last evidence.

        Of a victim that died under it and was restarted, its successor shows that.
        """
        while True:
            if _follows(life.fault):
                hit.injection = hit.injection.aimed_at(self._now(life, hit.injection.handle))
            seen = await self._look(hit, "after")
            if seen.active is Active.NO and await self._executor.round_trip(hit.injection):
                return True, seen.evidence
            if self._clock.now_us() - began_us >= self._within_us(life, hit, rung):
                no_answer = "; no round trip" if seen.active is Active.NO else ""
                return False, seen.evidence + no_answer
            await sleep_us(self._clock, PROOF_EVERY_US)

    def _note_healed(self, hit: _Hit, proven: bool, rung: Rung) -> None:
        """For whoever reads the ledger later: without it they heal once more, which is harmless."""
        try:
            self._ledger.healed(hit.injection.id, proven=proven, rung=str(rung))
        except LedgerError:
            pass  # a full disk must not stop a heal; healing twice is legal

    # -------------------------------------------------------------------- the end

    async def stop(self) -> list[dict[str, Any]]:
        """See AgentPort."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop())
        return await asyncio.shield(self._stopping)

    async def _stop(self) -> list[dict[str, Any]]:
        """Everything is ended whatever goes wrong on the way; the first error is raised last."""
        heals = (self.heal(name) for name in self._lives)
        errors = _errors(await asyncio.gather(*heals, return_exceptions=True))
        swept = True
        for step in (self._executor.close, self._driver.stop):
            errors += _errors([*await asyncio.gather(step(), return_exceptions=True)])
        if self._sweep is not None:
            swept = await self._sweep()
        self._explain_the_gone()
        by_hand_left = any(entry["by_hand"] for entry in self._unproven)
        try:
            self._ledger.ended(clean=swept and not errors and not by_hand_left)
        except LedgerError as error:
            errors.append(error)
        self._ledger.close()
        for failure in errors:
            raise failure
        return list(self._unproven)

    def _explain_the_gone(self) -> None:
        """What went with the target needs no hand any more, yet its heal stays unproven."""
        hits = {hit.injection.id: hit for life in self._lives.values() for hit in life.hits}
        for entry in self._unproven:
            stays = _outlives(self._lives[entry["fault"]].fault)
            if entry["by_hand"] and self._went(hits[entry["injection"]].injection) and not stays:
                entry.update(by_hand="", why=entry["why"] + "; went with the target")

    def _went(self, injection: Injection) -> bool:
        """What carried it was the run's own, and is gone."""
        spec = injection.handle
        if in_namespace(injection):
            return not Namespace(spec.netns).alive()
        if spec.proxy and not spec.lent:
            return not any(who.alive() for name, who in self._ledger.started if name == PROXY)
        return bool(spec.pid) and not processes.exists(spec.pid, spec.start_time)


def in_namespace(injection: Injection) -> bool:
    """Its effect is of the namespace that the thing lives in, not of the thing's process."""
    return bool(injection.handle.netns) and injection.kind.startswith("network.")


def _rolls(fault: Fault) -> bool:
    """It hits every replica of its service, one after another (``rolling``, optional)."""
    return bool(getattr(fault, "rolling", False))


def _follows(fault: Fault) -> bool:
    """It sits in the very process that it hit, and ends with it."""
    inside = {Needs.REPLICA, Needs.GPU, Needs.STAND_IN}
    return fault.held and not fault.keeps_down and fault.needs in inside


def _remembered(fault: Fault, settings: object, victim: HandleSpec) -> dict[str, Json]:
    """What its heal will have to give back (``remember``, optional): so the ledger has it first."""
    ask: Callable[[object, HandleSpec], dict[str, Json]] | None = getattr(fault, "remember", None)
    return {} if ask is None else ask(settings, victim)


def _outlives(fault: Fault) -> bool:
    """Something of it stays behind a dead victim."""
    return bool(getattr(fault, "outlives_victim", False))


def _same(one: HandleSpec, other: HandleSpec) -> bool:
    """The same boot of a replica."""
    return (one.pid, one.start_time) == (other.pid, other.start_time)


async def disable(driver: Driver, injection: Injection, needs: Needs) -> None:
    """The ladder's second rung: undo by the kind of handle. Raises FaultFailedError."""
    spec = injection.handle
    if in_namespace(injection):
        await Namespace(spec.netns).clear(f"sv-{injection.id}")
        return
    handle: Any = driver.open(spec, needs)
    if needs in {Needs.GPU, Needs.STAND_IN}:
        await handle.reset()
    elif needs is Needs.REPLICA and spec.container:
        await handle.restore()
    elif needs is Needs.REPLICA and spec.driver == "virtual":
        await handle.resume()
    elif needs is Needs.REPLICA:
        await handle.restore(injection.id)
    elif spec.driver == "virtual":
        for name in (f"sv-{injection.id}", f"sv-{injection.id}-up"):  # one for each way
            await handle.remove(name)
        await handle.enable(True)
    else:
        from survive.chaos.toxiproxy import reset_proxy  # its library is slow to import

        await reset_proxy(spec.proxy, spec.proxy_name)


async def _outcome(task: asyncio.Task[None]) -> None:
    """Wait for a task that others wait for too; cancelled by someone else = it is over."""
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()


async def _cancelled(tasks: list[asyncio.Task[None]]) -> list[BaseException]:
    """End tasks that may still run; what those raised that had ended before."""
    for task in tasks:
        task.cancel()
    return _errors(await asyncio.gather(*tasks, return_exceptions=True))


def _errors(results: list[Any]) -> list[BaseException]:
    return [
        result
        for result in results
        if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError)
    ]


def _why(gone: bool, rung: Rung, took_us: int, evidence: str) -> str:
    """Why a heal is not proven by itself."""
    if not gone:
        return f"still there after every rung of the heal ladder: {evidence}"
    if rung is Rung.UNDO:
        return f"gone only {took_us / SECOND:.1f} s after its heal began"
    return f"its own heal did not end it; the rung {str(rung)!r} did"
