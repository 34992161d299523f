"""``python -m survive.chaos.agent_process FD``: the chaos agent of a real run.

In a session of its own, the parent of everything that must not outlive the run. It ends in one of
three ways, and always last: asked to stop; its socket closed (survive died, however); SIGTERM. In
the last two it has a second: children are killed, faults are healed, all that the run started is
killed, the ledger is closed.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any

from survive.catalog import Catalog
from survive.chaos import processes
from survive.chaos.agent import Agent
from survive.chaos.executor import ChildExecutor
from survive.chaos.heal import Finding, clean_up, end_processes
from survive.chaos.ledger import PROXY, Ledger, Named, Owner, Story
from survive.chaos.remote import LEAVE, LONGEST_LINE, AgentConfig, error_to_json
from survive.clock import LoopClock
from survive.contracts import Json
from survive.errors import HarnessError
from survive.host.driver import Driver, DriverContext
from survive.host.sockets import SocketTransport
from survive.scenario.model import FaultPlan

LEAVES_WITHIN_S = 1.0  # from our answer to a stop until survive lets go of the pipe
HEAL_AT_ONCE_S = 0.5  # of a fault's own heal when the harness died; all must be off in 1 s
HELPER_TERM_S = 1.0


class Helper:
    """A process that the agent started for survive (load, probes)."""

    def __init__(
        self, name: str, process: subprocess.Popen[bytes], on_exit: Callable[[str, int], None]
    ) -> None:
        self.name = name
        self.process = process
        self.start_time = processes.start_time(process.pid)
        self.ended = asyncio.Event()
        self._on_exit = on_exit
        self._pidfd = os.pidfd_open(process.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    def _reap(self) -> None:
        processes.kill_group(self.process.pid)  # its pid is still its own: not reaped yet
        code = self.process.poll()
        if code is None:
            return
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.ended.set()
        self._on_exit(self.name, code)

    async def end(self) -> None:
        """SIGTERM, and after a second SIGKILL to its group."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.ended.is_set():
                return
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                pass  # it ended just now
            try:
                async with asyncio.timeout(HELPER_TERM_S):
                    await self.ended.wait()
            except TimeoutError:
                continue


