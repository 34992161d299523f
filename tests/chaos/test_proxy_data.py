"""Bytes through the fault proxy: whole, in order, as late as asked, and cut when it is closed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time

import pytest
from proxytools import REAL, call, echo, latency, leave, ping, proxied, server, upstream

embedded_only = pytest.mark.skipif(bool(REAL), reason="on purpose unlike Toxiproxy")


def with_proxy(test, handle=echo, seed=0):
    """Run ``test(api, name, listen)`` on a proxy in front of a server for ``handle``."""

    async def run(api):
        address, behind = await upstream(handle)
        name = f"data-{random.getrandbits(40):x}"
        listen = await proxied(api, name, address)
        try:
            await test(api, name, listen)
        finally:
            await call(api, "DELETE", f"/proxies/{name}")
            behind.close()
            await behind.wait_closed()
            await asyncio.sleep(0.01)  # the echo's own connections end

    with server(seed) as (api, _):
        asyncio.run(run(api))


async def sent_and_got(listen, data, rng, until_eof=True):
    """Send in random pieces with a half-close at the end; all that comes back."""
    reader, writer = await asyncio.open_connection(*listen)

    async def send():
        at = 0
        while at < len(data):
            size = rng.choice((1, 7, 500, 9_000, 70_000))
            writer.write(data[at : at + size])
            await writer.drain()
            at += size
        writer.write_eof()

    sending = asyncio.create_task(send())
    got = await asyncio.wait_for(reader.read(-1), 20)
    await sending
    await leave(writer)
    return got


@embedded_only  # Toxiproxy closes both ways when one ends
@pytest.mark.parametrize("ms", [0, 20])
def test_what_goes_in_comes_out_after_a_half_close(ms):
    async def test(api, name, listen):
        rng = random.Random(7)
        if ms:
            await latency(api, name, ms, jitter=ms // 2)
            await latency(api, name, ms, jitter=ms // 2, toxic="up", stream="upstream")
        for size in (0, 1, 65_536, 2_000_000):
            data = rng.randbytes(size)
            assert await sent_and_got(listen, data, rng) == data

    with_proxy(test)


def test_toxics_that_come_and_go_lose_nothing_and_keep_order():
    async def test(api, name, listen):
        data = random.Random(3).randbytes(300_000)
        reader, writer = await asyncio.open_connection(*listen)

        async def send():
            for at in range(0, len(data), 3000):
                writer.write(data[at : at + 3000])
                await asyncio.sleep(0.004)

        sending = asyncio.create_task(send())
        getting = asyncio.create_task(reader.readexactly(len(data)))
        for ms in (40, 5, 25):
            await latency(api, name, ms, jitter=ms - 1)
            await latency(api, name, ms, toxic="up", stream="upstream")
            update = {"attributes": {"latency": ms // 2}}
            await call(api, "POST", f"/proxies/{name}/toxics/slow", update)
            for toxic in ("slow", "up"):
                status, _ = await call(api, "DELETE", f"/proxies/{name}/toxics/{toxic}")
                assert status == 204
        assert await asyncio.wait_for(getting, 10) == data
        await sending
        await leave(writer)

    with_proxy(test)


def test_latency_is_never_less_than_asked_and_hardly_more():
    async def test(api, name, listen):
        reader, writer = await asyncio.open_connection(*listen)
        plain = [await ping(reader, writer) for _ in range(10)]
        await latency(api, name, 30)  # on a live connection
        slow = [await ping(reader, writer) for _ in range(10)]
        assert min(slow) >= 0.030
        await latency(api, name, 20, toxic="more")  # two of them add up
        slower = [await ping(reader, writer) for _ in range(10)]
        assert min(slower) >= 0.050
        base = sorted(plain)[5]
        assert (sorted(slower)[5] - base) / (sorted(slow)[5] - base) == pytest.approx(
            5 / 3, rel=0.2
        )
        await leave(writer)

    with_proxy(test)


def test_latency_is_pipelined_not_added_up():
    async def test(api, name, listen):
        await latency(api, name, 200)
        reader, writer = await asyncio.open_connection(*listen)
        began = time.monotonic()
        for n in range(10):
            writer.write(b"%09d\n" % n)
            await asyncio.sleep(0.02)
        lines = [await asyncio.wait_for(reader.readline(), 5) for _ in range(10)]
        assert lines == [b"%09d\n" % n for n in range(10)]
        assert 0.2 + 9 * 0.02 <= time.monotonic() - began < 1.0  # one by one it would be 2 s
        await leave(writer)

    with_proxy(test)


def test_jitter_varies_the_delay_within_its_bounds():
    async def test(api, name, listen):
        await latency(api, name, 20, jitter=15)
        reader, writer = await asyncio.open_connection(*listen)
        took = [await ping(reader, writer) for _ in range(25)]
        assert min(took) >= 0.005
        assert max(took) - min(took) > 0.008
        await leave(writer)

    with_proxy(test)


def test_removing_a_toxic_frees_what_it_holds_at_once():
    async def test(api, name, listen):
        await latency(api, name, 60_000)
        reader, writer = await asyncio.open_connection(*listen)
        for n in range(50):
            writer.write(b"%03d\n" % n)
            await writer.drain()
        await asyncio.sleep(0.1)
        began = time.monotonic()
        status, _ = await call(api, "DELETE", f"/proxies/{name}/toxics/slow")
        lines = [await asyncio.wait_for(reader.readline(), 3) for _ in range(50)]
        assert status == 204 and time.monotonic() - began < 2
        assert lines == [b"%03d\n" % n for n in range(50)]
        assert await ping(reader, writer) < 1
        await leave(writer)

    with_proxy(test)


@embedded_only  # Toxiproxy 2.12 hangs here, Shopify/toxiproxy#558
def test_removal_does_not_hang_while_bytes_pour_through_to_a_client_that_does_not_read():
    async def flood(reader, writer):
        with contextlib.suppress(ConnectionError):
            for _ in range(2000):
                writer.write(b"x" * 32_768)
                await writer.drain()
        writer.close()

    async def test(api, name, listen):
        await latency(api, name, 50)
        ends = [await asyncio.open_connection(*listen, limit=2**12) for _ in range(4)]
        await asyncio.sleep(0.5)
        began = time.monotonic()
        status, _ = await call(api, "DELETE", f"/proxies/{name}/toxics/slow")
        assert status == 204 and time.monotonic() - began < 2
        for _, writer in ends:
            writer.transport.abort()
        await leave(*(writer for _, writer in ends))

    with_proxy(test, flood)


@embedded_only
def test_a_reader_that_stalls_stalls_the_sender_and_memory_stays_bounded():
    sent = 0

    async def flood(reader, writer):
        nonlocal sent
        writer.transport.set_write_buffer_limits(high=0)
        with contextlib.suppress(ConnectionError):
            while sent < 500_000_000:
                writer.write(b"x" * 65_536)
                await writer.drain()
                sent += 65_536
        writer.close()

    async def test(api, name, listen):
        _, writer = await asyncio.open_connection(*listen, limit=2**12)
        await asyncio.sleep(0.5)
        before = sent
        await asyncio.sleep(0.3)
        assert 0 < sent == before < 100_000_000
        writer.transport.abort()
        await leave(writer)

    with_proxy(test, flood)


def test_disabling_ends_live_connections_and_enabling_serves_new_ones():
    async def test(api, name, listen):
        reader, writer = await asyncio.open_connection(*listen)
        await ping(reader, writer)
        await call(api, "POST", f"/proxies/{name}", {"enabled": False})
        if REAL:
            assert await asyncio.wait_for(reader.read(1), 2) == b""
        else:
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.read(1), 2)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*listen)
        await call(api, "POST", f"/proxies/{name}", {"enabled": True})
        again = await asyncio.open_connection(*listen)
        await ping(*again)
        await leave(writer, again[1])

    with_proxy(test)


def test_a_toxic_acts_on_its_own_proxy_only():
    async def test(api, name, listen):
        address, behind = await upstream(echo)
        other = await proxied(api, f"{name}-other", address)
        await latency(api, name, 300)
        reader, writer = await asyncio.open_connection(*other)
        assert await ping(reader, writer) < 0.25
        await leave(writer)
        await call(api, "DELETE", f"/proxies/{name}-other")
        behind.close()

    with_proxy(test)


@embedded_only  # Toxiproxy's seed does nothing
def test_toxicity_hits_the_same_connections_for_the_same_seed():
    seen = []

    async def test(api, name, listen):
        body = {"name": "fixed", "upstream": "127.0.0.1:9", "listen": "127.0.0.1:0"}
        address, behind = await upstream(echo)
        fixed = await proxied(api, "fixed", address)
        await latency(api, body["name"], 80, toxicity=0.5)
        hit = []
        for _ in range(16):
            reader, writer = await asyncio.open_connection(*fixed)
            hit.append(await ping(reader, writer) >= 0.08)
            await leave(writer)
        seen.append(hit)
        behind.close()

    with_proxy(test, seed=1)
    with_proxy(test, seed=1)
    with_proxy(test, seed=2)
    assert seen[0] == seen[1] != seen[2]
    assert 2 < sum(seen[0]) < 14


def test_a_dead_upstream_ends_its_clients_and_a_black_hole_holds_nobody_else_up():
    async def test(api, name, listen):
        dead = await proxied(api, f"{name}-dead", "127.0.0.1:9")
        with contextlib.suppress(ConnectionResetError):  # perhaps before this side has looked
            reader, writer = await asyncio.open_connection(*dead)
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(1), 3) == b""
            await leave(writer)
        await call(api, "DELETE", f"/proxies/{name}-dead")

    with_proxy(test)


@embedded_only  # Toxiproxy dials inside its accept loop
def test_dialling_never_blocks_accepting():
    async def test(api, name, listen):
        # A listener whose queue is full drops handshakes: dialling it hangs as a black hole does.
        import socket

        full = socket.socket()
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
            fillers.append(filler)
        host, port = full.getsockname()
        hole = await proxied(api, "hole", f"{host}:{port}")
        stuck = [await asyncio.open_connection(*hole) for _ in range(5)]
        status, _ = await call(api, "POST", "/proxies/hole", {"upstream": "127.0.0.1:9"})
        assert status == 200
        for reader, writer in stuck:  # the update has cut them, though none was ever connected
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(1), 2) == b""
            await leave(writer)
        for end in (*fillers, full):
            end.close()

    with_proxy(test)


@embedded_only
def test_a_thousand_connections_leave_no_file_open():
    async def run(api, pid):
        address, behind = await upstream(echo)
        listen = await proxied(api, "churn", address)
        await latency(api, "churn", 1)
        before = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208

        async def one(n):
            reader, writer = await asyncio.open_connection(*listen)
            if n % 3:
                await ping(reader, writer)
            if n % 2:
                writer.transport.abort()
            await leave(writer)

        for batch in range(0, 1000, 50):
            await asyncio.gather(*(one(n) for n in range(batch, batch + 50)))
        after = before + 1
        for _ in range(40):
            after = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208
            if after <= before:
                break
            await asyncio.sleep(0.05)
        assert after <= before
        behind.close()

    with server() as (api, pid):
        asyncio.run(run(api, pid))
