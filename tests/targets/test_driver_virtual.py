from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from driver_kit import Host, stack, target

from survive.contracts import Needs
from survive.errors import RefusedError
from survive.scenario.model import Service


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host("virtual", tmp_path)


@pytest.mark.parametrize(
    "service", [Service("x", run=("true",)), Service("x", url="http://127.0.0.1:1")]
)
def test_only_apps_run_virtually(host: Host, service: Service) -> None:
    async def main(host: Host) -> None:
        driver = host.make(target({"x": service}, entry="x"))
        with pytest.raises(RefusedError, match="service x cannot run virtually"):
            await driver.start()

    host.run(main)


def test_a_missing_file_is_refused(host: Host) -> None:
    async def main(host: Host) -> None:
        app = Service("x", app="gone.py:make_app")
        driver = host.make(target({"x": app}, entry="x", folder=host.folder))
        with pytest.raises(RefusedError, match=r"no file .*gone\.py"):
            await driver.start()

    host.run(main)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\ny = 1 / 0\n", r"broken\.py:2 cannot be loaded: ZeroDivisionError"),
        ("x = 1\n\ndef (:\n", r"broken\.py:3 cannot be loaded: SyntaxError"),
        ("import no_such_module_of_ours\n", r"broken\.py:1 cannot be loaded: ModuleNotFoundError"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_refused_and_no_bug_of_ours(
    host: Host, text: str, said: str
) -> None:
    (host.folder / "broken.py").write_text(text)

    async def main(host: Host) -> None:
        app = Service("x", app="broken.py:make_app")
        driver = host.make(target({"x": app}, entry="x", folder=host.folder))
        with pytest.raises(RefusedError, match=said):
            await driver.start()

    host.run(main)


def test_restart_takes_exactly_its_time(host: Host) -> None:
    async def main(host: Host) -> None:
        driver = host.make(stack(host.folder, restart_us=3_000_000))
        await driver.start()
        [spec, _] = driver.replicas("leaf")
        await host.clock.sleep_until(host.clock.now_us() + 1_000_000)
        await driver.open(spec, Needs.REPLICA).kill()
        await host.until(lambda: host.answers(spec), 5.0)
        [again, _] = driver.replicas("leaf")
        assert again.start_time == spec.start_time + 1_000_000 + 3_000_000
        assert again.pid == 4  # after leaf-0, leaf-1 and front-0

    host.run(main)


def test_boots_never_reach_the_ledger(host: Host) -> None:
    async def main(host: Host) -> None:
        await host.make(stack(host.folder)).start()
        assert host.started == []

    host.run(main)


def test_minutes_of_faults_are_the_same_twice_and_quick(tmp_path: Path) -> None:
    async def main(host: Host) -> list[Any]:
        driver = host.make(stack(host.folder), "front -> leaf")
        await driver.start()
        seen: list[Any] = []

        async def client() -> None:
            for _ in range(100):
                try:
                    seen.append((host.clock.now_us(), await host.get(driver.entry(), "/leaves")))
                except Exception as error:
                    seen.append((host.clock.now_us(), repr(error)))
                await host.sleep(6)

        clients = [asyncio.create_task(client()) for _ in range(2)]
        for _ in range(6):
            await host.sleep(60)
            [spec, _] = driver.replicas("leaf")
            handle = driver.open(spec, Needs.REPLICA)
            await handle.pause()
            await host.sleep(10)
            await handle.resume()
            await host.sleep(20)
            await handle.kill()
        await asyncio.gather(*clients)
        return seen

    began = time.monotonic()
    first, second = (Host("virtual", tmp_path).run(main) for _ in range(2))
    assert len(first) == 200
    assert first == second
    assert any(isinstance(answer, str) for _, answer in first)
    assert time.monotonic() - began < 20
