"""{every kind} × {every ending}: one run of each, and what it proves or leaves.

A kind needs nothing here but its class data: what it acts on says where it is put, and settings
without a default get a plain value by their type. Only what that cannot know stands in ``PLACES``.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import get_type_hints

import yaml
from killtools import ROOT, Started

from survive.catalog import Catalog
from survive.chaos import processes
from survive.chaos.heal import PROXY, heal_all
from survive.contracts import Fault, Needs
from survive.units import Duration, Factor, Share

HOLD_S = 2  # the fault is on
AT_S = 1
AFTER_S = 3  # of load after inject
END_S = {"hung-heal": 30.0}  # the ladder's rungs take their time
ENDS_WITHIN_S = 20.0

# Kinds that need another place, or settings, than their class data tells.
PLACES: dict[str, dict[str, object]] = {
    "dependency.expired_certificate": {"service": "retrieval"},  # the one with a certificate
    "gpu.vram_pressure": {"with": {"share": "80%"}},
    "network.bandwidth": {"with": {"kb_per_s": 2}},
    "network.flapping": {"with": {"every": "500ms", "down": "200ms"}},
    "network.limit_data": {"with": {"bytes": 20}},
    "network.slicer": {"with": {"average_bytes": 10, "delay": "20ms"}},
    "protocol.slow_loris": {"with": {"bytes_per_s": 100}},
    "protocol.status": {"with": {"status": 503}},
}
USUAL = frozenset({"network.latency", "node.pause", "gpu.lost", "protocol.stall"})
# Families whose kinds act on what only the reference stack has.
REFERENCE = frozenset({"gpu", "protocol", "dependency", "observability"})
CERTIFIED = frozenset({"dependency.expired_certificate"})  # kinds that need a link with TLS
# Not a matter of the matrix: containers, other people's code, a real GPU, and what needs a target
# made for it (a small disk of its own, a libfaketime to preload).
ELSEWHERE = frozenset(
    {"chaostoolkit", "container", "nvidia", "dcgm", "node.disk_full", "node.clock_skew"}
)

SERVER = """
import asyncio, sys

async def serve(reader, writer):
    last = False
    while not last and await reader.readline():
        while (header := await reader.readline()) not in (b"\\r\\n", b""):
            last = last or header.lower().split() == [b"connection:", b"close"]
        writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\n\\r\\nok")
        await writer.drain()
    writer.close()

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()

asyncio.run(main())
"""

HUNG = '''
import asyncio

from survive.catalog import Catalog

Real = type(Catalog().fault("{kind}"))


class Hung(Real):
    kind = "hung.fault"

    async def heal(self, injection, handle):
        """Never comes back."""
        await asyncio.sleep(3600)
'''

# What happens when the record takes a frame while the file ``raise`` is there.
RAISING = """
import os
from survive.record.writer import RecordWriter
real = RecordWriter.frame
def frame(self, data):
    if os.path.exists({flag!r}):
        raise RuntimeError("a bug of the matrix")
    return real(self, data)
RecordWriter.frame = frame
"""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of the matrix. ``problem`` is empty if all is as it must be."""

    date: str
    kind: str
    ending: str
    exit: int
    left: list[str]
    clean_ms: float  # from the ending to nothing left; of a normal end from the end of survive
    planned_s: float | None
    injected_s: float | None
    proof_before: str
    proof_during: str
    proof_after: str
    heal_ms: float | None
    problem: str

    def line(self) -> str:
        """One JSON line."""
        return json.dumps(asdict(self), ensure_ascii=False)


# ---------------------------------------------------------------------------------- the kinds


def kinds() -> list[str]:
    """Every built-in kind that this host can be asked to do without privileges."""
    catalog = Catalog(plugins=False)
    return [
        kind
        for kind in catalog.fault_kinds()
        if not {kind, kind.partition(".")[0]} & ELSEWHERE
        and not kind.startswith(tuple(f"gpu.{word}" for word in ("nvidia", "real", "dcgm")))
        and not catalog.fault(kind).privileges
    ]


