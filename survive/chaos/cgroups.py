"""What the kernel itself says of a container's limits: the channel of proof, docker not asked.

Both versions of control groups. A process names its groups (/proc/<pid>/cgroup), so nothing is
remembered and nothing of docker's own naming is relied on. Needs to see the host's pids and
/sys/fs/cgroup; what cannot be read is None, never a guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_PROC = Path("/proc")
_NO_LIMIT = 1 << 60  # version 1 writes "none" as the largest multiple of a page


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit in force (None = none), and how often the kernel has held the group back by it.

    ``used``: bytes in use, of memory only. Version 1 of control groups on recent kernels (seen on
    6.18) counts no hits of memory limits, so that use at the limit is the other sign.
    """

    value: float | None
    hits: int
    used: int = 0


@dataclass(frozen=True, slots=True)
class Cgroups:
    """The control groups of one process. The folders are arguments for tests only."""

    pid: int
    root: Path = _ROOT
    proc: Path = _PROC

    def frozen(self) -> bool | None:
        """No task of the group runs: docker's pause."""
        old = self._read("freezer", "freezer.state")
        if old is not None:
            return old.strip() == "FROZEN"
        events = _pairs(self._read("", "cgroup.events"))
        return events["frozen"] == 1 if "frozen" in events else None

    def cpu(self) -> Limit | None:
        """CPUs; hits = periods in which it wanted more than its share."""
        hits = _pairs(self._read("cpu", "cpu.stat") or self._read("", "cpu.stat"))
        quota, period = (
            self._read("cpu", "cpu.cfs_quota_us"),
            self._read("cpu", "cpu.cfs_period_us"),
        )
        if quota is None or period is None:
            quota, _, period = (self._read("", "cpu.max") or "").partition(" ")
        if not quota.strip() or not period.strip() or "nr_throttled" not in hits:
            return None
        limited = quota.strip() not in {"-1", "max"}
        return Limit(int(quota) / int(period) if limited else None, hits["nr_throttled"])

    def memory(self) -> Limit | None:
        """Bytes; hits = how often an allocation met the limit."""
        limit, hits = self._read("memory", "memory.limit_in_bytes"), 0
        used = self._read("memory", "memory.usage_in_bytes") or self._read("", "memory.current")
        if limit is not None:
            # Memory with swap is charged first: a limit on both is met there.
            files = ("memory.failcnt", "memory.memsw.failcnt")
            hits = sum(int(self._read("memory", name) or 0) for name in files)
        else:
            limit = self._read("", "memory.max")
            hits = _pairs(self._read("", "memory.events")).get("max", 0)
        if limit is None:
            return None
        limited = limit.strip() != "max" and int(limit) < _NO_LIMIT
        return Limit(int(limit) if limited else None, hits, int(used or 0))

    def used_cpu_s(self) -> float:
        """CPU seconds of the whole group; 0.0 if unknown."""
        old = self._read("cpuacct", "cpuacct.usage")
        if old is not None:
            return int(old) / 1e9
        return _pairs(self._read("", "cpu.stat")).get("usage_usec", 0) / 1e6

    def _read(self, controller: str, name: str) -> str | None:
        """A file of the group that has the controller; "" = version 2."""
        for folder, controllers, group in self._groups():
            if controller in controllers:
                try:
                    return (self.root / folder / group.lstrip("/") / name).read_text("ascii")
                except OSError:
                    continue
        return None

    def _groups(self) -> list[tuple[str, list[str], str]]:
        """(folder of the hierarchy, its controllers, path of the group)."""
        try:
            lines = (self.proc / str(self.pid) / "cgroup").read_text("utf-8").splitlines()
        except OSError:
            return []
        fields = (line.split(":", 2) for line in lines)
        return [(names, names.split(","), group) for _, names, group in fields]


def interfaces(pid: int) -> list[str] | None:
    """Network interfaces of a process's namespace but loopback; None if it is gone."""
    try:
        lines = (_PROC / str(pid) / "net" / "dev").read_text("utf-8").splitlines()
    except OSError:
        return None
    names = (line.partition(":")[0].strip() for line in lines if ":" in line)
    return [name for name in names if name != "lo"]


def _pairs(text: str | None) -> dict[str, int]:
    """``name number`` lines."""
    fields = (line.split() for line in (text or "").splitlines())
    return {field[0]: int(field[1]) for field in fields if len(field) == 2}
