"""The real host: processes and sockets. See ARCHITECTURE.md for who starts whom.

The load reports straight to this process over an inherited pipe; its control pipe and the agent's
socket are dead man's switches: when this process is gone, by whatever means, both end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import click

from survive.chaos import processes
from survive.chaos.ledger import LEDGER, Ledger, state_dir
from survive.chaos.ports import AgentPort
from survive.chaos.remote import AgentConfig, RemoteAgent
from survive.clock import Clock, LoopClock
from survive.contracts import Json
from survive.errors import ExitCode, HarnessError, RefusedError, SurviveError, UsageError
from survive.host.affinity import Division, confined, division_of
from survive.host.command import RunContext
from survive.host.machine import Stalls, wake_noise_us
from survive.host.probing import make_probing
from survive.host.run import LOAD_END_GRACE_US, Display, Run, Stop, TellProbe, faulted_links
from survive.load.template import compile_requests
from survive.load.wire import LoadFailed, Message, Ready, read_messages
from survive.record.samples import Frame
from survive.record.writer import RecordWriter

LEAD_S = 60.0  # t before the load begins is negative; a target starts well within this
BEGIN_IN_S = 0.3  # from the order to t = 0: time for all processes to hear it
READY_WITHIN_S = 20.0  # Locust's imports, on a busy machine
COME_WITHIN_S = 60.0  # machines that are expected


def perform_real(
    context: RunContext, writer: RecordWriter, display: Display
) -> SurviveError | None:
    """One run in real time. Returns the error that ended it before t = 0, if one did."""
    workers = context.workers
    division = division_of(context.scenario, workers.count, workers.expected)
    with confined(division.rest if division else ()):
        return asyncio.run(_perform(context, writer, display, division))


async def _perform(
    context: RunContext, writer: RecordWriter, display: Display, division: Division | None
) -> SurviveError | None:
    stop = Stop()
    scratch = Path(tempfile.mkdtemp(prefix="survive-"))
    _on_signals(stop, context.run_id, scratch)
    clock = LoopClock(asyncio.get_running_loop().time() + LEAD_S)
    pipes = _Pipes()
    probe_pipes = _Pipes()
    run: Run | None = None

    def on_event(name: str, fields: Mapping[str, Json], t_us: int) -> None:
        assert run is not None
        run.emit(name, fields, t_us)

    try:
        agent = await RemoteAgent.start(
            AgentConfig(
                run_id=context.run_id,
                seed=context.plan.seed,
                spec=context.scenario.target,
                links=faulted_links(context.scenario),
                key=context.key,
                token=context.token,
                scratch=scratch,
                start=context.catalog.start,
                origin_s=clock.origin_s,
                privileged=context.privileged,
            ),
            pass_fds=[*pipes.far, *probe_pipes.far],
            on_event=on_event,
        )
        pipes.handed_over()
        probe_pipes.handed_over()
        host = RealHost(context, agent, clock, pipes, probe_pipes, scratch, division)
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
    finally:
        pipes.close()
        probe_pipes.close()
        _keep_logs(scratch, context.folder)


def _on_signals(stop: Stop, run_id: str, scratch: Path) -> None:
    """The first signal heals; a second one leaves at once, and the agent heals without us."""
    loop = asyncio.get_running_loop()

    def asked(number: signal.Signals) -> None:
        if stop.asked.is_set():
            click.echo(
                f"left at once; the agent heals. To be sure: survive heal --run {run_id}", err=True
            )
            if _ended(run_id):  # the agent is done and gone; else it takes the folder away
                shutil.rmtree(scratch, ignore_errors=True)
            code = ExitCode.TERMINATED if number == signal.SIGTERM else ExitCode.INTERRUPTED
            os._exit(int(code))
        click.echo("stopping the load and healing (again to leave at once)", err=True)
        stop.ask("signal", signal=number.name)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, asked, number)


def _ended(run_id: str) -> bool:
    try:
        return Ledger.read(state_dir() / run_id / LEDGER).ended is not None
    except OSError:
        return False  # nothing was begun


def _keep_logs(scratch: Path, folder: Path) -> None:
    """The last of each process's output goes to the run directory; the rest is not kept.

    The folder goes whatever happens, as it holds the target's key: on a full disk without the logs.
    """
    with contextlib.suppress(OSError):
        for log in sorted((scratch / "logs").glob("*.log")):
            text = log.read_bytes()[-64 * 1024 :]
            if text.strip():
                (folder / "logs").mkdir(exist_ok=True)
                (folder / "logs" / log.name).write_bytes(text)
    shutil.rmtree(scratch, ignore_errors=True)


class _Pipes:
    """Two pipes made before the agent, so that a helper can inherit their far ends through it."""

    def __init__(self) -> None:
        self.report_read, self.report_write = os.pipe()
        self.control_read, self.control_write = os.pipe()
        self._far = [self.report_write, self.control_read]
        self._near = [self.report_read, self.control_write]

    @property
    def far(self) -> list[int]:
        """The ends that the helper gets, under the same numbers."""
        return [self.report_write, self.control_read]

    def handed_over(self) -> None:
        """The agent has them: ours would hide the helper's end."""
        while self._far:
            os.close(self._far.pop())

    async def reader(self) -> asyncio.StreamReader:
        """The report pipe as a stream, which then owns the descriptor."""
        reader = asyncio.StreamReader()
        self._near.remove(self.report_read)
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(self.report_read, "rb", 0)
        )
        return reader

    def order(self, order: dict[str, Json]) -> None:
        """One line to the helper; one that is gone is noticed by its report pipe."""
        try:
            os.write(self.control_write, json.dumps(order).encode() + b"\n")
        except BrokenPipeError:
            pass

    def close(self) -> None:
        """Every end that is still ours."""
        self.handed_over()
        while self._near:
            os.close(self._near.pop())


