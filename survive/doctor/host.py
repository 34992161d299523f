"""What this host is: a finding each, none of which takes longer than a second."""

from __future__ import annotations

import asyncio
import os
import platform
import resource
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from survive import __version__
from survive.chaos import netns
from survive.chaos.heal import heal_leftovers
from survive.chaos.ledger import halt_file, state_dir
from survive.chaos.pressure import cpu_group
from survive.contracts import FaultFailedError
from survive.doctor.findings import Finding, Lack, Level
from survive.errors import RefusedError
from survive.host.machine import compiled_lanes, local_ports, wake_noise_us

LEFTOVERS = "leftovers"  # the one that decides the exit code
NOISE_S = 0.2
DOCKER_S = 1.0
LATE_US = 1000  # p99 of wake-ups from where on send lag is the machine's
BUSY_PERCENT = 10.0  # of the last 10 s in which somebody waited
FEW_FILES, FEW_PORTS = 4096, 10_000
LEAST_MEMORY, LEAST_DISK = 512 << 20, 1 << 30  # bytes

PACKAGES = (
    *("locust", "gevent", "hdrhistogram", "numpy", "pydantic", "httptools", "uvicorn"),
    *("docker", "toxiproxy-python", "chaostoolkit", "chaostoolkit-lib"),
)
_PRESSURE = Path("/proc/pressure")
_NVIDIA = Path("/proc/driver/nvidia/version")


def host_findings(docker: Lack, namespaces: Lack) -> list[Finding]:
    """Everything, in the order in which it is shown."""
    timing = wake_ups()  # alone: what is measured is the machine, not our own other questions
    asked: Sequence[Callable[[], Finding]] = (
        *(python, packages, lanes, cores, pressure),
        lambda: timing,
        *(files, ports, memory, disk, state, halted, leftovers, root, control_groups),
        lambda: _either("namespaces", namespaces, "network namespaces can be made"),
        lambda: _either("docker", docker, "a daemon answers"),
        *(toxiproxy, nvidia),
    )
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda ask: ask(), asked))


def no_docker(env: Mapping[str, str]) -> Lack:
    """Why no Docker daemon of this host can be used."""
    from survive.chaos.containers import Engine, engine_url  # late: its library is heavy

    hint = "driver compose and container.* faults need it: start Docker, or set DOCKER_HOST"
    try:
        url = engine_url(env)
        _knock(url.removeprefix("unix://"))
        asyncio.run(Engine(url).ask("docker", lambda client: client.ping(), DOCKER_S))
    except RefusedError as error:
        return Lack(error.message, error.hint)
    except OSError as error:
        return Lack(f"no Docker daemon at {url}: {error.strerror or error}", hint)
    except FaultFailedError as error:
        return Lack(f"no use of the Docker daemon at {url}: {error}", hint)
    return Lack()


def _knock(path: str) -> None:
    """Raises OSError if nobody listens: Docker's client would leave its socket open."""
    with closing(socket.socket(socket.AF_UNIX)) as wire:
        wire.settimeout(DOCKER_S)
        wire.connect(path)


def no_namespaces() -> Lack:
    """Why ``isolation: netns`` cannot be had."""
    why = netns.unwilling()
    return Lack(why, "packet faults need it") if why else Lack()


# ------------------------------------------------------------------------------ what runs


def python() -> Finding:
    """The interpreter, survive, and the system."""
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    told = f"{platform.python_version()}, survive {__version__}, {system}"
    if sys.platform != "linux":
        return Finding("python", Level.NOTE, told, "faults on processes need Linux")
    return Finding("python", Level.OK, told)


def packages() -> Finding:
    """The versions of what a run stands on."""
    found = {name: _version(name) for name in PACKAGES}
    absent = [name for name, told in found.items() if not told]
    if absent:
        hint = f"pip install {' '.join(absent)}"
        return Finding("packages", Level.WRONG, f"not installed: {', '.join(absent)}", hint)
    return Finding("packages", Level.OK, ", ".join(f"{n} {v}" for n, v in found.items()))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def lanes() -> Finding:
    """Who serves ordinary requests."""
    if compiled_lanes():
        return Finding("lanes", Level.OK, "compiled")
    hint = "load costs several times more CPU: install a C compiler, then survive again"
    return Finding("lanes", Level.NOTE, "Python alone", hint)


