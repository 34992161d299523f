"""What only processes do: programs of one's own, their groups, their logs, their ports."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
from driver_kit import Host, target

from survive.chaos import processes
from survive.contracts import Needs
from survive.errors import HarnessError, RefusedError
from survive.host.driver import TargetUnhealthyError
from survive.scenario.model import Health, Service
from survive.transport import CallFailedError

SERVER = """
import asyncio, json, os, subprocess, sys
port, mode = int(sys.argv[1]), sys.argv[2]
print("starting", mode, flush=True)
if mode == "exits":
    print("no licence found", file=sys.stderr)
    sys.exit(3)
if mode == "deaf":
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if mode in ("forks", "daemon"):
    child = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=mode == "daemon")
    print("child", child.pid, flush=True)

async def serve(reader, writer):
    head = await reader.readuntil(b"\\r\\n\\r\\n")
    path = head.split()[1].decode()
    status = "503 Sick" if mode == "sick" else "200 OK"
    body = json.dumps({"pid": os.getpid(), "port": os.environ["PORT"], "own": os.environ["OWN"],
                       "cwd": os.getcwd(), "hunted": "RUNNER_TRACKING_ID" in os.environ})
    if path == "/die":
        os._exit(9)
    if path == "/burn":
        import time
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
    writer.write(f"HTTP/1.1 {status}\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n{body}".encode())
    await writer.drain()
    writer.close()

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", port)
    async with server:
        await server.serve_forever()