def families() -> dict[str, str]:
    """Family → the kind that stands for it: the usual one, or the first that is held."""
    catalog, found = Catalog(plugins=False), {}
    for kind in sorted(kinds(), key=lambda k: (k not in USUAL, not catalog.fault(k).held)):
        found.setdefault(kind.partition(".")[0], kind)
    return found


def ways() -> dict[Needs, str]:
    """What a fault can act on → the kind that stands for it, of those that stand for a family."""
    catalog, found = Catalog(plugins=False), dict[Needs, str]()
    for kind in sorted(families().values(), key=lambda k: k not in USUAL):
        found.setdefault(catalog.fault(kind).needs, kind)
    return found


def heals() -> list[str]:
    """A kind for each ``heal`` that was written: kinds of one base share it."""
    catalog, found = Catalog(plugins=False), dict[object, str]()
    for kind in sorted(kinds(), key=lambda k: k not in families().values()):
        found.setdefault(type(catalog.fault(kind)).heal, kind)
    return list(found.values())


def _settings(fault: Fault) -> dict[str, object]:
    types = get_type_hints(fault.settings)
    plain: dict[object, object] = {Duration: "200ms", Share: "50%", Factor: "3x", int: 3, float: 1}
    return {
        field.name: plain[types[field.name]]
        for field in fields(fault.settings)
        if field.default is MISSING and field.default_factory is MISSING
    }


def _uses_reference(fault: Fault) -> bool:
    return fault.kind.partition(".")[0] in REFERENCE


def _fault(fault: Fault, name: str, at_s: int) -> dict[str, object]:
    reference = _uses_reference(fault)
    where: dict[str, object]
    if fault.needs is Needs.STAND_IN:
        where = {"service": "inference" if fault.layer == "observability" else "retrieval"}
    elif fault.needs is Needs.LINK:
        where = {"link": "gateway -> inference" if reference else "load -> web"}
    else:
        where = {"service": "inference" if reference else "web"}
    spec = {
        "kind": name,
        "at": f"{at_s}s",
        **where,
        "with": _settings(fault),
        **PLACES.get(fault.kind, {}),
    }
    if fault.held:
        spec["for"] = f"{HOLD_S}s"
    return spec


def _target(fault: Fault, folder: Path) -> str:
    """The name of a target file beside the scenario that allows what the matrix does."""
    targets = folder / "targets"
    targets.mkdir()
    if _uses_reference(fault):
        target = yaml.safe_load((ROOT / "targets" / "reference.yaml").read_text())
        target["links"]["gateway -> retrieval"]["tls"] = fault.kind in CERTIFIED
        (targets / "stack").symlink_to(ROOT / "targets" / "reference")
    else:
        server = folder / "server.py"
        server.write_text(SERVER)
        web = {
            "run": [sys.executable, str(server), "{port}"],
            "replicas": 2,
            "health": {"get": "/health", "within": "10s"},
            "restart": {"after": "100ms"},
        }
        target = {"survive": 1, "driver": "process", "entry": "web", "services": {"web": web}}
    target["allow"] = {"hosts": ["127.0.0.1"], "faults": [fault.kind.partition(".")[0], "hung"]}
    (targets / "stack.yaml").write_text(yaml.safe_dump(target))
    return "stack"


def write_scenario(kind: str, folder: Path, *, hung: bool = False, at_s: int = AT_S) -> Path:
    """A scenario of one fault, in a folder of its own."""
    (folder / ".git").mkdir()  # where the search for a team's own folders ends
    fault = Catalog(plugins=False).fault(kind)
    if hung:
        (folder / "faults").mkdir()
        (folder / "faults" / "hung.py").write_text(HUNG.format(kind=kind))
    get = "/v1/search?q=gpu" if _uses_reference(fault) else "/"
    scenario = {
        "survive": 1,
        "name": "matrix",
        "target": _target(fault, folder),
        "seed": 7,
        "requests": {"get": {"get": get, "timeout": "1s"}},
        "load": {"phases": [{"name": "flat", "rate": "20/s", "for": f"{at_s + AFTER_S}s"}]},
        "faults": {"one": _fault(fault, "hung.fault" if hung else kind, at_s)},
        "objectives": {"answers": {"metric": "success", "min": "1%", "during": "run"}},
    }
    file = folder / "matrix.survive.yaml"
    file.write_text(yaml.safe_dump(scenario, sort_keys=False))
    return file


