"""Where a kind is played: what it acts on, what it needs of this host, what it may leave there.

A kind needs nothing here but its class data: what it acts on says where it is put, and settings
without a default get a plain value by their type. Only what that cannot know stands in ``STAGES``
and ``SETTINGS``. Every kind of the product has a stage, and ``missing`` says why this host cannot
be one.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import ClassVar, get_type_hints

import docker
import dockertools
import yaml
from cards import DCGMI, SERVER, WORKER, StoredCard, compiled
from cards import Card as FakeCard
from killtools import ROOT, Started

from survive.catalog import Catalog
from survive.chaos import containers, netns, processes
from survive.chaos.ledger import PROXY
from survive.contracts import Fault, Needs
from survive.units import Duration, Factor, Share

# Processes of a target that are no replica: of load and probes, and what holds its network.
_NO_REPLICA = ("load", "probe", "name server", "network of ", PROXY)
LIBRARY = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)

# Settings that their type does not tell, or that must bite within a short run.
SETTINGS: dict[str, dict[str, object]] = {
    "container.cpu": {"cpus": 0.05},
    "container.memory": {"mib": 64},
    "gpu.vram_pressure": {"share": "80%"},
    "network.bandwidth": {"kb_per_s": 2},
    "network.flapping": {"every": "500ms", "down": "200ms"},
    "network.limit_data": {"bytes": 20},
    "network.netem_latency": {"latency": "60ms"},
    "network.slicer": {"average_bytes": 10, "delay": "20ms"},
    "node.clock_skew": {"ahead": "90s"},
    "node.cpu_limit": {"share": "5%"},
    "nvidia.dcgm_report": {"field": 230, "value": 79},
    "nvidia.membw_contention": {"duty": "20%"},
    "nvidia.power_limit": {"limit": "60%"},
    "nvidia.sm_contention": {"duty": "20%"},
    "nvidia.vram_hog": {"share": "40%"},
    "protocol.slow_loris": {"bytes_per_s": 100},
    "protocol.status": {"status": 503},
}
CERTIFIED = frozenset({"dependency.expired_certificate"})  # kinds that need a link with TLS

# Answers whatever it is asked, with the Date of its own clock.
WEB = """
import asyncio, os, signal, sys, time

async def serve(reader, writer):
    last = False
    while not last and await reader.readline():
        while (header := await reader.readline()) not in (b"\\r\\n", b""):
            last = last or header.lower().split() == [b"connection:", b"close"]
        date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
        head = f"HTTP/1.1 200 OK\\r\\ndate: {date}\\r\\ncontent-length: 2\\r\\n\\r\\n"
        writer.write(head.encode() + b"ok")
        await writer.drain()
    writer.close()

async def main():
    server = await asyncio.start_server(serve, sys.argv[1] or None, int(sys.argv[2]))
    await server.serve_forever()

signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # a container's first process has no other
asyncio.run(main())
"""

# An extension of our own for Chaos Toolkit: a flag in a file.
EXTENSION = """
import pathlib

def switch(path, on):
    flag = pathlib.Path(path)
    flag.write_text("on") if on else flag.unlink(missing_ok=True)
    return True

def seen(path):
    return pathlib.Path(path).exists()
"""

# What the line that people are told would call.
NVIDIA_SMI = """#!{python}
import sys
sys.path.append({tests!r})
from pathlib import Path
from cards import StoredCard
card = StoredCard(Path({ledger!r}))
if "-rgc" in sys.argv:
    card.unlock()
else:
    card.set_limit(round(float(sys.argv[sys.argv.index("-pl") + 1]) * 1000))
