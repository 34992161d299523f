"""What can be done around one process of this host: helpers beside it, limits on it.

Helpers bear the run and the injection in their environment, control groups in their name, so that
whoever holds the ledger finds them. What a limit was before stands in the HandleSpec, which the
ledger has before anything is changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from survive.chaos import processes
from survive.contracts import FaultFailedError, HandleSpec, Injection

FAULT_MARK = "SURVIVE_FAULT"
READY_S = 1.6  # an inject has 2 s
PERIOD_US = 20_000  # of a cpu limit: short, so that a look of 200 ms sees ten of them
_LEAST_US = 1_000  # the kernel's least quota
_CGROUPS = Path("/sys/fs/cgroup")
_POLL_S = 0.01
_HELPER = Path(__file__).with_name("helper.py")
_started: list[subprocess.Popen[bytes]] = []  # kept so that they can be reaped


class ProcessPressure:
    """See survive.contracts.Pressure."""

    def __init__(self, spec: HandleSpec) -> None:
        self._spec = spec

    # -------------------------------------------------------------------- helpers

    async def start_helper(self, name: str, what: Sequence[str], lifetime_s: float) -> None:
        """See Pressure. From the main thread: a helper dies with the thread that started it."""
        argv = [sys.executable, "-I", "-S", str(_HELPER), *what, str(math.ceil(lifetime_s))]
        process = processes.spawn(
            argv,
            env={FAULT_MARK: name},
            run_id=self._spec.run,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        _started.append(process)
        assert process.stdout is not None
        try:
            said = await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), READY_S)
        except BaseException:
            processes.kill_group(process.pid)  # and so the reading thread sees the end
            raise
        if said != b"ready\n":
            processes.kill_group(process.pid)
            raise FaultFailedError(f"the helper did not start: {said.decode(errors='replace')}")

    def helpers(self, name: str) -> list[int]:
        """See Pressure."""
        return [pid for pid, _ in self._helpers(name)]

    async def end_helpers(self, name: str) -> None:
        """See Pressure."""
        for _ in range(100):  # it may be forking
            left = self._helpers(name)
            for pid, began in left:
                processes.send(pid, began, signal.SIGKILL)
            _reap()
            if not left:
                return
            await asyncio.sleep(_POLL_S)
        raise FaultFailedError(f"helpers of {name} do not end")

    def _helpers(self, name: str) -> list[tuple[int, int]]:
        wanted = f"{FAULT_MARK}={name}".encode()
        return [found for found in processes.marked(self._spec.run) if wanted in _environ(found[0])]

    # -------------------------------------------------------------------- open files

    def free_files(self) -> int | None:
        """See Pressure."""
        limit, used = self._soft(), self._files()
        if limit is None or used is None:
            return None
        return limit - sum(number < limit for number in used)

    def exhaust_files(self) -> None:
        """See Pressure.

        The limit becomes the lowest number that is free or an accepted connection's: what is open
        goes on, and what is closed gives nothing back. The hard limit is left alone, so that no
        privilege is needed to undo it.
        """
        files = self._files()
        if files is None:
            raise FaultFailedError(f"{self._spec.replica_id} is gone")
        connections = self._connections()
        kept = {number for number, link in files.items() if link not in connections}
        floor = next(number for number in range(len(kept) + 1) if number not in kept)
        self._set_soft(floor)

    def restore_files(self) -> None:
        """See Pressure."""
        if self._spec.nofile and self._alive():
            with contextlib.suppress(ProcessLookupError):
                self._set_soft(self._spec.nofile)

    def _alive(self) -> bool:
        return processes.exists(self._spec.pid, self._spec.start_time)

    def _soft(self) -> int | None:
        return open_file_limit(self._spec.pid) if self._alive() else None

    def _set_soft(self, limit: int) -> None:
        pid = self._spec.pid
        hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, hard))

    def _files(self) -> dict[int, str] | None:
        """Number → what it is (``socket:[4711]``); None if the process is gone."""
        if not self._alive():
            return None
        files: dict[int, str] = {}
        try:
            for entry in os.scandir(f"/proc/{self._spec.pid}/fd"):
                with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                    files[int(entry.name)] = str(Path(entry.path).readlink())
        except (FileNotFoundError, ProcessLookupError):
            return None
        return files

    def _connections(self) -> set[str]:
        """All TCP sockets of its network namespace that do not listen."""
        found = set()
        for table in ("tcp", "tcp6"):
            path = Path(f"/proc/{self._spec.pid}/net/{table}")
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                for line in path.read_text("ascii").splitlines()[1:]:
                    fields = line.split()
                    if fields[3] != "0A":  # LISTEN
                        found.add(f"socket:[{fields[9]}]")
        return found

    # -------------------------------------------------------------------- cpu limit

    def limit_cpu(self, name: str, cpus: float) -> None:
        """See Pressure."""
        group = _group(self._spec, name)
        quota = max(_LEAST_US, round(cpus * PERIOD_US))
        try:
            group.mkdir(exist_ok=True)
            if (group / "cpu.max").exists():
                (group / "cpu.max").write_text(f"{quota} {PERIOD_US}")
            else:
                (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
                (group / "cpu.cfs_quota_us").write_text(str(quota))
            for pid, _ in processes.group_members(self._spec.pid):
                _move(pid, group)
        except OSError as error:
            raise FaultFailedError(f"control group {group}: {error}") from error

    def unlimit_cpu(self, name: str) -> None:
        """See Pressure."""
        if not self._spec.cgroup:
            return
        group, home = _group(self._spec, name), _hierarchy() / self._spec.cgroup.lstrip("/")
        for _ in range(20):  # a member may fork while we move it
            try:
                for pid in (group / "cgroup.procs").read_text("ascii").split():
                    _move(int(pid), home)
                group.rmdir()
                return
            except FileNotFoundError:
                return
            except OSError as error:
                said = str(error)
        raise FaultFailedError(f"control group {group} cannot be removed: {said}")

    def throttled(self, name: str) -> int | None:
        """See Pressure."""
        group = _group(self._spec, name)
        if not self._alive() or cpu_group(self._spec.pid) != f"/{group.name}":
            return None
        fields = (line.split() for line in (group / "cpu.stat").read_text("ascii").splitlines())
        return next(int(value) for key, value in fields if key == "nr_throttled")

    async def undo(self, name: str) -> None:
        """Whatever that injection may have done."""
        await self.end_helpers(name)
        self.restore_files()
        self.unlimit_cpu(name)


def open_file_limit(pid: int) -> int:
    """The soft limit of a process's open files; 0 if it is gone or not ours."""
    try:
        return resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]
    except (ProcessLookupError, PermissionError):
        return 0