# -------------------------------------------------------------------------------- the endings


def _signal(*numbers: signal.Signals) -> Callable[[Started], None]:
    def act(run: Started) -> None:
        for number in numbers:
            os.kill(run.process.pid, number)
            time.sleep(0.05 if len(numbers) > 1 else 0)

    return act


def _kill_agent(run: Started) -> None:
    os.kill(run.agent(), signal.SIGKILL)


def _kill_group(run: Started) -> None:
    os.killpg(run.process.pid, signal.SIGKILL)


def _kill_from_ledger(run: Started, *, proxy: bool) -> None:
    """Processes of the target (or the fault proxy), by pid and start time from the ledger."""
    hit = 0
    for name, process in run.story().processes:
        if (name == PROXY) is proxy and name not in {"load", "probe"}:
            hit += processes.send(process.pid, process.start_time, signal.SIGKILL)
    assert hit, "there was nothing to kill"


def _raise(run: Started) -> None:
    (run.folder / "raise").touch()


def _fill_disk(run: Started) -> None:
    """No more room for the ledger, of the agent only: EFBIG where a disk says ENOSPC."""
    size = (run.state / run.run_id / "ledger.ndjson").stat().st_size
    resource.prlimit(run.agent(), resource.RLIMIT_FSIZE, (size, size))


