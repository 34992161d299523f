"""Processes that must not outlive the run: named by pid *and* start time, ended with their group.

Every process that we start dies with its parent (PDEATHSIG), leads a process group of its own, and
carries ``SURVIVE_RUN`` in its environment, so that whatever it left behind can be found and named.
Linux only, as are faults on processes.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

RUN_MARK = "SURVIVE_RUN"
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the thread that forked it ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def outlive_parent() -> None:
    """Take back die_with_parent, of this very process."""
    _libc.prctl(_PR_SET_PDEATHSIG, 0)


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    run_id: str,
    cwd: Path | None = None,
    stdout: IO[bytes] | int | None = None,
    stderr: IO[bytes] | int | None = None,
    stdin: int = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a process that dies with this one. Raises OSError if it cannot be started.

    ``preexec_fn`` is safe here: the caller is a single-threaded asyncio process.
    """
    return subprocess.Popen(
        list(argv),
        env={**env, RUN_MARK: run_id},
        cwd=cwd,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        pass_fds=tuple(pass_fds),
        process_group=0,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - the docstring says why it is safe
    )


def _stat(pid: int) -> list[str]:
    """Fields of /proc/<pid>/stat from the state (field 3) on; [] if the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []
    return text[text.rindex(")") + 2 :].split()


def start_time(pid: int) -> int:
    """Clock ticks since boot at which the process began; 0 if it is gone."""
    fields = _stat(pid)
    return int(fields[19]) if fields else 0


def session(pid: int) -> int:
    """Id of the session that it belongs to; 0 if it is gone."""
    fields = _stat(pid)
    return int(fields[3]) if fields else 0


def state(pid: int, started: int) -> str:
    """``R S D T t Z X ...`` of exactly that process; "" if it is gone or the pid is another's."""
    fields = _stat(pid)
    return fields[0] if fields and int(fields[19]) == started else ""


def exists(pid: int, started: int) -> bool:
    """That very process is there and is no zombie."""
    return state(pid, started) not in {"", "Z", "X", "x"}


def cpu_s(pid: int) -> float:
    """User + system seconds of a process and its waited-for children; 0.0 if gone."""
    fields = _stat(pid)
    ticks = sum(int(field) for field in fields[11:15]) if fields else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def family_cpu_s(pid: int) -> float:
    """The same with the children that still run."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:
        children = []
    return cpu_s(pid) + sum(cpu_s(int(child)) for child in children)


def boot_id() -> str:
    """Names this boot of this host."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def send(pid: int, started: int, number: signal.Signals) -> bool:
    """Signal exactly that process; False if it is gone (which is success for kill and heal).

    A pidfd closes the gap between looking and signalling.
    """
    try:
        fd = os.pidfd_open(pid)
    except (ProcessLookupError, OSError):
        return False
    try:
        if start_time(pid) != started:
            return False
        signal.pidfd_send_signal(fd, number)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)


def kill_group(pid: int) -> None:
    """SIGKILL every process of the group that ``pid`` led; none left is success."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def marked(run_id: str) -> list[tuple[int, int]]:
    """(pid, start time) of every process that carries the run's mark, this one excluded."""
    wanted = f"{RUN_MARK}={run_id}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environ = (entry / "environ").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        pid = int(entry.name)
        began = start_time(pid)
        if wanted in environ and exists(pid, began):
            found.append((pid, began))
    return found


def group_members(pgid: int) -> list[tuple[int, int]]:
    """(pid, start time) of every live process in a group: what a dead leader left behind."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields and int(fields[2]) == pgid and fields[0] not in "ZXx":
                found.append((int(entry.name), int(fields[19])))
    return found
