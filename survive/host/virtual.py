"""The virtual host: the whole run in one event loop whose time is a counter.

The same plan, conductor, agent, faults, record and judge as a real run; services are tasks, links
are in memory, load is an in-memory client. The same seed gives the same record, byte for byte.
"""

from __future__ import annotations

import asyncio
import signal
import tempfile
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from survive.chaos.agent import Agent
from survive.chaos.executor import InLoopExecutor
from survive.chaos.ledger import Ledger
from survive.chaos.ports import AgentPort
from survive.clock import Clock, LoopClock
from survive.contracts import Handle, HandleSpec, Json, Needs
from survive.errors import HarnessError, SurviveError
from survive.host.command import RunContext
from survive.host.driver import DriverContext
from survive.host.loop import VirtualClock, VirtualLoop, virtual_run
from survive.host.memory import MemoryNetwork, MemoryTransport
from survive.host.probing import make_probing
from survive.host.run import Display, Run, Stop, TellProbe, faulted_links
from survive.load.memory import MemoryLoad
from survive.load.template import compile_requests
from survive.probe.engine import Prober, Probing
from survive.probe.links import OpenLink, looker
from survive.record.samples import Frame
from survive.record.writer import RecordWriter

LEAD_S = 60.0  # t before the load begins is negative; a target starts well within this
BEGIN_IN_S = 0.25


def perform_virtual(
    context: RunContext, writer: RecordWriter, display: Display
) -> SurviveError | None:
    """One run in virtual time; as perform_real."""

    async def main() -> SurviveError | None:
        with tempfile.TemporaryDirectory(prefix="survive-virtual-") as scratch:
            return await _perform(context, writer, display, Path(scratch))

    return virtual_run(main())


async def _perform(
    context: RunContext, writer: RecordWriter, display: Display, scratch: Path
) -> SurviveError | None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    clock = VirtualClock(loop, loop.time() + LEAD_S)
    transport = MemoryTransport(MemoryNetwork(clock))
    ledger = Ledger.create(context.run_id, f"virtual-{context.run_id}", scratch=scratch)
    driver = context.catalog.driver("virtual")(
        DriverContext(
            run_id=context.run_id,
            seed=context.plan.seed,
            spec=context.scenario.target,
            links=faulted_links(context.scenario),
            key=context.key,
            token=context.token,
            scratch=scratch,
            clock=clock,
            transport=transport,
            env={},
            started=ledger.process,
        )
    )
    run: Run | None = None
    stop = Stop()
    _on_signals(loop, stop)

    def emit(name: str, fields: Mapping[str, Json]) -> None:
        assert run is not None
        run.emit(name, fields)

    executor = InLoopExecutor(context.catalog, driver, clock, transport)
    agent = Agent(
        context.run_id,
        context.catalog,
        ledger,
        driver,
        executor,
        clock,
        emit,
        seed=context.plan.seed,
        privileged=context.privileged,
        standby={s.name: s.standby for s in context.scenario.target.services.values()},
        start_within_us={
            s.name: s.health.within_us for s in context.scenario.target.services.values()
        },
    )

    def open_link(spec: HandleSpec) -> Handle:
        opened: Handle = driver.open(spec, Needs.LINK)
        return opened

    host = VirtualHost(context, agent, clock, transport, scratch, open_link)
    run = Run(
        context.scenario,
        context.plan,
        context.catalog,
        host,
        writer,
        display,
        stop,
        context.asked,
    )
    return await run.perform()


def _on_signals(loop: VirtualLoop, stop: Stop) -> None:
    """The first signal ends the run as on the real host, a second one leaves at once.

    Where somebody else hears them (a worker of an exam, a thread of a test) nothing is changed.
    """
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    mine = threading.current_thread() is threading.main_thread()
    if not mine or any(signal.getsignal(number) is not by for number, by in usual.items()):
        return

    def asked(number: signal.Signals) -> None:
        stop.ask("signal", signal=number.name)
        for one in usual:
            loop.remove_signal_handler(one)

    for number in usual:
        loop.add_signal_handler(number, asked, number)


class VirtualHost:
    """See survive.host.run.Host."""

    name = "virtual"

    def __init__(
        self,
        context: RunContext,
        agent: AgentPort,
        clock: LoopClock,
        transport: MemoryTransport,
        scratch: Path,
        open_link: OpenLink,
    ) -> None:
        self.agent = agent
        self._clock = clock
        self._context = context
        self._transport = transport
        self._scratch = scratch
        self._open_link = open_link
        self._probing: Probing | None = None
        self._stop = asyncio.Event()
        self._frames: asyncio.Queue[Frame] = asyncio.Queue()
        self._load: MemoryLoad | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def clock(self) -> Clock:
        """See Host."""
        return self._clock

    async def ready_load(self, address: str) -> None:
        """See Host."""
        context = self._context
        kinds = compile_requests(context.scenario, context.key, context.identities)
        self._load = MemoryLoad(self._context.plan, kinds, self._transport, self._clock, address)

    async def ready_probes(self, address: str) -> None:
        """See Host."""
        self._probing = await make_probing(self._context, self.agent, address, self._scratch)

    async def probe(self, tell: TellProbe) -> None:
        """See Host."""
        if self._probing is not None:
            look = looker(self._probing.listeners, self._open_link)
            await Prober(self._probing.job, self._clock, self._transport, tell, look).run()

    async def begin(self) -> None:
        """See Host."""
        assert self._load is not None
        self._clock.origin_s = asyncio.get_running_loop().time() + BEGIN_IN_S
        self._task = asyncio.create_task(self._load.run(self._frames.put_nowait, self._stop))

    async def frames(self) -> AsyncIterator[Frame]:
        """See Host."""
        assert self._task is not None
        while True:
            arriving = asyncio.ensure_future(self._frames.get())
            await asyncio.wait({arriving, self._task}, return_when=asyncio.FIRST_COMPLETED)
            if not arriving.done() and self._frames.empty():
                arriving.cancel()
                self._task.result()
                raise HarnessError("the load ended without its last frame")
            frame = await arriving
            yield frame
            if frame.done:
                return

    async def stop_load(self) -> None:
        """See Host."""
        self._stop.set()

    async def usage(self) -> Mapping[str, Json]:
        """Nothing to measure: virtual work costs no virtual time."""
        return {}

    async def agent_gone(self) -> str:
        """Never: it is this process."""
        await asyncio.Event().wait()
        raise AssertionError