class AgentServer:
    """The agent behind its socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._calls: set[asyncio.Task[None]] = set()
        self._term = asyncio.Event()
        self._done = asyncio.Event()
        self._survive_left = False  # in order; its end without a word is a death
        self._helpers: list[Helper] = []
        self._clock = LoopClock(0.0)
        self._transport = SocketTransport()
        self._ledger: Ledger | None = None
        self._config: AgentConfig | None = None
        self._agent: Agent | None = None
        self._executor: ChildExecutor | None = None

    async def serve(self) -> None:
        """Until asked to stop, alone, or terminated."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._term.set)
        for number in (signal.SIGINT, signal.SIGHUP):
            # A handler, not SIG_IGN: that would be inherited by all that we start.
            loop.add_signal_handler(number, _not_for_us)
        processes.outlive_parent()  # from here on an end of survive is heard of, and healed
        hearing = asyncio.create_task(self._hear())
        ends = [
            hearing,
            asyncio.create_task(self._term.wait()),
            asyncio.create_task(self._done.wait()),
        ]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if not self._done.is_set():
            await self._emergency()
            return
        await asyncio.wait({hearing}, timeout=LEAVES_WITHIN_S)
        if hearing.done() and not self._survive_left and self._config is not None:
            # It was killed after it had asked us to stop: nobody else takes the folder away.
            shutil.rmtree(self._config.scratch, ignore_errors=True)

    # -------------------------------------------------------------------- calls

    async def _hear(self) -> None:
        """Serve calls, side by side, until survive is gone."""
        try:
            while line := await self._reader.readline():
                message = json.loads(line)
                if message["call"] == LEAVE:
                    self._survive_left = True
                    continue
                task = asyncio.create_task(self._answer(message))
                self._calls.add(task)
                task.add_done_callback(self._calls.discard)
        except (ConnectionError, ValueError):
            return  # the end, as an EOF is

    async def _answer(self, message: Mapping[str, Any]) -> None:
        try:
            result = await self._do(message["call"], message["args"])
            self._say({"id": message["id"], "result": result})
        except Exception as error:  # crosses the pipe as data and is raised on the other side
            trace = traceback.format_exc()
            self._say({"id": message["id"], "error": error_to_json(error, trace)})
        else:
            if message["call"] == "stop":
                await self._flush()
                self._done.set()

    async def _do(self, call: str, args: list[Any]) -> Any:
        if call == "start":
            return self._start(*args)
        if call == "set_origin":
            self._clock.origin_s = args[0] / 1e6
            return None
        if call == "spawn":
            return self._spawn(*args)
        if call == "usage":
            return await self._usage()
        if self._agent is None:
            raise HarnessError("the agent was not started")
        if call in {"preflight", "prepare"}:
            return await getattr(self._agent, call)(FaultPlan(**args[0]))
        if call in {"replicas", "listeners"}:
            return [asdict(spec) for spec in await getattr(self._agent, call)(*args)]
        if call in {"start_target", "inject", "heal", "stop"}:
            verb: Callable[..., Awaitable[Any]] = getattr(self._agent, call)
            return await verb(*args)
        raise HarnessError(f"the agent cannot {call!r}")

    def _start(
        self, data: Mapping[str, Any], fds: list[int], survive_pid: int, survive_start: int
    ) -> int:
        """Lock, ledger, driver, agent; nothing of the target starts yet."""
        config = self._config = AgentConfig.from_json(data)
        self._clock.origin_s = config.origin_s
        for fd in fds:
            os.set_inheritable(fd, False)  # for the one helper that asks for it, no other
        owner = Owner.here(Named(survive_pid, survive_start))
        catalog = Catalog(config.start, config.plugins)
        driver_class = catalog.driver(config.spec.driver)
        ledger = self._ledger = Ledger.create(
            config.run_id, config.spec.name, owner, config.start, config.scratch
        )
        driver: Driver = driver_class(self._driver_context(config, ledger))
        logs = config.scratch / "logs"
        self._executor = ChildExecutor(catalog, config.run_id, os.environ, logs)
        self._agent = Agent(
            config.run_id,
            catalog,
            ledger,
            driver,
            self._executor,
            self._clock,
            self._emit,
            seed=config.seed,
            privileged=config.privileged,
            sweep=self._sweep,
            standby={s.name: s.standby for s in config.spec.services.values()},
            start_within_us={s.name: s.health.within_us for s in config.spec.services.values()},
        )
        return os.getpid()

    def _driver_context(self, config: AgentConfig, ledger: Ledger) -> DriverContext:
        return DriverContext(
            run_id=config.run_id,
            seed=config.seed,
            spec=config.spec,
            links=config.links,
            key=config.key,
            token=config.token,
            scratch=config.scratch,
            clock=self._clock,
            transport=self._transport,
            env=os.environ,
            started=ledger.process,
            making=ledger.resource,
        )

    def _spawn(self, name: str, argv: list[str], fds: list[int]) -> int:
        """A helper; our copies of its descriptors are closed."""
        if self._config is None or self._ledger is None:
            raise HarnessError("the agent was not started")
        log = self._config.scratch / "logs" / f"{name}.log"
        try:
            with log.open("ab") as output:
                process = processes.spawn(
                    argv,
                    env=os.environ,
                    run_id=self._config.run_id,
                    pass_fds=fds,
                    stdout=output,
                    stderr=output,
                )
        except OSError as error:
            raise HarnessError(f"{name} cannot be started: {error}") from error
        helper = Helper(name, process, self._exited)
        self._helpers.append(helper)
        self._ledger.process(name, process.pid, helper.start_time)
        for fd in fds:
            os.close(fd)
        return process.pid

    def _exited(self, name: str, code: int) -> None:
        self._say({"exit": name, "code": code})

    async def _usage(self) -> dict[str, float]:
        if self._agent is None or self._ledger is None:
            raise HarnessError("the agent was not started")
        used = await self._agent.usage()
        # Not processes.cpu_s: that counts waited-for children, and so dead replicas, as ours.
        own = os.times()
        used["chaos"] += own.user + own.system
        used["chaos"] += sum(
            processes.cpu_s(p.pid) for name, p in self._ledger.started if name == PROXY
        )
        return used

    # -------------------------------------------------------------------- talking

    def _emit(self, name: str, fields: Mapping[str, Json]) -> None:
        self._say({"event": name, "fields": fields, "t_us": self._clock.now_us()})

    def _say(self, message: Mapping[str, Any]) -> None:
        """Of a survive that is gone nobody listens; the closed socket ends us."""
        if not self._writer.is_closing():
            self._writer.write(json.dumps(message).encode() + b"\n")

    async def _flush(self) -> None:
        try:
            await self._writer.drain()
            self._writer.close()
            await self._writer.wait_closed()
        except ConnectionError:
            return  # survive left before it heard the last word; everything is done

    # -------------------------------------------------------------------- the end

    async def _sweep(self) -> bool:
        """After the target: helpers, then whatever still bears the run's mark."""
        await asyncio.gather(*(helper.end() for helper in self._helpers))
        await self._transport.close()
        assert self._ledger is not None and self._config is not None
        # From memory: a disk that lost a line of the ledger hides no process.
        story = Story(owner=Owner.here(), processes=list(self._ledger.started))
        left = await end_processes(self._config.run_id, story)
        return all(gone for _, _, gone in left)

    async def _emergency(self) -> None:
        """survive is gone, or we are told to go: nothing may be left in a second."""
        if self._executor is not None:
            self._executor.kill_now()
        current = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not current]
        for task in others:
            task.cancel()  # supervisors too: nothing is restarted any more
        if others:
            await asyncio.wait(others, timeout=0.05)
        if self._ledger is not None:
            for finding in await clean_up(self._ledger.path, heal_s=HEAL_AT_ONCE_S):
                _log(finding)


def _not_for_us() -> None:
    """A Ctrl-C is for survive, which then asks us to heal."""


def _log(finding: Finding) -> None:
    print(finding.line(), file=sys.stderr, flush=True)


async def main(fd: int) -> None:
    """Serve survive on an inherited socket."""
    sock = socket.socket(fileno=fd)
    sock.set_inheritable(False)
    reader, writer = await asyncio.open_connection(sock=sock, limit=LONGEST_LINE)
    try:
        await AgentServer(reader, writer).serve()
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # At once: what still runs in this loop must not delay the end, and children die with us.
        os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