# ------------------------------------------------------------------------------ the machine


def cores() -> Finding:
    """Those that we may run on, of those that there are."""
    ours, all_of_them = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    told = f"{ours} of {all_of_them}" + (" (by the inherited mask)" if ours < all_of_them else "")
    if ours < 2:
        hint = "harness and target share it: low rates only, or `survive worker` elsewhere"
        return Finding("cores", Level.NOTE, told, hint)
    return Finding("cores", Level.OK, told)


def pressure() -> Finding:
    """Who waits for what, by the kernel."""
    found = {name: _waited_percent(name) for name in ("cpu", "memory", "io")}
    known = {name: share for name, share in found.items() if share is not None}
    if not known:
        hint = "reports cannot say whether others slowed the run down (PSI is off)"
        return Finding("pressure", Level.NOTE, "the kernel does not tell", hint)
    shares = ", ".join(f"{name} {share:.0f} %" for name, share in known.items())
    told = f"somebody waited for {shares} of the last 10 s"
    if max(known.values()) > BUSY_PERCENT:
        hint = "send lag will show it: end what else runs here, or wait"
        return Finding("pressure", Level.NOTE, told, hint)
    return Finding("pressure", Level.OK, told)


def _waited_percent(name: str) -> float | None:
    """``avg10`` of "some"; None if it is not told."""
    try:
        some = (_PRESSURE / name).read_text("ascii").splitlines()[0]
        return float(dict(field.split("=") for field in some.split()[1:])["avg10"])
    except (OSError, ValueError, IndexError, KeyError):
        return None


def wake_ups() -> Finding:
    """How late timers wake us: nothing can be sent with less lag."""
    p50_us, p99_us = wake_noise_us(for_s=NOISE_S)
    clock_ns = time.get_clock_info("monotonic").resolution * 1e9
    told = f"timers are late by p50 {p50_us} µs, p99 {p99_us:,} µs; clock of {clock_ns:.0f} ns"
    if p99_us > LATE_US:
        hint = "no send lag is below it; `survive calibrate` says what that does to percentiles"
        return Finding("wake-ups", Level.NOTE, told, hint)
    return Finding("wake-ups", Level.OK, told)


def files() -> Finding:
    """Open files: one for each lane, and some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    told = f"{_limit(soft)} open, at most {_limit(hard)}"
    if hard != resource.RLIM_INFINITY and hard < FEW_FILES:
        hint = "each lane needs one: raise it (ulimit -Hn), or use --workers"
        return Finding("files", Level.NOTE, told, hint)
    return Finding("files", Level.OK, told)


def _limit(number: int) -> str:
    return "any number" if number == resource.RLIM_INFINITY else f"{number:,}"


def ports() -> Finding:
    """Local ports of outgoing connections."""
    count = local_ports()
    told = f"{count:,} for outgoing connections" if count else "the kernel does not tell"
    if 0 < count < FEW_PORTS:
        hint = "widen net.ipv4.ip_local_port_range for connections that do not stay open"
        return Finding("ports", Level.NOTE, told, hint)
    return Finding("ports", Level.OK, told)


def memory() -> Finding:
    """What is free of it."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        kib = {line.partition(":")[0]: int(line.split()[1]) for line in lines}
        free, total = kib["MemAvailable"] << 10, kib["MemTotal"] << 10
    except (OSError, ValueError, KeyError, IndexError):
        return Finding("memory", Level.OK, "the kernel does not tell")
    told = f"{_size(free)} free of {_size(total)}"
    if free < LEAST_MEMORY:
        return Finding("memory", Level.NOTE, told, "a load worker takes 120 MB; free some")
    return Finding("memory", Level.OK, told)


