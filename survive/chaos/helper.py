"""``python -I -S helper.py burn CPU,CPU WORKERS LIFETIME_S``, ``memory BYTES LIFETIME_S``,
``cuda HOW DEVICE BYTES DUTY LIBRARY LIFETIME_S`` (see cuda.py) or
``repeat EVERY_S COMMAND ARGUMENT... LIFETIME_S``: what would wear off by itself.

A fault's helper: it takes what its victim would have used. It says ``ready`` once it does, and ends
with its parent, with its group, or by an alarm after its lifetime, whatever comes first.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def burn(cpus: list[int], workers: int, lifetime_s: int) -> None:
    """``workers`` busy processes pinned to each CPU."""
    me = os.getpid()
    for cpu in cpus:
        for _ in range(workers):
            if os.fork() == 0:
                _bounded(me, lifetime_s)
                os.sched_setaffinity(0, {cpu})
                while True:  # until the alarm
                    pass
    _wait()


def memory(size: int) -> None:
    """Pages that are really there, until the end."""
    Path("/proc/self/oom_score_adj").write_text(
        "1000", "ascii"
    )  # if memory runs out it is this process that has to go
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    with mmap.mmap(-1, size, flags=flags):
        _wait()


def repeat(every_s: float, command: list[str]) -> None:
    """Run a command that must succeed, again and again; ends with 1 once it does not."""
    ready = False
    while True:  # until the alarm
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)
        if done.returncode:
            os.write(1, (done.stderr or done.stdout).strip().replace(b"\n", b"; ") + b"\n")
            sys.exit(1)
        if not ready:
            os.write(1, b"ready\n")
        ready = True
        time.sleep(every_s)


def _bounded(parent: int, lifetime_s: int) -> None:
    signal.alarm(lifetime_s)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)  # it died before we asked to die with it


def _wait() -> None:
    os.write(1, b"ready\n")
    while True:  # until the alarm
        signal.pause()


def main(what: str, *rest: str) -> None:
    """See the module."""
    lifetime_s = int(rest[-1])
    signal.alarm(lifetime_s)
    if what == "burn":
        burn([int(cpu) for cpu in rest[0].split(",")], int(rest[1]), lifetime_s)
    elif what == "cuda":
        _bounded(os.getppid(), lifetime_s)
        use = runpy.run_path(str(Path(__file__).with_name("cuda.py")))["use"]
        use(rest[0], int(rest[1]), int(rest[2]), float(rest[3]), rest[4])
    elif what == "repeat":
        _bounded(os.getppid(), lifetime_s)
        repeat(float(rest[0]), list(rest[1:-1]))
    else:
        memory(int(rest[0]))


if __name__ == "__main__":
    main(*sys.argv[1:])
