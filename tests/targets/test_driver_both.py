"""What every host must do alike: the same tests on processes and in the virtual loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from driver_kit import Host, stack, target

from survive.contracts import FaultFailedError, Needs, Toxic
from survive.errors import RefusedError
from survive.host.driver import TargetUnhealthyError
from survive.scenario.model import Health, Service
from survive.transport import Broken, CallFailedError, Request

LINK = "front -> leaf"
ENTRY = "load -> front"


@pytest.fixture(params=["virtual", "process"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Host:
    return Host(request.param, tmp_path)


def test_a_stack_starts_is_told_all_and_stops(host: Host) -> None:
    async def main(host: Host) -> None:
        driver = host.make(stack(host.folder))
        await driver.start()
        leaves = driver.replicas("leaf")
        assert [spec.replica_id for spec in leaves] == ["leaf-0", "leaf-1"]
        assert all(spec.pid and spec.token == "the-token" for spec in leaves)
        seen = await host.get(driver.entry(), "/leaves")
        assert [leaf["me"] for leaf in seen] == ["leaf-0", "leaf-1"]
        assert seen[0]["draw"] != seen[1]["draw"]
        env = await host.get(driver.entry(), "/env")
        assert env["LEAVES"] == ",".join(spec.address for spec in leaves)
        assert (env["MY"], env["SURVIVE_KEY"], env["SURVIVE_SEED"]) == ("mine!", "the-key", "7")
        assert "SURVIVE_GPU_TOKEN" not in env
        assert (await host.get(leaves[1].address, "/env"))["SURVIVE_GPU_TOKEN"] == "the-token"
        await driver.stop()
        await driver.stop()
        for spec in [*leaves, *driver.replicas("front")]:
            assert not await driver.open(spec, Needs.REPLICA).exists()
            with pytest.raises(CallFailedError) as caught:
                await host.get(spec.address)
            assert caught.value.how is Broken.REFUSED

    host.run(main)


def test_the_same_seed_draws_the_same_on_both_hosts(tmp_path: Path) -> None:
    async def main(host: Host) -> list[Any]:
        driver = host.make(stack(host.folder))
        await driver.start()
        return [await host.get(spec.address) for spec in driver.replicas("leaf")]

    assert Host("virtual", tmp_path).run(main) == Host("process", tmp_path).run(main)


def test_a_killed_replica_comes_back_after_its_time_as_another(host: Host) -> None:
    async def main(host: Host) -> None:
        driver = host.make(stack(host.folder))
        await driver.start()
        [_, old] = driver.replicas("leaf")
        for _ in range(3):
            await host.get(old.address)
        handle = driver.open(old, Needs.REPLICA)
        assert await handle.exists()
        await handle.kill()
        await host.until(lambda: _gone(handle), 1.0)
        assert not await host.answers(old)
        taken = await host.until(lambda: host.answers(old), 5.0)
        assert taken > 0.15
        [_, new] = driver.replicas("leaf")
        assert (new.pid, new.start_time) != (old.pid, old.start_time)
        assert new.address == old.address
        assert (await host.get(new.address))["n"] <= 2  # it has forgotten all
        assert not await handle.exists()
        await handle.kill()  # the old one: nothing happens
        assert await driver.open(new, Needs.REPLICA).exists()

    host.run(main)


async def _gone(handle: Any) -> bool:
    return not await handle.exists()


def test_a_held_replica_stays_down_until_released(host: Host) -> None:
    async def main(host: Host) -> None:
        driver = host.make(stack(host.folder))
        await driver.start()
        [spec, _] = driver.replicas("leaf")
        driver.hold(spec)
        await driver.open(spec, Needs.REPLICA).kill()
        await host.sleep(1.5)
        assert not await host.answers(spec)
        driver.release(spec)
        driver.release(spec)
        await host.until(lambda: host.answers(spec), 5.0)

    host.run(main)


def test_an_unsupervised_replica_stays_dead_until_released(host: Host) -> None:
    async def main(host: Host) -> None:
        driver = host.make(stack(host.folder, restart_us=None))
        await driver.start()
        [spec, _] = driver.replicas("leaf")
        await driver.open(spec, Needs.REPLICA).kill()
        await host.sleep(0.7)
        assert not await host.answers(spec)
        driver.release(spec)
        await host.until(lambda: host.answers(spec), 5.0)

    host.run(main)


def test_a_paused_replica_accepts_hangs_and_goes_on(host: Host) -> None:
    async def main(host: Host) -> None:
        driver = host.make(stack(host.folder))
        await driver.start()
        [spec, other] = driver.replicas("leaf")
        handle = driver.open(spec, Needs.REPLICA)
        await handle.pause()
        assert await handle.exists()
        with pytest.raises(CallFailedError) as caught:
            await host.get(spec.address, timeout_s=0.4)
        assert caught.value.how is Broken.TIMEOUT
        assert await host.answers(other)
        await handle.resume()
        assert (await host.get(spec.address))["me"] == "leaf-0"
        await handle.pause()
        began = host.clock.now_us()
        await driver.stop()
        assert host.clock.now_us() - began < 3_000_000
        assert not await handle.exists()

    host.run(main)


def test_kill_breaks_a_stream(host: Host) -> None:
    async def main(host: Host) -> None:
        driver = host.make(stack(host.folder))
        await driver.start()
        [spec, _] = driver.replicas("leaf")
        response = await host.transport.call(spec.address, Request("GET", "/stream"), timeout_s=2.0)
        seen = []
        with pytest.raises(CallFailedError) as caught:
            async for chunk in response.chunks():
                seen.append(chunk)
                if len(seen) == 3:
                    await driver.open(spec, Needs.REPLICA).kill()
        await response.close()
        assert caught.value.how in {Broken.RESET, Broken.CLOSED}
        assert seen[:3] == [b"00", b"01", b"02"]

    host.run(main)


def test_an_app_that_fails_before_its_head_is_a_500(host: Host) -> None:
    async def main(host: Host) -> None:
        driver = host.make(stack(host.folder))
        await driver.start()
        response = await host.transport.call(
            driver.entry(), Request("GET", "/raise"), timeout_s=2.0
        )
        assert response.status == 500
        await response.close()

    host.run(main)


def test_only_named_links_are_proxied_and_toxics_bite_there(host: Host) -> None:
    async def main(host: Host) -> None:
        driver = host.make(stack(host.folder), LINK)
        await driver.start()
        [first, second] = driver.listeners(LINK)
        assert driver.listeners(ENTRY) == []
        assert driver.entry() == driver.replicas("front")[0].address
        assert (first.service, first.replica, second.replica) == ("leaf", 0, 1)
        assert [s.address for s in (first, second)] == [s.address for s in driver.replicas("leaf")]
        env = await host.get(driver.entry(), "/env")
        assert env["LEAVES"] == f"{first.via},{second.via}"
        link = driver.open(first, Needs.LINK)
        await link.add(Toxic("sv", "latency", attributes={"latency": 300, "jitter": 0}))
        assert await _timed(host, first.via) >= 0.3
        assert await _timed(host, first.address) < 0.2
        assert await _timed(host, second.via) < 0.2
        assert await _timed(host, driver.entry(), "/leaves") >= 0.3
        await link.remove("sv")
        await link.remove("sv")
        assert await _timed(host, first.via) < 0.2

    host.run(main)


def test_a_link_can_be_cut_and_mended(host: Host) -> None:
    async def main(host: Host) -> None:
        driver = host.make(stack(host.folder), ENTRY)
        await driver.start()
        [spec] = driver.listeners(ENTRY)
        assert driver.entry() == spec.via != spec.address
        link = driver.open(spec, Needs.LINK)
        await link.enable(False)
        with pytest.raises(CallFailedError) as caught:
            await host.get(spec.via)
        assert caught.value.how in {Broken.REFUSED, Broken.RESET}
        assert (await host.get(spec.address))["me"] == "front-0"
        await link.enable(True)
        assert (await host.get(spec.via))["me"] == "front-0"
        with pytest.raises(FaultFailedError):
            await link.add(Toxic("sv", "no-such-toxic"))

    host.run(main)


async def _timed(host: Host, address: str, path: str = "/me") -> float:
    began = host.clock.now_us()
    await host.get(address, path)
    return (host.clock.now_us() - began) / 1e6


def test_an_unset_variable_refuses_and_names_it(host: Host) -> None:
    async def main(host: Host) -> None:
        driver = host.make(stack(host.folder), env={})
        with pytest.raises(RefusedError, match=r"env MY of service front needs .* MINE"):
            await driver.start()

    host.run(main)


def test_an_unknown_link_refuses(host: Host) -> None:
    async def main(host: Host) -> None:
        driver = host.make(stack(host.folder), "front -> nowhere")
        with pytest.raises(RefusedError, match="no link 'front -> nowhere'"):
            await driver.start()

    host.run(main)


def test_a_service_that_never_gets_well_says_so_within_its_time(host: Host) -> None:
    async def main(host: Host) -> None:
        stack(host.folder)
        sick = Service("sick", app="tiny.py:make_app", health=Health("/leaves", 900_000))
        driver = host.make(target({"sick": sick}, entry="sick", folder=host.folder))
        with pytest.raises(TargetUnhealthyError, match=r"sick-0 never became healthy") as caught:
            await driver.start()
        assert "KeyError: 'LEAVES'" in "\n".join(caught.value.last_lines)

    host.run(main)


def test_an_app_that_cannot_be_made_is_told_at_once(host: Host) -> None:
    async def main(host: Host) -> None:
        (host.folder / "bad.py").write_text("def make_app(context):\n    1 / 0\n")
        bad = Service("bad", app="bad.py:make_app", health=Health("/health", 20_000_000))
        driver = host.make(target({"bad": bad}, entry="bad", folder=host.folder))
        began = host.clock.now_us()
        with pytest.raises(TargetUnhealthyError, match="bad-0") as caught:
            await driver.start()
        assert host.clock.now_us() - began < 5_000_000
        assert "ZeroDivisionError" in "\n".join(caught.value.last_lines)

    host.run(main)
