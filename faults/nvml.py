"""The way to NVML, and who computes on a real NVIDIA card."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import CLOCK_REALTIME, clock_gettime_ns
from typing import Any

from survive.contracts import HandleSpec, Injection
from survive.errors import RefusedError

SAMPLE_US = 1_000_000  # how long ago NVML's samples of a process may be

Who = tuple[int, int]  # pid and start time: a recycled pid is never hit


@contextlib.contextmanager
def card(device: Any) -> Iterator[tuple[Any, Any]]:
    """NVML and its handle of the card. Raises OSError where there is none."""
    try:
        import pynvml
    except ImportError as error:
        raise OSError("nvidia-ml-py is not installed (pip install 'survive[gpu]')") from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise OSError(f"NVML: {error}") from error
    try:
        yield pynvml, pynvml.nvmlDeviceGetHandleByIndex(int(device))
    except pynvml.NVMLError as error:
        raise OSError(f"NVML: {error}") from error
    finally:
        pynvml.nvmlShutdown()


def card_of(injection: Injection) -> contextlib.AbstractContextManager[tuple[Any, Any]]:
    """NVML and the card that the injection names."""
    return card(injection.settings.get("device", 0))


@contextlib.contextmanager
def card_or_refused(kind: str, device: int) -> Iterator[tuple[Any, Any]]:
    """The same, before anything is done: raises RefusedError (6) where there is none."""
    try:
        with card(device) as both:
            yield both
    except OSError as error:
        raise RefusedError(
            f"{kind} has no NVIDIA GPU to act on: {error}",
            hint="gpu.* faults act on a simulated one",
        ) from error


def need_card(kind: str, device: int, victims: Sequence[HandleSpec]) -> None:
    """Raises RefusedError (6), and says why, unless the card and processes beside it are here."""
    if any(victim.driver != "process" for victim in victims):
        raise RefusedError(f"{kind} needs a real card, and processes beside it")
    with card_or_refused(kind, device):
        pass


def sm_use(nvml: Any, it: Any, pids: set[int]) -> int | None:
    """The most that NVML lately saw any of them use of the multiprocessors, in %; None: unknown.

    Wall time, because that is what the driver stamps its samples with.
    """
    since_us = clock_gettime_ns(CLOCK_REALTIME) // 1000 - SAMPLE_US
    try:
        samples = nvml.nvmlDeviceGetProcessUtilization(it, since_us)
    except nvml.NVMLError as error:
        # "not found" = nobody has used it since; anything else says nothing.
        return 0 if getattr(error, "value", None) == nvml.NVML_ERROR_NOT_FOUND else None
    recent = [s.smUtil for s in samples if s.pid in pids and s.timeStamp >= since_us]
    return max(recent, default=0)


def workers(nvml: Any, it: Any, spec: HandleSpec) -> list[Who]:
    """Those of the victim's processes that compute on the card, by NVML."""
    there = {p.pid for p in nvml.nvmlDeviceGetComputeRunningProcesses(it)}
    return sorted(who for who in tree(spec) if who[0] in there)


def tree(spec: HandleSpec) -> set[Who]:
    """The victim's first process, its descendants, and its process group."""
    stats = {pid: fields for pid, fields in _stats() if fields[0] not in "ZXx"}
    root = stats.get(spec.pid)
    if root is not None and int(root[19]) != spec.start_time:
        return set()  # another process has its pid by now
    # Of a victim that is gone, what its group still holds: none of that can be older than it.
    found = {
        pid
        for pid, fields in stats.items()
        if int(fields[2]) == spec.pid and int(fields[19]) >= spec.start_time
    }
    grown = found | ({spec.pid} & stats.keys())
    while grown:
        found |= grown
        grown = {pid for pid, fields in stats.items() if int(fields[1]) in grown} - found
    return {(pid, int(stats[pid][19])) for pid in found}


def started(pid: int) -> int:
    """Its start time in clock ticks since boot; 0 if it is gone."""
    return next((int(fields[19]) for _, fields in _stats(pid)), 0)


def send(who: Who, number: signal.Signals) -> bool:
    """Signal exactly that process; False if it is gone."""
    try:
        fd = os.pidfd_open(who[0])
    except ProcessLookupError:
        return False
    try:
        if started(who[0]) != who[1]:
            return False
        signal.pidfd_send_signal(fd, number)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)


def _stats(*pids: int) -> Iterator[tuple[int, list[str]]]:
    """(pid, fields of /proc/PID/stat from the state on) of those processes, or of all."""
    for name in pids or [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            text = Path(f"/proc/{name}/stat").read_text("ascii", "replace")
            yield name, text[text.rindex(")") + 2 :].split()