def cpu_group(pid: int) -> str:
    """The path of its control group for cpu; "" if it is gone or we may not change it."""
    root = _hierarchy()
    files = [root / "cgroup.procs", *([] if _old() else [root / "cgroup.subtree_control"])]
    if not all(os.access(file, os.W_OK) for file in files):
        return ""
    if not _old() and "cpu" not in files[1].read_text("ascii").split():
        return ""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text("utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    wanted = "cpu" if _old() else ""
    groups = (line.split(":", 2) for line in lines)
    return next((group for _, names, group in groups if wanted in names.split(",")), "")


def undo_by_hand(injection: Injection) -> str:
    """The shell line that undoes a fault of this file; "" for any other."""
    spec = injection.handle
    if line := _card_by_hand(injection):
        return line
    if injection.kind in {"node.cpu", "node.memory"} or injection.kind.startswith("nvidia."):
        mark = shlex.quote(f"{FAULT_MARK}={injection.id}")
        return f"grep -lza {mark} /proc/[0-9]*/environ | cut -d/ -f3 | xargs -r kill -9"
    if injection.kind == "node.fd_exhaustion":
        return f"prlimit --pid {spec.pid} --nofile={spec.nofile}:"
    if injection.kind == "node.cpu_limit":
        group, home = _group(spec, injection.id), _hierarchy() / spec.cgroup.lstrip("/")
        return (
            f"for p in $(cat {group}/cgroup.procs); do echo $p > {home}/cgroup.procs; done; "
            f"rmdir {group}"
        )
    if injection.kind == "node.disk_full":
        path = Path(str(injection.settings.get("path", ""))) / fill_name(injection)
        return f"rm -f {shlex.quote(str(path))}"
    if injection.kind == "node.clock_skew":
        return f"echo +0 > {shlex.quote(str(injection.settings.get('file', '')))}"
    return ""


def _card_by_hand(injection: Injection) -> str:
    """The faults on a real card that no helper carries; "" for any other."""
    settings = injection.settings
    device = int(str(settings.get("device", 0)))
    workers = settings.get("workers")
    if injection.kind == "nvidia.worker_stop" and isinstance(workers, list):
        pids = [str(worker[0]) for worker in workers if isinstance(worker, list)]
        return f"kill -CONT -- -{injection.handle.pid} {' '.join(pids)}"
    if injection.kind == "nvidia.power_limit":
        watts = float(str(settings["before_mw"])) / 1000
        return f"nvidia-smi -i {device} -pl {watts:g}"
    if injection.kind == "nvidia.locked_clocks":
        return f"nvidia-smi -i {device} -rgc"
    return ""


def fill_name(injection: Injection) -> str:
    """The file of ``node.disk_full``; the fault itself says the same."""
    return f"sv-{injection.handle.run}-{_plain(injection.id)}.fill"


def _old() -> bool:
    """Version 1 of control groups has a hierarchy for cpu alone."""
    return (_CGROUPS / "cpu" / "tasks").exists()


def _hierarchy() -> Path:
    return _CGROUPS / "cpu" if _old() else _CGROUPS


def _group(spec: HandleSpec, name: str) -> Path:
    """At the root of its hierarchy: a group of version 2 that has processes has no children."""
    return _hierarchy() / f"sv-{spec.run}-{_plain(name)}"


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", name)


def _move(pid: int, group: Path) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
        (group / "cgroup.procs").write_text(str(pid))


def _environ(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []


def _reap() -> None:
    for process in list(_started):
        if process.poll() is not None:
            if process.stdout is not None:
                process.stdout.close()
            _started.remove(process)
