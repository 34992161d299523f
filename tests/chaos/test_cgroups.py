"""Limits as the kernel states them, both versions of control groups, from known files."""

from __future__ import annotations

import os

import pytest

from survive.chaos.cgroups import Cgroups, Limit, interfaces


def group(folder, lines, files):
    (folder / "proc" / "7").mkdir(parents=True)
    (folder / "proc" / "7" / "cgroup").write_text("\n".join(lines) + "\n")
    for name, text in files.items():
        path = folder / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Cgroups(7, folder / "sys", folder / "proc")


def version_1(folder, **changed):
    lines = ["9:freezer:/docker/x", "4:memory:/docker/x", "2:cpu,cpuacct:/docker/x", "0::/docker/x"]
    at = "cpu,cpuacct/docker/x"
    files = {
        f"{at}/cpu.cfs_quota_us": "20000\n",
        f"{at}/cpu.cfs_period_us": "100000\n",
        f"{at}/cpu.stat": "nr_periods 9\nnr_throttled 4\nthrottled_time 12\n",
        f"{at}/cpuacct.usage": "1500000000\n",
        "memory/docker/x/memory.limit_in_bytes": "67108864\n",
        "memory/docker/x/memory.failcnt": "1\n",
        "memory/docker/x/memory.memsw.failcnt": "2\n",
        "memory/docker/x/memory.usage_in_bytes": "66000000\n",
        "freezer/docker/x/freezer.state": "FROZEN\n",
    }
    return group(folder, lines, {**files, **changed})


def version_2(folder, **changed):
    files = {
        "s/x/cpu.max": "20000 100000\n",
        "s/x/cpu.stat": "usage_usec 1500000\nnr_periods 9\nnr_throttled 4\n",
        "s/x/memory.max": "67108864\n",
        "s/x/memory.current": "66000000\n",
        "s/x/memory.events": "low 0\nhigh 0\nmax 3\noom 0\n",
        "s/x/cgroup.events": "populated 1\nfrozen 1\n",
    }
    return group(folder, ["0::/s/x"], {**files, **changed})


@pytest.mark.parametrize("version", [version_1, version_2])
def test_limits_and_how_often_they_bit(tmp_path, version):
    seen = version(tmp_path)
    assert seen.cpu() == Limit(0.2, 4)
    assert seen.memory() == Limit(64 << 20, 3, 66_000_000)
    assert seen.frozen() is True
    assert seen.used_cpu_s() == 1.5


def test_no_limit_is_none_version_1(tmp_path):
    seen = version_1(
        tmp_path,
        **{
            "cpu,cpuacct/docker/x/cpu.cfs_quota_us": "-1\n",
            "memory/docker/x/memory.limit_in_bytes": "9223372036854771712\n",
            "freezer/docker/x/freezer.state": "THAWED\n",
        },
    )
    assert (seen.cpu(), seen.memory(), seen.frozen()) == (
        Limit(None, 4),
        Limit(None, 3, 66_000_000),
        False,
    )


def test_no_limit_is_none_version_2(tmp_path):
    changed = {"s/x/cpu.max": "max 100000\n", "s/x/memory.max": "max\n"}
    changed["s/x/cgroup.events"] = "populated 1\nfrozen 0\n"
    seen = version_2(tmp_path, **changed)
    assert (seen.cpu(), seen.memory(), seen.frozen()) == (
        Limit(None, 4),
        Limit(None, 3, 66_000_000),
        False,
    )


def test_what_cannot_be_read_is_never_guessed(tmp_path):
    gone = Cgroups(7, tmp_path / "sys", tmp_path / "proc")
    assert (gone.cpu(), gone.memory(), gone.frozen(), gone.used_cpu_s()) == (None, None, None, 0.0)
    assert interfaces(2**22 + 1) is None


def test_the_interfaces_of_this_very_process():
    assert "lo" not in (interfaces(os.getpid()) or [])
