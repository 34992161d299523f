"""Network faults bite, are seen by their effect alone, and are seen to be gone."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from survive.catalog import Catalog
from survive.chaos.toxiproxy import ProxyLink, ProxyServer
from survive.clock import LoopClock
from survive.contracts import Active, FaultFailedError, HandleSpec, Injection
from survive.host.sockets import SocketTransport
from survive.units import Duration, UnitError

LATENCY = Catalog().fault("network.latency")
DOWN = Catalog().fault("network.down")


class Service:
    """A healthy HTTP service whose every answer can be held or broken."""

    def __init__(self):
        self.delay_s = 0.0
        self.cuts = False
        self.status = 200

    async def handle(self, reader, writer):
        try:
            while not self.cuts:
                await reader.readuntil(b"\r\n\r\n")
                await asyncio.sleep(self.delay_s)
                writer.write(b"HTTP/1.1 %d X\r\ncontent-length: 2\r\n\r\nok" % self.status)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # its caller left, or the test ended while it waited
        finally:
            writer.close()


class Stand:
    """A service behind two links of an embedded fault proxy."""

    def __init__(self, service, links):
        self.service = service
        self.link, self.other = links


@contextlib.asynccontextmanager
async def stand(tmp_path):
    service = Service()
    behind = await asyncio.start_server(service.handle, "127.0.0.1", 0)
    address = "{}:{}".format(*behind.sockets[0].getsockname())
    transport = SocketTransport()
    proxy = await ProxyServer.start("run-2", lambda *_: None, tmp_path / "log")
    try:
        specs = [
            HandleSpec("process", "s", n, address, link="a -> s", proxy=proxy.api,
                       via=await proxy.create(f"s-{n}", address), proxy_name=f"s-{n}")
            for n in range(2)
        ]  # fmt: skip
        links = [ProxyLink(spec, LoopClock(0.0), transport) for spec in specs]
        yield Stand(service, links)
    finally:
        await proxy.stop()
        await transport.close()
        behind.close()
        await asyncio.sleep(0.02)


def planned(fault, link, **settings):
    return Injection("net#1", "net", fault.kind, settings, link.spec, 0, 1_000_000)


async def active(fault, injection, link):
    return (await fault.observe(injection, link, None)).active


@pytest.mark.parametrize(("fault", "settings"), [
    (LATENCY, {"latency": "120ms", "jitter": "30ms"}), (DOWN, {})])  # fmt: skip
def test_it_bites_is_seen_and_is_healed_and_the_other_link_is_untouched(tmp_path, fault, settings):
    async def test():
        async with stand(tmp_path) as s:
            injection = planned(fault, s.link, **settings)
            beside = planned(fault, s.other, **settings)
            assert await active(fault, injection, s.link) is Active.NO
            await fault.heal(injection, s.link)  # legal if inject never ran
            await fault.inject(injection, s.link)
            for _ in range(2):
                assert await active(fault, injection, s.link) is Active.YES
            assert await active(fault, beside, s.other) is Active.NO
            assert await fault.round_trip(beside, s.other)
            await fault.heal(injection, s.link)
            await fault.heal(injection, s.link)
            assert await active(fault, injection, s.link) is Active.NO
            assert await fault.round_trip(injection, s.link)

    asyncio.run(test())


@pytest.mark.parametrize(("fault", "settings"), [(LATENCY, {"latency": "100ms"}), (DOWN, {})])
def test_a_dead_service_proves_nothing(tmp_path, fault, settings):
    async def test():
        async with stand(tmp_path) as s:
            injection = planned(fault, s.link, **settings)
            s.service.cuts = True
            assert await active(fault, injection, s.link) is Active.UNKNOWN
            assert not await fault.round_trip(injection, s.link)

    asyncio.run(test())


@pytest.mark.alone
def test_the_difference_is_measured_not_the_setting(tmp_path):
    async def test():
        async with stand(tmp_path) as s:
            await LATENCY.inject(planned(LATENCY, s.link, latency="60ms"), s.link)
            for asked, seen in (("60ms", Active.YES), ("90ms", Active.YES), ("300ms", Active.NO)):
                look = await LATENCY.observe(planned(LATENCY, s.link, latency=asked), s.link, None)
                assert look.active is seen
                assert 55_000 <= look.value < 110_000

    asyncio.run(test())


def test_a_slow_service_is_no_slow_link(tmp_path):
    async def test():
        async with stand(tmp_path) as s:
            s.service.delay_s = 0.25
            injection = planned(LATENCY, s.link, latency="200ms")
            assert await active(LATENCY, injection, s.link) is Active.NO
            await LATENCY.inject(injection, s.link)
            assert await active(LATENCY, injection, s.link) is Active.YES

    asyncio.run(test())


@pytest.mark.alone
def test_a_call_that_is_given_up_counts_as_late_only_if_that_shows_it(tmp_path):
    async def test():
        async with stand(tmp_path) as s:
            await LATENCY.inject(planned(LATENCY, s.link, latency="5s"), s.link)
            injection = planned(LATENCY, s.link, latency="100ms")  # so it waits for 700 ms
            began = time.monotonic()
            assert await active(LATENCY, injection, s.link) is Active.YES
            assert time.monotonic() - began < 1
            s.service.delay_s = 0.68  # around the link nearly as long as one waits
            assert await active(LATENCY, injection, s.link) is Active.UNKNOWN

    asyncio.run(test())


def test_an_answer_that_is_not_200_is_no_cut_link_and_no_round_trip(tmp_path):
    async def test():
        async with stand(tmp_path) as s:
            s.service.status = 503
            injection = planned(DOWN, s.link)
            assert await active(DOWN, injection, s.link) is Active.NO
            assert not await DOWN.round_trip(injection, s.link)
            await DOWN.inject(injection, s.link)
            assert await active(DOWN, injection, s.link) is Active.YES

    asyncio.run(test())


@pytest.mark.parametrize("fault", [LATENCY, DOWN])
def test_inject_without_a_proxy_fails(tmp_path, fault):
    async def test():
        async with stand(tmp_path) as s:
            link = ProxyLink(
                HandleSpec("process", "s", 0, s.link.spec.address, via="127.0.0.1:9",
                           proxy="127.0.0.1:9", proxy_name="s-0"),
                s.link.clock, s.link.transport)  # fmt: skip
            with pytest.raises(FaultFailedError):
                await fault.inject(planned(fault, link, latency="50ms"), link)

    asyncio.run(test())


@pytest.mark.parametrize(("latency", "jitter"), [
    (500, 0), (1500, 0), (300_000, 150_000), (300_000, 500), (0, 0)])  # fmt: skip
def test_settings_that_could_not_be_put_on_or_proven_are_refused(latency, jitter):
    with pytest.raises(UnitError):
        LATENCY.settings(Duration(latency), Duration(jitter))


@pytest.mark.parametrize("fault", [LATENCY, DOWN])
def test_all_listeners_of_the_link_are_hit_and_the_class_says_what_it_shows(fault):
    victims = [HandleSpec("process", "s", n, "127.0.0.1:9") for n in range(3)]
    assert fault.preflight(None, victims) == victims
    assert fault.preflight(None, []) == []
    assert fault.certifies and fault.does_not_certify and fault.held
