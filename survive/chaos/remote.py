"""The chaos agent as survive sees it: a process in a session of its own, behind a socket.

One JSON object a line. survive asks {id, call, args} and gets {id, result} or {id, error}; the
agent also says {event, fields, t_us} and {exit, code}. The socket is a dead man's switch for both:
when it closes, the other side is gone, and whoever is left heals from the ledger.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import survive
from survive.chaos import processes
from survive.contracts import HandleSpec, Json
from survive.errors import HarnessError, RefusedError, SurviveError, UsageError
from survive.host.driver import TargetUnhealthyError
from survive.scenario.model import FaultPlan, Health, Link, Service, TargetSpec
from survive.units import Price

LEAVE = "leave"  # survive goes on without the agent: the run's folder is its own to take away
OnEvent: TypeAlias = Callable[[str, Mapping[str, Json], int], None]
OnExit: TypeAlias = Callable[[str, int], None]

LONGEST_LINE = 1 << 24
TRACKING = "RUNNER_TRACKING_ID"  # GitHub's runner hunts whoever bears it

# Seconds after which an agent that does not answer is taken for dead, far beyond what it needs.
_PATIENCE_S = {
    "start": 15.0,
    "set_origin": 5.0,
    "preflight": 15.0,
    "prepare": 30.0,
    "inject": 10.0,
    "heal": 40.0,
    "replicas": 15.0,
    "listeners": 15.0,
    "spawn": 15.0,
    "usage": 5.0,
    "stop": 40.0,
}
_START_TARGET_S = 30.0  # beyond what the services' own health may take
_GONE_S = 3.0


class AgentDiedError(HarnessError):
    """The agent is gone; what it had on is healed from the ledger."""


class AgentBugError(RuntimeError):
    """A bug in the agent: its traceback. Exit 70."""


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """All that the agent must know. Secrets travel by the socket, never by argv or environment.

    ``start`` is where a team's own files are looked up; ``origin_s`` the monotonic time of t = 0
    until ``set_origin`` says better.
    """

    run_id: str
    seed: int
    spec: TargetSpec
    links: frozenset[str]
    key: str
    token: str
    scratch: Path
    start: Path | None
    origin_s: float
    plugins: bool = True
    privileged: bool = False  # both yeses were given, see survive.chaos.permission

    def to_json(self) -> dict[str, Json]:
        """Plain data."""
        return {
            "run_id": self.run_id,
            "seed": self.seed,
            "spec": target_to_json(self.spec),
            "links": [*sorted(self.links)],
            "key": self.key,
            "token": self.token,
            "scratch": str(self.scratch),
            "start": None if self.start is None else str(self.start),
            "origin_s": self.origin_s,
            "plugins": self.plugins,
            "privileged": self.privileged,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> AgentConfig:
        """The inverse of to_json."""
        return cls(
            **{
                **data,
                "spec": target_from_json(data["spec"]),
                "links": frozenset(data["links"]),
                "scratch": Path(data["scratch"]),
                "start": None if data["start"] is None else Path(data["start"]),
            }
        )


def target_to_json(spec: TargetSpec) -> dict[str, Json]:
    """A TargetSpec as plain data."""
    return {
        "name": spec.name,
        "driver": spec.driver,
        "entry": spec.entry,
        "services": {name: _service_to_json(s) for name, s in spec.services.items()},
        "links": {name: asdict(link) for name, link in spec.links.items()},
        "vars": dict(spec.vars),
        "bearer": spec.bearer,
        "identities": dict(spec.identities),
        "prices": {name: asdict(price) for name, price in spec.prices.items()},
        "allow_hosts": list(spec.allow_hosts),
        "allow_faults": list(spec.allow_faults),
        "allow_privileged": spec.allow_privileged,
        "allow_max_faults": spec.allow_max_faults,
        "allow_max_duration_us": spec.allow_max_duration_us,
        "weaknesses": list(spec.weaknesses),
        "folder": str(spec.folder),
        "compose": spec.compose,
        "toxiproxy": spec.toxiproxy,
        "isolation": spec.isolation,
    }


def _service_to_json(service: Service) -> dict[str, Json]:
    # Not asdict: ``env`` may be any mapping.
    return {
        "name": service.name,
        "app": service.app,
        "run": list(service.run),
        "url": service.url,
        "ca": service.ca,
        "replicas": service.replicas,
        "standby": service.standby,
        "gpu": service.gpu,
        "simulates": list(service.simulates),
        "health": asdict(service.health),
        "metrics": service.metrics,
        "audit_file": service.audit_file,
        "restart_after_us": service.restart_after_us,
        "env": dict(service.env),
    }


def target_from_json(data: Mapping[str, Any]) -> TargetSpec:
    """The inverse of target_to_json."""
    services = {
        name: Service(
            **{
                **s,
                "run": tuple(s["run"]),
                "simulates": tuple(s["simulates"]),
                "health": Health(**s["health"]),
            }
        )
        for name, s in data["services"].items()
    }
    return TargetSpec(
        **{
            **data,
            "services": services,
            "links": {name: Link(**link) for name, link in data["links"].items()},
            "prices": {name: Price(**price) for name, price in data["prices"].items()},
            "allow_hosts": tuple(data["allow_hosts"]),
            "allow_faults": tuple(data["allow_faults"]),
            "weaknesses": tuple(data["weaknesses"]),
            "folder": Path(data["folder"]),
        }
    )


def fault_to_json(fault: FaultPlan) -> dict[str, Json]:
    """A FaultPlan as plain data; ``FaultPlan(**data)`` is the inverse."""
    return {
        "name": fault.name,
        "kind": fault.kind,
        "at_us": fault.at_us,
        "for_us": fault.for_us,
        "service": fault.service,
        "link": fault.link,
        "count": fault.count,
        "settings": dict(fault.settings),
        "pool": fault.pool,
    }


def error_to_json(error: BaseException, trace: str) -> dict[str, Json]:
    """An exception as data; of a bug its traceback."""
    if isinstance(error, TargetUnhealthyError):
        why = error.message.partition(" never became healthy: ")[2]
        return {
            "type": "TargetUnhealthyError",
            "service": error.service,
            "why": why,
            "last_lines": list(error.last_lines),
        }
    if isinstance(error, SurviveError):
        known = [name for name, cls in _ERRORS.items() if type(error) is cls]
        kind = known[0] if known else _nearest_kind(error)
        return {"type": kind, "message": error.message, "hint": error.hint}
    return {"type": "bug", "message": trace}


def error_from_json(data: Mapping[str, Any]) -> Exception:
    """The inverse, as far as survive tells errors apart: by exit code, words and last lines."""
    if data["type"] == "TargetUnhealthyError":
        return TargetUnhealthyError(data["service"], data["why"], list(data["last_lines"]))
    if data["type"] == "bug":
        return AgentBugError(data["message"])
    return _ERRORS[data["type"]](data["message"], hint=data["hint"])


_ERRORS: dict[str, type[SurviveError]] = {
    "RefusedError": RefusedError,
    "UsageError": UsageError,
    "HarnessError": HarnessError,
}


def _nearest_kind(error: SurviveError) -> str:
    """A subclass crosses as the base that has its exit code."""
    return next((name for name, cls in _ERRORS.items() if isinstance(error, cls)), "HarnessError")


def agent_environment() -> dict[str, str]:
    """Ours without the mark by which a CI runner finds orphans; finds this very survive."""
    home = str(Path(survive.__file__).resolve().parent.parent)
    env = {name: value for name, value in os.environ.items() if name != TRACKING}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [home, env.get("PYTHONPATH", "")]))
    return env


def _start_process(
    logs: Path, pass_fds: Sequence[int]
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """The agent's process and our end of its socket. Raises HarnessError."""
    logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    ours, theirs = socket.socketpair()
    fd = theirs.fileno()
    argv = [sys.executable, "-m", "survive.chaos.agent_process", str(fd)]
    try:
        with theirs, (logs / "agent.log").open("ab") as log:
            process = subprocess.Popen(
                argv,
                env=agent_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(fd, *pass_fds),
                start_new_session=True,
                # Until it hears us: while it starts there is nothing that it would have to heal.
                preexec_fn=processes.die_with_parent,  # noqa: PLW1509 - one call of the kernel
            )
    except OSError as error:
        ours.close()
        raise HarnessError(f"the chaos agent cannot be started: {error}") from error
    return process, ours