asyncio.run(main())
"""


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host("process", tmp_path)


def own(
    mode: str = "", *, within_us: int = 10_000_000, restart_us: int | None = 200_000
) -> Service:
    return Service(
        "web",
        run=(sys.executable, "-c", SERVER, "{port}", mode),
        health=Health("/", within_us),
        restart_after_us=restart_us,
        env={"OWN": "at {port}"},
    )


def make(host: Host, service: Service) -> None:
    host.make(target({"web": service}, entry="web"))


def log_of(host: Host, name: str = "web-0") -> str:
    return (host.folder / "scratch" / "logs" / f"{name}.log").read_text()


def test_an_own_program_gets_its_port_and_folder(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNNER_TRACKING_ID", "github_x")

    async def main(host: Host) -> None:
        make(host, own())
        await host.driver.start()
        [spec] = host.driver.replicas("web")
        port = spec.address.rpartition(":")[2]
        seen = await host.get(host.driver.entry())
        assert seen["pid"] == spec.pid
        assert (seen["port"], seen["own"]) == (port, f"at {port}")
        assert seen["cwd"] == str(host.folder / "scratch")
        assert seen["hunted"] is False
        assert host.started == [("web-0", spec.pid, spec.start_time)]
        assert spec.start_time == processes.start_time(spec.pid)
        assert os.getpgid(spec.pid) == spec.pid

    host.run(main)


def test_a_program_that_never_gets_healthy(host: Host) -> None:
    async def main(host: Host) -> None:
        make(host, own("sick", within_us=700_000))
        with pytest.raises(TargetUnhealthyError, match=r"web-0 .*status 503") as caught:
            await host.driver.start()
        assert caught.value.last_lines == ["starting sick"]
        [spec] = host.driver.replicas("web")
        assert not processes.exists(spec.pid, spec.start_time)

    host.run(main)


def test_an_early_exit_is_noticed_at_once_with_its_last_lines(host: Host) -> None:
    async def main(host: Host) -> None:
        make(host, own("exits", within_us=60_000_000))
        began = time.monotonic()
        with pytest.raises(TargetUnhealthyError, match="it exited with 3") as caught:
            await host.driver.start()
        assert time.monotonic() - began < 5
        assert caught.value.last_lines == ["starting exits", "no licence found"]

    host.run(main)


def test_a_program_that_does_not_exist_is_refused(host: Host) -> None:
    async def main(host: Host) -> None:
        make(host, Service("web", run=("/no/such/program", "{port}")))
        with pytest.raises(RefusedError, match="cannot start /no/such/program"):
            await host.driver.start()

    host.run(main)


def test_one_that_dies_is_restarted_on_its_port(host: Host) -> None:
    async def main(host: Host) -> None:
        make(host, own())
        await host.driver.start()
        [old] = host.driver.replicas("web")
        with pytest.raises(CallFailedError):
            await host.get(old.address, "/die")
        await host.until(lambda: host.answers(old), 5.0)
        [new] = host.driver.replicas("web")
        assert (await host.get(new.address))["pid"] == new.pid != old.pid
        assert [name for name, *_ in host.started] == ["web-0", "web-0"]

    host.run(main)


def test_stop_ends_a_stopped_process_and_a_deaf_one(host: Host) -> None:
    async def main(host: Host) -> None:
        make(host, own("deaf"))
        await host.driver.start()
        [spec] = host.driver.replicas("web")
        os.kill(spec.pid, signal.SIGSTOP)
        began = time.monotonic()
        await host.driver.stop()
        assert time.monotonic() - began < 3
        assert not processes.exists(spec.pid, spec.start_time)

    host.run(main)


@pytest.mark.parametrize("mode", ["forks", "daemon"])
def test_a_child_is_gone_after_stop(host: Host, mode: str) -> None:
    async def main(host: Host) -> tuple[int, int]:
        make(host, own(mode))
        await host.driver.start()
        child = int(log_of(host).split("child")[1].split()[0])
        began = processes.start_time(child)
        assert processes.exists(child, began)
        await host.driver.stop()
        await host.until(lambda: _is_gone(child, began), 1.0)
        return child, began

    child, began = host.run(main)
    assert not processes.exists(child, began)


async def _is_gone(pid: int, began: int) -> bool:
    return not processes.exists(pid, began)


def test_a_crashed_leader_takes_its_group_along(host: Host) -> None:
    async def main(host: Host) -> None:
        make(host, own("forks"))
        await host.driver.start()
        child = int(log_of(host).split("child")[1].split()[0])
        began = processes.start_time(child)
        [spec] = host.driver.replicas("web")
        os.kill(spec.pid, signal.SIGKILL)
        await host.until(lambda: _is_gone(child, began), 1.0)

    host.run(main)


def test_stop_leaves_others_that_bear_the_run_mark(host: Host) -> None:
    async def main(host: Host) -> None:
        make(host, own())
        await host.driver.start()
        run_id = host.run_id
        helper = processes.spawn(
            [sys.executable, "-c", "import time; time.sleep(60)"], env=os.environ, run_id=run_id
        )
        try:
            await host.sleep(0.2)
            await host.driver.stop()
            assert helper.poll() is None
        finally:
            helper.kill()
            helper.wait()

    host.run(main)


def test_cpu_counts_the_living_and_the_dead(host: Host) -> None:
    async def main(host: Host) -> None:
        make(host, own())
        await host.driver.start()
        before = host.driver.cpu_s()
        [spec] = host.driver.replicas("web")
        await host.get(spec.address, "/burn")
        burnt = host.driver.cpu_s()
        assert burnt - before > 0.15
        await host.driver.open(spec, Needs.REPLICA).kill()
        await host.until(lambda: host.answers(spec), 5.0)
        assert host.driver.cpu_s() > burnt

    host.run(main)


def test_a_start_that_is_cancelled_leaves_nothing(host: Host) -> None:
    async def main(host: Host) -> None:
        make(host, own("sick", within_us=60_000_000))
        starting = asyncio.create_task(host.driver.start())
        await host.until(lambda: _some(host), 5.0)
        await host.sleep(0.1)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        [spec] = host.driver.replicas("web")
        assert not processes.exists(spec.pid, spec.start_time)

    host.run(main)


async def _some(host: Host) -> bool:
    return bool(host.started)


def test_a_stop_during_the_start_wins(host: Host) -> None:
    async def main(host: Host) -> None:
        make(host, own("sick", within_us=60_000_000))
        starting = asyncio.create_task(host.driver.start())
        await host.until(lambda: _some(host), 5.0)
        await host.driver.stop()
        with pytest.raises(TargetUnhealthyError):
            await starting
        assert all(not processes.exists(pid, began) for _, pid, began in host.started)

    host.run(main)


def test_what_the_ledger_does_not_take_does_not_run(host: Host) -> None:
    pids: list[tuple[int, int]] = []

    class FullDisk(list[tuple[str, int, int]]):
        def append(self, entry: tuple[str, int, int]) -> None:
            pids.append(entry[1:])
            raise OSError(28, "No space left on device")

    async def main(host: Host) -> None:
        host.started = FullDisk()
        make(host, own())
        with pytest.raises(OSError, match="No space"):
            await host.driver.start()
        [(pid, began)] = pids
        assert not processes.exists(pid, began)

    host.run(main)


def test_a_port_taken_meanwhile_is_replaced_once(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules[type(host_driver(host)).__module__]
    real = module.free_ports
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        offers = iter([[port]])
        monkeypatch.setattr(module, "free_ports", lambda count: next(offers, None) or real(count))

        async def main(host: Host) -> None:
            make(host, own())
            await host.driver.start()
            [spec] = host.driver.replicas("web")
            assert not spec.address.endswith(f":{port}")
            assert (await host.get(spec.address))["pid"] == spec.pid

        host.run(main)


def host_driver(host: Host) -> object:
    async def main() -> object:
        make(host, own())
        await host.transport.close()  # type: ignore[attr-defined]
        return host.driver

    return asyncio.run(main())


def test_ports_are_distinct_free_and_not_ephemeral(host: Host) -> None:
    module = sys.modules[type(host_driver(host)).__module__]
    ports = module.free_ports(50) + module.free_ports(50)
    assert len(set(ports)) == 100
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(port < low for port in ports)
    with pytest.raises(HarnessError, match="free ports"):
        module.free_ports(100_000)


def test_a_long_log_is_cut_to_its_last_lines(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules[type(host_driver(host)).__module__]
    monkeypatch.setattr(module, "_LOG_LIMIT", 10_000)
    log = tmp_path / "x.log"
    with log.open("ab") as writer:
        for n in range(2_000):
            writer.write(b"line %d\n" % n)
        writer.flush()
        module.trim(log)
        assert log.stat().st_size < 1_000
        writer.write(b"after\n")
    assert module.tail(log)[-3:] == ["line 1998", "line 1999", "after"]