"""

PYNVML = """
import sys
sys.path.append({tests!r})
from pathlib import Path
from cards import StoredCard, nvml_of
_found = vars(nvml_of(StoredCard(Path({ledger!r}))))
globals().update({{name: _found[name] for name in _found if name.lower().startswith("nvml")}})
"""


@dataclass(frozen=True, slots=True)
class Stage:
    """A small web server with two replicas, and what the others change of it."""

    fault: Fault
    folder: Path

    said: ClassVar[str] = "a small web server"  # on a page, of what a kind was played on
    get: ClassVar[str] = "/"
    clean_s: ClassVar[float] = 1.0  # until nothing may be left (DESIGN §9.3)
    ends_s: ClassVar[float] = 25.0  # until it must have ended, by itself or after an ending
    isolation: ClassVar[str] = ""
    carrier: ClassVar[str] = ""  # what carries a fault, if it is no process or proxy of the run

    @staticmethod
    def missing() -> str:
        """Why this host cannot be one; "" if it can."""
        return ""

    @property
    def privileged(self) -> bool:
        return bool(self.fault.privileges or self.isolation)

    def build(self) -> None:
        """What a run of it needs beside its target, in its own folder; ``close`` undoes it."""
        (self.folder / "server.py").write_text(WEB)

    def env(self) -> dict[str, str]:
        """Variables of survive, and so of all that it starts."""
        return {}

    def service(self) -> dict[str, object]:
        """The one service."""
        return {
            "run": [sys.executable, str(self.folder / "server.py"), "{host}", "{port}"],
            "replicas": 2,
            "health": {"get": "/health", "within": "10s"},
            "restart": {"after": "100ms"},
        }

    def target(self) -> dict[str, object]:
        """The target file, but for what it allows."""
        file = {"survive": 1, "driver": "process", "entry": "web"}
        if self.isolation:
            file["isolation"] = self.isolation
        return {**file, "services": {"web": self.service()}}

    def where(self) -> dict[str, object]:
        """What the scenario says of the place."""
        return {"link": "load -> web"} if self.fault.needs is Needs.LINK else {"service": "web"}

    @property
    def at_s(self) -> float:
        """When it is injected: the looks of some kinds before that take their time."""
        return 2.5 if self.fault.kind == "network.flapping" else 1.0

    def settings(self) -> dict[str, object]:
        """Plain values for settings without a default, and those of SETTINGS."""
        plain: dict[object, object] = {
            Duration: "200ms", Share: "50%", Factor: "3x", int: 3, float: 1,
        }  # fmt: skip
        types = get_type_hints(self.fault.settings)
        needed = [
            field.name
            for field in fields(self.fault.settings)
            if field.default is MISSING and field.default_factory is MISSING
        ]
        given = SETTINGS.get(self.fault.kind, {})
        return {name: plain.get(types[name]) for name in needed} | given

    def end_target(self, run: Started) -> int:
        """Kill its replicas; how many there were."""
        found = [p for name, p in run.story().processes if not name.startswith(_NO_REPLICA)]
        return sum(processes.send(p.pid, p.start_time, signal.SIGKILL) for p in found)

    def left(self, run_id: str) -> list[str]:
        """What of the run is left beside its processes."""
        return []

    def close(self) -> None:
        """Undo ``build``."""


class Reference(Stage):
    """The reference stack."""

    said: ClassVar[str] = "the reference stack"
    get: ClassVar[str] = "/v1/search?q=gpu"

    @property
    def at_s(self) -> float:
        return 2.0  # a look is a whole chat, or several

    def build(self) -> None:
        pass

    def target(self) -> dict[str, object]:
        """Its file as it is checked in, with its services beside it."""
        (self.folder / "targets" / "stack").symlink_to(ROOT / "targets" / "reference")
        target = yaml.safe_load((ROOT / "targets" / "reference.yaml").read_text())
        target["links"]["gateway -> retrieval"]["tls"] = self.fault.kind in CERTIFIED
        target["services"]["inference"]["replicas"] = 2
        return dict(target)

    def where(self) -> dict[str, object]:
        if self.fault.needs is Needs.LINK:
            return {"link": "gateway -> inference"}
        if self.fault.needs is Needs.STAND_IN:
            return {"service": "inference" if self.fault.layer == "observability" else "retrieval"}
        return {"service": "retrieval" if self.fault.kind in CERTIFIED else "inference"}


class Isolated(Stage):
    """Network namespaces: packets."""

    said: ClassVar[str] = "a small web server in network namespaces"
    isolation: ClassVar[str] = "netns"
    carrier: ClassVar[str] = "namespace"

    @staticmethod
    @cache
    def missing() -> str:
        if os.geteuid() != 0:
            return "network namespaces need root"
        tools = ("ip", "tc", "iptables", "unshare", "nsenter", "setpriv")
        absent = [name for name in tools if shutil.which(name) is None]
        return f"no {', '.join(absent)} here" if absent else ""

    def left(self, run_id: str) -> list[str]:
        """Its interface, rules or names in the host's own namespace, from where nothing may be."""
        looks = (["iptables-save"], ["ip", "netns", "list"], ["tc", "qdisc", "show"])
        told = [subprocess.run(argv, capture_output=True, text=True, check=True) for argv in looks]
        mark = netns.link_name(run_id)
        found = [line for look in told for line in look.stdout.splitlines()]
        return [line for line in found if "sv-one" in line or mark in line or run_id in line]


class Netem(Isolated):
    """The same, for what needs a queue that not every kernel has."""

    @staticmethod
    @cache
    def missing() -> str:
        if why := Isolated.missing():
            return why
        packets = Catalog(plugins=False).fault("network.netem_latency")
        why = sys.modules[type(packets).__module__].netem_missing()
        return f"this kernel has no netem queue (sch_netem): {why}" if why else ""


