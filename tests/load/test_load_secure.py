"""Lanes over TLS and over Unix sockets: every misbehaviour is counted as on plain loopback."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import pytest
import trustme
from loadtools import answer, make_kind, make_plan, planned, raw_server, read_request, run_load
from test_load_process import HALF, SCRIPT, behave, by_kind, kind_of

from survive.address import Address, through
from survive.host.sockets import SocketTransport
from survive.record.samples import Series
from survive.transport import Broken, CallFailedError, Request, read_all
from survive.units import MS, SECOND

# asyncio cannot close one direction of a TLS connection.
WORDS = [name for name, (_, then, _) in SCRIPT.items() if then != HALF]


def served_by(authority: trustme.CA, name: str = "127.0.0.1") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


def pem(authority: trustme.CA) -> str:
    return authority.cert_pem.bytes().decode()


@pytest.mark.parametrize("wire", ["tls", "unix"])
def test_every_behaviour_is_counted_as_on_a_plain_connection(tmp_path: Path, wire: str) -> None:
    authority = trustme.CA()
    kinds = [kind_of(name) for name in WORDS]
    plan = make_plan(kinds, rps=200, for_us=SECOND, lanes=200, gives_up_us=300 * MS)
    way = {"tls": served_by(authority)} if wire == "tls" else {"unix": str(tmp_path / "it.sock")}

    async def main() -> None:
        async with raw_server(behave, **way) as address:  # type: ignore[arg-type]
            tally = await run_load(tmp_path, plan, kinds, address, authority=pem(authority))
        expected = {name: {SCRIPT[name][2]} for name in WORDS} | {"hang": {"abandoned"}}
        assert by_kind(tally) == expected
        tally.assert_conserved(planned(plan))

    asyncio.run(main())


async def cut_short(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An answer that ends with its connection, which ends without a farewell."""
    await read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\n\r\npart")
    await writer.drain()
    raw: socket.socket = writer.get_extra_info("socket")
    raw.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("name", "trusted", "why"),
    [
        ("127.0.0.1", "own", "failed:reset"),  # it was cut short: no end of an answer
        ("127.0.0.1", "other", "failed:tls"),
        ("elsewhere.test", "own", "failed:tls"),
    ],
)
def test_no_trust_and_no_farewell_are_failures(
    tmp_path: Path, name: str, trusted: str, why: str
) -> None:
    authority, other = trustme.CA(), trustme.CA()
    kinds = [make_kind()]
    plan = make_plan(kinds, rps=20, for_us=SECOND // 4, lanes=5)

    async def main() -> None:
        async with raw_server(cut_short, tls=served_by(authority, name)) as address:
            known = authority if trusted == "own" else other
            tally = await run_load(tmp_path, plan, kinds, address, authority=pem(known))
        assert tally.outcomes() == {why: 5}
        assert tally.n(Series.ATTEMPT) == (5 if why == "failed:reset" else 0)

    asyncio.run(main())


def test_the_harness_itself_speaks_to_them_too(tmp_path: Path) -> None:
    authority = trustme.CA()
    file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(file))

    async def heads(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(answer(await read_request(reader)))

    async def main() -> None:
        transport, stranger = SocketTransport(), SocketTransport()
        transport.trust(str(file), "")

        async def ask(address: str, who: SocketTransport = transport) -> str:
            response = await who.call(address, Request("GET", "/"), timeout_s=2.0)
            return (await read_all(response)).decode()

        async with raw_server(heads, unix=str(tmp_path / "a.sock")) as address:
            assert "host: localhost\r\n" in await ask(address)
        async with raw_server(heads, tls=served_by(authority, "api.test")) as address:
            relay = address.removeprefix("https://")
            assert "host: api.test:443\r\n" in await ask(through("https://api.test:443", relay))
            for wrong, who in ((address, transport), (address, stranger)):
                with pytest.raises(CallFailedError) as failed:
                    await ask(wrong, who)
                assert failed.value.how is Broken.TLS
        with pytest.raises(CallFailedError) as gone:
            await ask(f"unix:{tmp_path}/none.sock")
        assert gone.value.how is Broken.REFUSED
        await transport.close()
        await stranger.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    "text", ["", "host", "host:", ":80", "unix:relative", "https://host", "h:x"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError):
        Address.parse(text)


def test_an_address_of_ipv6_through_a_relay() -> None:
    place = Address.parse("https://[::1]:8443#127.0.0.1:4000")
    assert (place.server_name, place.dial_host, place.dial_port) == ("::1", "127.0.0.1", 4000)
    assert place.host_header == "[::1]:8443"
    assert through("127.0.0.1:80", "127.0.0.1:4000") == "127.0.0.1:4000"