class RemoteAgent:
    """See survive.chaos.ports.AgentPort. Made by ``start``.

    ``died`` is set when the agent ends without having been asked to; pending and later calls then
    raise AgentDiedError, and ``stop`` heals from the ledger.
    """

    def __init__(
        self,
        config: AgentConfig,
        process: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_event: OnEvent,
        on_exit: OnExit | None,
    ) -> None:
        self.died = asyncio.Event()
        self._config = config
        self._process = process
        self._reader, self._writer = reader, writer
        self._on_event, self._on_exit = on_event, on_exit
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._over = False  # it was asked to end, or never began
        self._broken: Exception | None = None
        self._stopped: list[dict[str, Any]] | None = None
        self._origin_s = config.origin_s
        self._pump = asyncio.create_task(self._read())

    @classmethod
    async def start(
        cls,
        config: AgentConfig,
        *,
        pass_fds: Sequence[int] = (),
        on_event: OnEvent,
        on_exit: OnExit | None = None,
    ) -> RemoteAgent:
        """The agent, up, with the lock of its target and a ledger.

        ``pass_fds`` are for helpers that ``spawn`` starts later: under the same numbers; close
        yours after this. Raises RefusedError if the target is held, HarnessError.
        """
        process, ours = _start_process(config.scratch / "logs", pass_fds)
        reader, writer = await asyncio.open_connection(sock=ours, limit=LONGEST_LINE)
        agent = cls(config, process, reader, writer, on_event, on_exit)
        try:
            me = os.getpid()
            await agent._call(
                "start", config.to_json(), list(pass_fds), me, processes.start_time(me)
            )
        except BaseException:
            agent._over = True
            await agent._leave()
            raise
        return agent

    # -------------------------------------------------------------------- AgentPort

    async def start_target(self) -> str:
        """See AgentPort."""
        healthy_s = sum(s.health.within_us for s in self._config.spec.services.values()) / 1e6
        return str(await self._call("start_target", patience_s=_START_TARGET_S + healthy_s))

    async def preflight(self, fault: FaultPlan) -> int:
        """See AgentPort."""
        return int(await self._call("preflight", fault_to_json(fault)))

    async def prepare(self, fault: FaultPlan) -> None:
        """See AgentPort."""
        await self._call("prepare", fault_to_json(fault))

    async def inject(self, name: str) -> None:
        """See AgentPort."""
        await self._call("inject", name)

    async def heal(self, name: str) -> None:
        """See AgentPort."""
        await self._call("heal", name)

    async def replicas(self, service: str) -> list[HandleSpec]:
        """See AgentPort."""
        return [HandleSpec(**spec) for spec in await self._call("replicas", service)]

    async def listeners(self, link: str) -> list[HandleSpec]:
        """See AgentPort."""
        return [HandleSpec(**spec) for spec in await self._call("listeners", link)]

    async def spawn(self, name: str, argv: list[str], fds: list[int]) -> int:
        """See AgentPort. ``fds`` must have been among ``pass_fds``; the agent then closes its own
        copies, so that whoever reads their other ends sees the helper's end."""
        return int(await self._call("spawn", name, argv, fds))

    async def usage(self) -> dict[str, float]:
        """See AgentPort."""
        return dict(await self._call("usage"))

    async def set_origin(self, monotonic_us: int) -> None:
        """Fix t = 0 of the run's clock."""
        self._origin_s = monotonic_us / 1e6
        await self._call("set_origin", monotonic_us)

    async def stop(self) -> list[dict[str, Any]]:
        """See AgentPort. Of an agent that died: heals from its ledger."""
        if self._stopped is None:
            self._stopped = await self._stop()
        return self._stopped

    async def _stop(self) -> list[dict[str, Any]]:
        self._over = not self.died.is_set()
        try:
            left = list(await self._call("stop"))
        except AgentDiedError:
            self._over = False
            self.died.set()
            await self._leave()
            return await self._heal_from_ledger()
        except BaseException:
            await self._leave()  # it ends all by itself once its socket is closed
            raise
        self._writer.write(json.dumps({"id": 0, "call": LEAVE, "args": []}).encode() + b"\n")
        await self._leave()
        return left

    async def _heal_from_ledger(self) -> list[dict[str, Any]]:
        from survive.chaos.heal import heal_all

        result = await heal_all(run=self._config.run_id, force=True)
        t_us = round((asyncio.get_running_loop().time() - self._origin_s) * 1e6)
        for found in result.findings:
            if found.injection and found.gone:  # what is not gone, stop's answer names
                told: dict[str, Json] = {
                    "fault": found.fault,
                    "injection": found.injection,
                    "proven": True,
                    "by_own_heal": True,
                    "evidence": f"the agent died; from its ledger: {found.done}",
                    "by_hand": "",
                }
                self._on_event("heal_proven", told, t_us)
        return [
            {
                "fault": f.fault,
                "injection": f.injection,
                "why": f"{f.what}: {f.done}",
                "by_hand": f.by_hand,
            }
            for f in result.findings
            if not f.gone
        ]

    # -------------------------------------------------------------------- the socket

    async def _call(self, name: str, *args: Any, patience_s: float | None = None) -> Any:
        """One question. Raises what the agent raised, AgentDiedError, AgentBugError."""
        if self._pump.done():
            raise self._broken or AgentDiedError("the chaos agent died")
        number = next(self._ids)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        message = {"id": number, "call": name, "args": args}
        try:
            self._writer.write(json.dumps(message).encode() + b"\n")
            async with asyncio.timeout(patience_s or _PATIENCE_S[name]):
                return await answer
        except TimeoutError as error:
            processes.kill_group(self._process.pid)  # stuck: its children die with it
            raise AgentDiedError(f"the chaos agent did not answer to {name!r}") from error
        finally:
            del self._waiting[number]

    async def _read(self) -> None:
        try:
            while line := await self._reader.readline():
                self._hear(json.loads(line))
        except (ConnectionError, ValueError):
            pass  # the end, as an EOF is
        except Exception as error:  # of a callback: the record cannot be written
            self._broken = error
        self._writer.close()  # the agent heals when it sees that
        if not self._over:
            self.died.set()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(self._broken or AgentDiedError("the chaos agent died"))

    def _hear(self, message: Mapping[str, Any]) -> None:
        if "event" in message:
            self._on_event(message["event"], message["fields"], message["t_us"])
        elif "exit" in message:
            if self._on_exit is not None:
                self._on_exit(message["exit"], message["code"])
        elif (answer := self._waiting.get(message["id"])) and not answer.done():
            if "error" in message:
                answer.set_exception(error_from_json(message["error"]))
            else:
                answer.set_result(message["result"])

    async def _leave(self) -> None:
        """Close the socket and reap the agent: it heals, stops all and exits by itself."""
        self._writer.close()
        for _ in range(round(_GONE_S / 0.01)):
            if self._process.poll() is not None:
                break
            await asyncio.sleep(0.01)
        else:
            processes.kill_group(self._process.pid)
            self._process.wait(1)
        self._pump.cancel()
        await asyncio.gather(self._pump, return_exceptions=True)
