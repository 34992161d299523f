"""A worker in a network of its own is cut off: its part has one owner at any time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from loadtools import Server, load_process, make_kind, make_plan, planned, raw_server

from survive.record.samples import Outcome, Series
from survive.units import SECOND

HERE, THERE, PORT = "10.213.77.1", "10.213.77.2", 5557


def missing() -> str:
    """What this host lacks; "" if it can."""
    if os.geteuid() != 0:
        return "not root"
    absent = [tool for tool in ("ip", "unshare", "nsenter") if shutil.which(tool) is None]
    if absent:
        return f"no {', '.join(absent)}"
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    return "" if tried.returncode == 0 else "may not make namespaces"


pytestmark = [pytest.mark.live, pytest.mark.skipif(bool(missing()), reason=missing())]


def ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True)


@pytest.fixture
def namespace() -> Iterator[int]:
    """Pid of a process whose network is joined to ours by one pair of interfaces."""
    holder = subprocess.Popen(["unshare", "--net", "sleep", "60"])
    link = f"svw{os.getpid() % 10_000}"
    inside = ["nsenter", "-t", str(holder.pid), "-n", "ip"]
    try:
        own = Path("/proc/self/ns/net").readlink()
        while Path(f"/proc/{holder.pid}/ns/net").readlink() == own:
            assert holder.poll() is None
        ip("link", "add", link, "type", "veth", "peer", "name", "svw0", "netns", str(holder.pid))
        ip("addr", "add", f"{HERE}/30", "dev", link)
        ip("link", "set", link, "up")
        subprocess.run([*inside, "addr", "add", f"{THERE}/30", "dev", "svw0"], check=True)
        subprocess.run([*inside, "link", "set", "svw0", "up"], check=True)
        yield holder.pid
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("link", "del", link)
        holder.kill()
        holder.wait()


def test_a_worker_that_is_cut_off_is_replaced_and_leaves(tmp_path: Path, namespace: int) -> None:
    asyncio.run(_cut_off(tmp_path, namespace))


async def _cut_off(folder: Path, holder: int) -> None:
    server = Server()
    kinds = [make_kind(timeout_us=2 * SECOND)]
    plan = make_plan(kinds, rps=200, for_us=7 * SECOND)
    args = ("--expect", "2", "--bind", f"{HERE}:{PORT}")
    async with (
        raw_server(server.serve, HERE) as address,
        load_process(folder, plan, kinds, address, args=args) as (load, listening),
    ):
        worker = [sys.executable, "-m", "survive.load.worker", HERE, str(PORT), "30"]
        near = await asyncio.create_subprocess_exec(*worker)
        far = await asyncio.create_subprocess_exec("nsenter", "-t", str(holder), "-n", *worker)
        try:
            async with asyncio.timeout(40):
                await load.ready.wait()
                load.start()
                await asyncio.sleep(1.5)
                cut = ["nsenter", "-t", str(holder), "-n", "ip", "link", "set", "svw0"]
                subprocess.run([*cut, "down"], check=True)  # noqa: ASYNC221 - milliseconds
                await asyncio.sleep(3.0)
                subprocess.run([*cut, "up"], check=True)  # noqa: ASYNC221
                assert await far.wait() == 143  # it came back, or heard nothing for too long
                assert await load.process.wait() == 0
                await listening
                assert await near.wait() == 0
        finally:
            for process in (near, far):
                if process.returncode is None:
                    process.kill()
                await process.wait()
    tally = load.tally
    tally.assert_conserved(planned(plan))
    lost = tally.n(Series.LATENCY, Outcome.LOST)
    # Half the rate, for at most: a second unreported, two of silence, the notice, slow ticks.
    assert 0 < lost <= 100 * 4.0
    assert 0 < server.heard <= planned(plan)  # nothing was ever sent twice
    assert tally.n(Series.SEND_LAG) == planned(plan) - lost