def disk() -> Finding:
    """Where runs and their private folders are written."""
    places = {"here": Path.cwd(), "for temporary files": Path(tempfile.gettempdir())}
    free = {name: shutil.disk_usage(path).free for name, path in places.items()}
    told = ", ".join(f"{_size(size)} free {name}" for name, size in free.items())
    if min(free.values()) < LEAST_DISK:
        return Finding("disk", Level.NOTE, told, "a run that cannot write ends inconclusive")
    return Finding("disk", Level.OK, told)


def _size(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count >> 20} MiB"


# ------------------------------------------------------------------------------ runs and safety


def state() -> Finding:
    """Where ledgers are written, without which nothing is injected."""
    path = state_dir()
    if writable(path):
        return Finding("state", Level.OK, str(path))
    hint = "no run can begin without a ledger: set XDG_STATE_HOME"
    return Finding("state", Level.WRONG, f"{path} cannot be written", hint)


def writable(path: Path) -> bool:
    """It, or whoever would have to make it, can be written to."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def halted() -> Finding:
    """A standing halt refuses every run."""
    if halt_file().exists():
        return Finding("halt", Level.WRONG, "new runs are refused", "survive halt --clear")
    return Finding("halt", Level.OK, "none")


def leftovers() -> Finding:
    """What dead runs left, by ``heal --check``."""
    result = heal_leftovers(check=True)
    running = f"; {len(result.running)} running" if result.running else ""
    if result.clean:
        return Finding(LEFTOVERS, Level.OK, f"nothing is left of any run{running}")
    left = [finding for finding in result.findings if not finding.gone]
    more = f" and {len(left) - 1} more" if len(left) > 1 else ""
    return Finding(LEFTOVERS, Level.WRONG, f"{left[0].line()}{more}", "survive heal")


# ------------------------------------------------------------------------------ what faults need


def root() -> Finding:
    """Whether we are root."""
    if os.geteuid() == 0:
        return Finding("root", Level.OK, "yes; faults use it only with --allow-privileged")
    hint = "packet faults, CPU limits and limits of a card need it, nothing else does"
    return Finding("root", Level.ABSENT, "no", hint)


def control_groups() -> Finding:
    """Whether we may put a limit on a process."""
    if cpu_group(os.getpid()):
        return Finding("cgroups", Level.OK, "CPU limits can be set")
    hint = "node.cpu_limit needs root, and the cpu controller"
    return Finding("cgroups", Level.ABSENT, "no CPU limit can be set", hint)


def _either(name: str, lack: Lack, told: str) -> Finding:
    if lack:
        return Finding(name, Level.ABSENT, lack.why, lack.hint)
    return Finding(name, Level.OK, told)


def toxiproxy() -> Finding:
    """A server of it is one choice among two."""
    path = shutil.which("toxiproxy-server")
    if path:
        return Finding("toxiproxy", Level.OK, f"{path}; used by `proxy: {{toxiproxy: …}}` only")
    return Finding("toxiproxy", Level.OK, "none; none is needed, survive has a proxy of its own")


def nvidia() -> Finding:
    """The driver, NVML's Python, and DCGM. Whether a card answers, nvidia.* faults say."""
    if not _NVIDIA.exists():
        hint = "nvidia.* faults need it; gpu.* act on simulated GPUs"
        return Finding("nvidia", Level.ABSENT, "no NVIDIA driver", hint)
    told = "; ".join(_parts_of_nvidia())
    if find_spec("pynvml") is None:
        return Finding("nvidia", Level.NOTE, told, "pip install 'survive[gpu]'")
    return Finding("nvidia", Level.OK, told)


def _parts_of_nvidia() -> Iterator[str]:
    words = _NVIDIA.read_text("utf-8", "replace").split()
    yield "driver " + next((word for word in words if word[:1].isdigit() and "." in word), "?")
    yield (
        f"NVML by nvidia-ml-py {_version('nvidia-ml-py') or '?'}"
        if find_spec("pynvml")
        else "nvidia-ml-py is not installed"
    )
    yield "dcgmi" if shutil.which("dcgmi") else "no dcgmi"