class Limited(Stage):
    """Control groups."""

    @staticmethod
    def missing() -> str:
        return "" if os.geteuid() == 0 else "control groups need root"


class Disk(Stage):
    """A small file system of its own."""

    said: ClassVar[str] = "a small web server beside a tmpfs of 2 MB"

    @staticmethod
    def missing() -> str:
        return "" if os.geteuid() == 0 else "to mount a tmpfs needs root"

    def build(self) -> None:
        super().build()
        self._disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "survive-matrix", str(self._disk)]
        subprocess.run(mount, check=True)

    @property
    def _disk(self) -> Path:
        return self.folder / "disk"

    def settings(self) -> dict[str, object]:
        return {"path": str(self._disk)}

    def left(self, run_id: str) -> list[str]:
        return [str(path) for path in self._disk.iterdir()]

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", str(self._disk)], check=True)


class Skewable(Stage):
    """A server under libfaketime."""

    said: ClassVar[str] = "a small web server under libfaketime"

    @staticmethod
    def missing() -> str:
        return "" if LIBRARY else "no libfaketime here (apt-get install libfaketime)"

    def build(self) -> None:
        super().build()
        self._clock.write_text("+0\n")

    @property
    def _clock(self) -> Path:
        return self.folder / "clock"

    def service(self) -> dict[str, object]:
        env = {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self._clock),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }
        return {**super().service(), "env": env}

    def settings(self) -> dict[str, object]:
        return {**SETTINGS[self.fault.kind], "file": str(self._clock)}

    def left(self, run_id: str) -> list[str]:
        told = self._clock.read_text().strip()
        return [] if told == "+0" else [f"the clock is {told} s ahead"]


class Containers(Stage):
    """The same server in a container, from an image of this very machine."""

    said: ClassVar[str] = "a small web server in containers"
    carrier: ClassVar[str] = "container"
    clean_s: ClassVar[float] = 10.0
    ends_s: ClassVar[float] = 60.0  # a heal that cannot be proven is tried for 10 s on each rung

    @staticmethod
    @cache
    def missing() -> str:
        return "" if dockertools.usable() else "no docker daemon (apt-get install docker.io; root)"

    def build(self) -> None:
        pass

    def target(self) -> dict[str, object]:
        """Its file, with the compose file that it names."""
        work = {"container.cpu": "burn", "container.memory": "read"}.get(self.fault.kind, "")
        service = {
            "image": "survive-reference",
            "command": ["python3", "-c", dockertools.WORKING + WEB, "", "8000"],
            "ports": ["127.0.0.1::8000"],
            "environment": {"WORK": work},
        }
        (self.folder / "compose").mkdir()
        text = yaml.safe_dump({"services": {"web": service}})
        (self.folder / "compose" / "stack.yaml").write_text(text)
        web = {k: v for k, v in self.service().items() if k != "run"}
        return {
            "survive": 1, "driver": "compose", "compose": "stack", "entry": "web",
            "services": {"web": web},
        }  # fmt: skip

    def end_target(self, run: Started) -> int:
        client = docker.APIClient(base_url=self._url, timeout=5, version="auto")
        try:
            ours = {"label": f"{containers.RUN}={run.run_id}"}
            found = [c["Id"] for c in client.containers(filters=ours)]
            for key in found:
                client.kill(key)
        finally:
            client.close()
        return len(found)

    @property
    def _url(self) -> str:
        return dockertools.url_of_host()

    def left(self, run_id: str) -> list[str]:
        return asyncio.run(containers.left(run_id, self._url))


class Card(Stage):
    """A stand-in for an NVIDIA card: a driver in C, and NVML in a file."""

    said: ClassVar[str] = "a stand-in for an NVIDIA card"

    @staticmethod
    def missing() -> str:
        return "" if shutil.which("gcc") else "the stand-in for libcuda needs gcc"

    @property
    def _lib(self) -> Path:
        return self.folder / "lib"

    def build(self) -> None:
        super().build()
        self._lib.mkdir()
        card = StoredCard(self._lib / "driver.txt")
        compiled(self._lib, card.ledger)
        places = {
            "python": sys.executable, "tests": str(ROOT / "tests"), "ledger": str(card.ledger),
        }  # fmt: skip
        (self._lib / "pynvml.py").write_text(PYNVML.format(**places))
        (self._lib / "nvidia-smi").write_text(NVIDIA_SMI.format(**places))
        (self._lib / "nvidia-smi").chmod(0o755)

    def env(self) -> dict[str, str]:
        return {
            "SURVIVE_LIBCUDA": str(self._lib / "libcuda.so.1"),
            "PYTHONPATH": f"{self._lib}:{os.environ.get('PYTHONPATH', '')}",
            "PATH": f"{self._lib}:{os.environ['PATH']}",
        }

    def left(self, run_id: str) -> list[str]:
        card = StoredCard(self._lib / "driver.txt")
        found = [f"pid {pid} holds {n} bytes of the card" for pid, n in sorted(card.living())]
        if card.limit_mw != FakeCard.limit_mw or card.locked_mhz is not None:
            found.append(f"limits of the card: {card.limit_mw} mW, {card.locked_mhz} MHz")
        return found