def _fill_record(run: Started) -> None:
    """No more room for the record: of survive only, so that the agent can still do its work."""
    size = run.only("events.ndjson").stat().st_size
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (size, size))


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ends. ``exits`` that are right; ``at``: the event after which ``act`` comes."""

    exits: frozenset[int]
    act: Callable[[Started], None] | None = None
    at: str = "fault_injected"


ENDINGS: dict[str, Ending] = {
    "normal": Ending(frozenset({0, 1, 3})),
    "exception": Ending(frozenset({70}), _raise),
    "sigint": Ending(frozenset({130}), _signal(signal.SIGINT)),
    "sigint-twice": Ending(frozenset({130}), _signal(signal.SIGINT, signal.SIGINT)),
    "sigterm": Ending(frozenset({143}), _signal(signal.SIGTERM)),
    "sighup": Ending(frozenset({130}), _signal(signal.SIGHUP)),
    "kill-run": Ending(frozenset({-9}), _signal(signal.SIGKILL)),
    "kill-agent": Ending(frozenset({3}), _kill_agent),
    "kill-group": Ending(frozenset({-9}), _kill_group),
    "hung-heal": Ending(frozenset({5})),
    # A fault whose target or proxy died under it cannot always be proven healed. 0 only if it was
    # done again to the restarted target, see _problem.
    "target-gone": Ending(frozenset({0, 1, 3, 5}), lambda run: _kill_from_ledger(run, proxy=False)),
    "backend-gone": Ending(frozenset({1, 3, 5}), lambda run: _kill_from_ledger(run, proxy=True)),
    "disk-full": Ending(frozenset({3}), _fill_disk, at="phase_started"),
    "record-full": Ending(frozenset({3}), _fill_record),
}


def applies(kind: str, ending: str) -> bool:
    """A one-shot has no heal to hang; only faults on links have a proxy."""
    fault = Catalog(plugins=False).fault(kind)
    if ending == "hung-heal":
        return fault.held
    return ending != "backend-gone" or fault.needs is Needs.LINK


# ------------------------------------------------------------------------------------ one run


def play(kind: str, ending: str, folder: Path, *, at_s: int = AT_S) -> Cell:
    """One run of one kind, ended in one way."""
    how = ENDINGS[ending]
    file = write_scenario(kind, folder, hung=ending == "hung-heal", at_s=at_s)
    flag = str(folder / "raise")
    run = Started(
        file,
        env={"XDG_STATE_HOME": str(folder / "state")},
        wrapper=RAISING.format(flag=flag) if ending == "exception" else "",
    )
    try:
        run.until(how.at)
        began = time.monotonic()
        if how.act is not None:
            how.act(run)
        code = run.process.wait(END_S.get(ending, ENDS_WITHIN_S))
        if how.act is None or code >= 0:
            began = time.monotonic()  # survive had its say; what is left from here on is too much
        left = run.left(1.0)
        clean_ms = (time.monotonic() - began) * 1000
        return _cell(run, kind, ending, code, [*left, *_not_clean(run)], clean_ms)
    finally:
        run.close()


def _not_clean(run: Started) -> list[str]:
    """What ``survive heal --check`` would find, beyond processes."""
    import asyncio

    before = os.environ.get("XDG_STATE_HOME")
    os.environ["XDG_STATE_HOME"] = str(run.state.parent)
    try:
        found = asyncio.run(heal_all(check=True)).findings
    finally:
        if before is None:
            del os.environ["XDG_STATE_HOME"]
        else:
            os.environ["XDG_STATE_HOME"] = before
    return [finding.line() for finding in found if not finding.gone]


def _cell(
    run: Started, kind: str, ending: str, code: int, left: list[str], clean_ms: float
) -> Cell:
    told = run.told()
    injected = next((e for e in told if e["event"] == "fault_injected"), None)
    looks = {
        stage: [e for e in told if e["event"] == "fault_observed" and e["stage"] == stage]
        for stage in ("before", "during", "after")
    }
    during = [e for e in looks["during"] if e["active"] == "yes"] or looks["during"]
    return Cell(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        kind=kind,
        ending=ending,
        exit=code,
        left=left,
        clean_ms=round(clean_ms, 1),
        planned_s=_seconds(injected, "planned_us"),
        injected_s=_seconds(injected, "began_us"),
        proof_before=_said(looks["before"][-1:]),
        proof_during=_said(during[:1]),
        proof_after=_said(looks["after"][-1:]),
        heal_ms=_heal_ms(told),
        problem=_problem(kind, ending, code, left, run),
    )


def _seconds(event: dict[str, object] | None, key: str) -> float | None:
    return None if event is None else round(int(str(event[key])) / 1e6, 4)


def _said(looks: list[dict[str, object]]) -> str:
    return f"{looks[0]['active']}: {looks[0]['evidence']}" if looks else ""


def _heal_ms(told: list[dict[str, object]]) -> float | None:
    """From the beginning of the first heal to its proof."""
    began = [int(str(e["began_us"])) for e in told if e["event"] == "fault_healed"]
    proven = [int(str(e["t_us"])) for e in told if e["event"] == "heal_proven" and e["proven"]]
    return round((proven[-1] - began[0]) / 1000, 1) if began and proven else None


def _problem(kind: str, ending: str, code: int, left: list[str], run: Started) -> str:
    fault = Catalog(plugins=False).fault(kind)
    goes_along = fault.held and fault.needs is not Needs.LINK  # a link's fault is in the proxy
    if left:
        return f"left: {'; '.join(left)}"
    if code not in ENDINGS[ending].exits:
        wanted = ", ".join(map(str, sorted(ENDINGS[ending].exits)))
        return f"exit {code}, not {wanted}: {run.output()[-600:]}"
    if ending == "disk-full" and "fault_injected" in run.events():
        return "it was injected without a word in the ledger"
    if (
        ending == "target-gone"
        and code == 0
        and goes_along
        and "fault_reinjected" not in run.events()
    ):
        return "exit 0 although the fault went with the target and was not done again"
    return ""
