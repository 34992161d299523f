from __future__ import annotations

import asyncio
import ssl
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from driver_kit import Host, target

from survive.contracts import Needs, Toxic
from survive.errors import RefusedError
from survive.host.driver import TargetUnhealthyError
from survive.scenario.model import Health, Service, TargetSpec

ENTRY = "load -> web"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host("external", tmp_path)


async def serve(
    status: str = "200 OK", tls: ssl.SSLContext | None = None, body: str = "{}"
) -> asyncio.Server:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(f"{head}{body}".encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    return await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)


def url_of(server: asyncio.Server) -> str:
    return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def spec(url: str, **more: object) -> TargetSpec:
    web = Service("web", url=url, health=Health("/", 500_000))
    return target({"web": web}, entry="web")


def test_it_drives_what_runs_already(host: Host) -> None:
    async def main(host: Host) -> None:
        async with await serve() as server:
            driver = host.make(spec("${WEB}"), env={"WEB": url_of(server)})
            await driver.start()
            assert f"http://{driver.entry()}" == url_of(server)
            assert await host.get(driver.entry()) == {}
            assert driver.replicas("web") == []
            assert (driver.listeners(ENTRY), driver.cpu_s()) == ([], 0.0)
            await driver.stop()
            assert await host.get(driver.entry()) == {}

    host.run(main)


def test_its_entry_link_can_be_proxied(host: Host) -> None:
    async def main(host: Host) -> None:
        async with await serve() as server:
            driver = host.make(spec(url_of(server)), ENTRY)
            await driver.start()
            [listener] = driver.listeners(ENTRY)
            assert driver.entry() == listener.via != listener.address
            link = driver.open(listener, Needs.LINK)
            await link.add(Toxic("sv", "latency", attributes={"latency": 200, "jitter": 0}))
            began = host.clock.now_us()
            assert await host.get(driver.entry()) == {}
            assert host.clock.now_us() - began >= 200_000
            with pytest.raises(RefusedError):
                driver.open(listener, Needs.REPLICA)

    host.run(main)


def test_it_drives_a_unix_socket_but_breaks_none(host: Host, tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()

    async def main(host: Host) -> None:
        async with await asyncio.start_unix_server(answer, tmp_path / "web.sock"):
            driver = host.make(spec(f"unix:{tmp_path}/web.sock"))
            await driver.start()
            assert await host.get(driver.entry()) == {}
            with pytest.raises(RefusedError, match="Unix socket"):
                await host.make(spec(f"unix:{tmp_path}/web.sock"), ENTRY).start()

    host.run(main)


def test_its_entry_link_can_be_proxied_over_tls(host: Host, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)

    async def main(host: Host) -> None:
        async with await serve(tls=context) as server:
            url = url_of(server).replace("http://127.0.0.1", "https://localhost")
            web = Service("web", url=url, ca=str(tmp_path / "ca.pem"), health=Health("/", 500_000))
            allowed = replace(target({"web": web}, entry="web"), allow_hosts=("localhost",))
            driver = host.make(allowed, ENTRY)
            await driver.start()
            [listener] = driver.listeners(ENTRY)
            assert driver.entry() == listener.via == f"{url}#{listener.via.partition('#')[2]}"
            assert await host.get(listener.via) == await host.get(listener.address) == {}

    host.run(main)


def test_a_page_for_browsers_says_nothing_of_why(host: Host) -> None:
    async def main(host: Host) -> None:
        async with await serve("404 Not Found", body="<!DOCTYPE HTML>\n<p>no</p>") as server:
            driver = host.make(spec(url_of(server)))
            with pytest.raises(TargetUnhealthyError) as caught:
                await driver.start()
        assert caught.value.message.endswith("status 404 (for 0.5 s)")
        assert "`health:` in the target file" in caught.value.hint

    host.run(main)


def test_an_unhealthy_one_is_told(host: Host) -> None:
    async def main(host: Host) -> None:
        async with await serve("500 Broken") as server:
            driver = host.make(spec(url_of(server)))
            with pytest.raises(TargetUnhealthyError, match=r"web .*status 500"):
                await driver.start()

    host.run(main)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://example.org", "host example.org of service web is not allowed"),
        ("https://example.org", "host example.org of service web is not allowed"),
        ("ftp://127.0.0.1", "url of service web is"),
        ("http://127.0.0.1/deep", "host and a port only"),
        ("http://127.0.0.1:99999", "range"),
        ("${UNSET}", "UNSET, which is not set"),
        ("", "has no `url:`"),
    ],
)
def test_what_may_not_be_reached_is_refused(host: Host, url: str, why: str) -> None:
    async def main(host: Host) -> None:
        driver = host.make(spec(url))
        with pytest.raises(RefusedError, match=why):
            await driver.start()

    host.run(main)


def test_other_links_are_refused(host: Host) -> None:
    async def main(host: Host) -> None:
        driver = host.make(spec("http://127.0.0.1:1"), "web -> db")
        with pytest.raises(RefusedError, match="only the link 'load -> web'"):
            await driver.start()

    host.run(main)