class RealHost:
    """See survive.host.run.Host."""

    name = "real"

    def __init__(
        self,
        context: RunContext,
        agent: RemoteAgent,
        clock: LoopClock,
        pipes: _Pipes,
        probe_pipes: _Pipes,
        scratch: Path,
        division: Division | None = None,
    ) -> None:
        self.agent: AgentPort = agent
        self._division = division
        self._remote = agent
        self._clock = clock
        self._context = context
        self._pipes = pipes
        self._probe_pipes = probe_pipes
        self._probe_pid = 0
        self._probe_cpu_s = 0.0
        self._probed_by_us = 0
        self._findings: asyncio.StreamReader | None = None
        self._scratch = scratch
        self._messages: AsyncIterator[Message] | None = None
        self._load_pid = 0
        self._load_cpu_s = 0.0
        self._before: dict[str, float] = {}
        self._wake_us = (0, 0)
        self._stalls: Stalls | None = None

    @property
    def clock(self) -> Clock:
        """See Host."""
        return self._clock

    async def ready_load(self, address: str) -> None:
        """See Host. Raises RefusedError when this host cannot carry the load."""
        spec = self._scratch / "load.json"
        context = self._context
        document = {
            "plan": context.plan.to_json(),
            "address": address,
            "authority": self._authority(),
            "cores": [*self._load_cores],
            **self._requests(),
        }
        journeys = context.scenario.load.locustfile is not None
        spec.touch(mode=0o600)  # it holds the bearer key
        spec.write_text(json.dumps(document), encoding="utf-8")
        argv = [
            sys.executable,
            "-m",
            "survive.load.journeys" if journeys else "survive.load.process",
            "--spec",
            str(spec),
            "--control",
            str(self._pipes.control_read),
            "--report",
            str(self._pipes.report_write),
            *([] if journeys else context.workers.options),
        ]
        self._load_pid = await self._remote.spawn("load", argv, self._pipes.far)
        self._messages = read_messages(await self._pipes.reader())
        within_s = READY_WITHIN_S + (COME_WITHIN_S if self._context.workers.expected else 0)
        try:
            async with asyncio.timeout(within_s):
                message = await self._next()
        except TimeoutError:
            raise HarnessError(f"the load was not ready within {within_s:.0f} s") from None
        if not isinstance(message, Ready):
            raise HarnessError("the load reported before it was ready")

    def _requests(self) -> dict[str, Json]:
        """What is sent: requests ready to go, or a locustfile and the key that it may need."""
        context = self._context
        scenario = context.scenario
        if scenario.load.locustfile is None:
            kinds = compile_requests(scenario, context.key, context.identities)
            return {"kinds": [kind.to_json() for kind in kinds]}
        file = (scenario.folder / scenario.load.locustfile).resolve()
        named = scenario.target.bearer.removeprefix("${").removesuffix("}")
        keys: dict[str, Json] = {named: context.key} if named else {}
        return {"locustfile": str(file), "environment": keys}

    @property
    def _load_cores(self) -> tuple[int, ...]:
        """One a worker; () = wherever the kernel puts them."""
        return self._division.load if self._division else ()

    def _authority(self) -> str:
        """PEM text of the authority that the entry is verified with; "" = the system's.

        Text, not a file: workers on other machines need it too.
        """
        target = self._context.scenario.target
        file = target.services[target.entry].ca
        return (target.folder / file).read_text(encoding="utf-8") if file else ""

    async def ready_probes(self, address: str) -> None:
        """See Host."""
        probing = await make_probing(self._context, self.agent, address, self._scratch)
        if probing is None:
            return
        self._probed_by_us = self._context.plan.end_us + LOAD_END_GRACE_US + probing.job.longest_us
        spec = self._scratch / "probe.json"
        spec.touch(mode=0o600)  # it holds keys
        spec.write_text(json.dumps(probing.to_json()), encoding="utf-8")
        pipes = self._probe_pipes
        ends = ["--control", str(pipes.control_read), "--report", str(pipes.report_write)]
        target = self._context.scenario.target
        if file := target.services[target.entry].ca:
            ends += ["--authority", str(target.folder / file)]
        argv = [sys.executable, "-m", "survive.probe.process", "--spec", str(spec), *ends]
        self._probe_pid = await self._remote.spawn("probe", argv, pipes.far)
        self._findings = await pipes.reader()
        try:
            async with asyncio.timeout(READY_WITHIN_S):
                line = await self._findings.readline()
        except TimeoutError:
            raise HarnessError(f"the probes were not ready within {READY_WITHIN_S:.0f} s") from None
        if not line:
            raise HarnessError("the probe process died", hint=self._log("probe"))

    async def probe(self, tell: TellProbe) -> None:
        """See Host. A process that dies is no error of the run: the judge misses its last line."""
        if self._findings is None:
            return
        try:
            async with asyncio.timeout(max(1.0, (self._probed_by_us - self._clock.now_us()) / 1e6)):
                while (line := await self._findings.readline()).endswith(b"\n"):
                    message = json.loads(line)
                    tell(message["fields"], message["t_us"])
                    self._probe_cpu_s = processes.cpu_s(self._probe_pid) or self._probe_cpu_s
        except TimeoutError:
            return  # it hangs

    async def _next(self) -> Message:
        assert self._messages is not None
        try:
            message = await anext(self._messages)
        except StopAsyncIteration:
            raise HarnessError("the load process died", hint=self._log("load")) from None
        if isinstance(message, LoadFailed) and message.theirs:
            raise UsageError(message.error)
        if isinstance(message, LoadFailed):
            kind = RefusedError if message.refused else HarnessError
            raise kind(f"the load cannot run: {message.error}")
        return message

    def _log(self, helper: str) -> str:
        log = self._scratch / "logs" / f"{helper}.log"
        return log.read_text(errors="replace")[-1000:] if log.exists() else ""

    async def begin(self) -> None:
        """See Host."""
        self._wake_us = await asyncio.to_thread(wake_noise_us, self._load_cores)
        self._stalls = Stalls()
        origin_s = time.monotonic() + BEGIN_IN_S
        self._clock.origin_s = origin_s
        await self._remote.set_origin(round(origin_s * 1e6))
        for pipes in (self._pipes, self._probe_pipes):
            pipes.order({"start": round(origin_s * 1e6)})
        self._before = await self._cpu_s()

    async def frames(self) -> AsyncIterator[Frame]:
        """See Host."""
        plan = self._context.plan
        last_us = plan.end_us + max(plan.timeouts_us) + LOAD_END_GRACE_US
        while True:
            try:
                async with asyncio.timeout(max(1.0, (last_us - self._clock.now_us()) / 1e6)):
                    message = await self._next()
            except TimeoutError:
                raise HarnessError("the load did not end in time") from None
            if not isinstance(message, Frame):
                raise HarnessError("the load reported that it is ready twice")
            self._load_cpu_s = processes.family_cpu_s(self._load_pid) or self._load_cpu_s
            yield message
            if message.done:
                return

    async def stop_load(self) -> None:
        """See Host."""
        self._pipes.order({"stop": True})

    async def usage(self) -> Mapping[str, Json]:
        """See Host."""
        if not self._before:
            return {}
        now = await self._cpu_s()
        span_s = max(self._clock.now_us() / 1e6, 0.001)
        used = {name: (now[name] - self._before[name]) / span_s for name in now}
        return {
            "target_cores": round(used["target"], 4),
            "harness_cores": round(sum(used.values()) - used["target"], 4),
            "load_cores": round(used["load"], 4),
            "chaos_cores": round(used["chaos"], 4),
            **self._machine(),
            **({"affinity": self._division.to_json()} if self._division else {}),
        }

    def _machine(self) -> dict[str, Json]:
        """Its own wake-ups just before t = 0, and the share of the run that somebody stalled."""
        assert self._stalls is not None
        share = self._stalls.share()
        wakes = zip(("wake_up_ms_p50", "wake_up_ms_p99"), self._wake_us, strict=True)
        said: dict[str, Json] = {name: late_us / 1000 for name, late_us in wakes}
        return said if share is None else {**said, "cpu_stalled_share": round(share, 4)}

    async def _cpu_s(self) -> dict[str, float]:
        self._load_cpu_s = processes.family_cpu_s(self._load_pid) or self._load_cpu_s
        return {
            **await self._remote.usage(),
            "load": self._load_cpu_s,
            "probe": self._probe_cpu_s,
            "survive": time.process_time(),
        }

    async def agent_gone(self) -> str:
        """See Host."""
        await self._remote.died.wait()
        return "the chaos agent died"