class Workers(Card):
    """A server whose worker has the card."""

    def build(self) -> None:
        super().build()
        (self.folder / "server.py").write_text(SERVER)
        (self.folder / "worker.py").write_text(WORKER)

    def service(self) -> dict[str, object]:
        worker = [str(self.folder / "worker.py"), str(self._lib / "driver.txt"), "0"]
        server = [sys.executable, "-I", "-S", str(self.folder / "server.py"), "{port}"]
        return {**super().service(), "run": [*server, *worker]}


class Dcgm(Stage):
    """A stand-in for the host engine of DCGM."""

    said: ClassVar[str] = "a stand-in for DCGM's host engine"
    clean_s: ClassVar[float] = 3.0  # what nobody takes back wears off

    @property
    def _bin(self) -> Path:
        return self.folder / "bin"

    def build(self) -> None:
        super().build()
        self._bin.mkdir()
        for name, text in {"engine": "", "told": "", "own": "0"}.items():
            (self._bin / name).write_text(text)
        dcgmi = self._bin / "dcgmi"
        dcgmi.write_text(DCGMI.format(python=sys.executable, folder=str(self._bin)))
        dcgmi.chmod(0o755)

    def env(self) -> dict[str, str]:
        return {"PATH": f"{self._bin}:{os.environ['PATH']}"}

    def left(self, run_id: str) -> list[str]:
        """What a monitor would read now. A value that nobody tells again wears off in 2 s."""
        look = ["dmon", "--host", "localhost", "-i", "0", "-e", "230"]
        said = subprocess.run(
            [str(self._bin / "dcgmi"), *look], capture_output=True, text=True, check=True
        ).stdout.split()
        return [] if said[-1] == "0" else [f"field 230 of DCGM reads {said[-1]}"]


class Extension(Stage):
    """An extension of Chaos Toolkit."""

    said: ClassVar[str] = "an extension of our own"
    clean_s: ClassVar[float] = 5.0  # its import, and its own work, which may take 3 s

    @property
    def _flag(self) -> Path:
        return self.folder / "flag"

    def build(self) -> None:
        super().build()
        (self.folder / "lib").mkdir()
        (self.folder / "lib" / "matrix_extension.py").write_text(EXTENSION)

    def env(self) -> dict[str, str]:
        return {"PYTHONPATH": f"{self.folder / 'lib'}:{os.environ.get('PYTHONPATH', '')}"}

    def where(self) -> dict[str, object]:
        return {}

    def settings(self) -> dict[str, object]:
        def call(name: str, **arguments: object) -> dict[str, object]:
            provider = {"type": "python", "module": "matrix_extension", "func": name}
            return {"provider": {**provider, "arguments": {"path": str(self._flag), **arguments}}}

        verify = {**call("seen"), "tolerance": True}
        acts = {"inject": call("switch", on=True), "verify": verify}
        if self.fault.held:
            return {**acts, "heal": call("switch", on=False)}
        return {**acts, "irreversible": True}

    def left(self, run_id: str) -> list[str]:
        """Of a one-shot the flag stays: it says of itself that nothing undoes it."""
        return [str(self._flag)] if self.fault.held and self._flag.exists() else []


# By kind, else by family, else a plain web server.
STAGES: Mapping[str, type[Stage]] = {
    "chaostoolkit": Extension,
    "container": Containers,
    "dependency": Reference,
    "gpu": Reference,
    "network.dns_fail": Isolated,
    "network.drop": Isolated,
    "network.loss": Isolated,
    "network.netem_latency": Netem,
    "network.reject": Isolated,
    "node.clock_skew": Skewable,
    "node.cpu_limit": Limited,
    "node.disk_full": Disk,
    "nvidia": Card,
    "nvidia.dcgm_report": Dcgm,
    "nvidia.worker_kill": Workers,
    "nvidia.worker_stop": Workers,
    "observability": Reference,
    "protocol": Reference,
}


def stage_of(kind: str) -> type[Stage]:
    """What it is played on."""
    return STAGES.get(kind) or STAGES.get(kind.partition(".")[0]) or Stage


def missing(kind: str) -> str:
    """Why it cannot be played on this host; "" if it can."""
    return stage_of(kind).missing()
