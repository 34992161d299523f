"""TLS between the services of a target that survive starts: who is trusted, what is served.

A run has a certificate authority of its own (``survive.host.authority`` makes it). Everything of
one replica lies in one folder, and beside the folders what the harness itself needs::

    tls/ca.pem                    whom everybody trusts
    tls/harness.pem               the harness's own key and certificate
    tls/retrieval-0/serving.pem   what the replica serves: key and certificate in one file, so that
                                  one rename swaps both
    tls/retrieval-0/good.pem, expired.pem    what serving.pem is a copy of

Both sides show a certificate (mutual TLS). ``ssl`` is imported late: most runs need none of it, and
the load must have imported Locust before.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from survive.address import HTTPS
from survive.contracts import HandleSpec
from survive.transport import Request, Response, Transport

if TYPE_CHECKING:
    import ssl

AUTHORITY = "ca.pem"
HARNESS = "harness.pem"
SERVING, GOOD, EXPIRED = "serving.pem", "good.pem", "expired.pem"
HANDSHAKE = 0x16  # the first byte of a TLS connection (RFC 8446 §5.1: ContentType handshake)


@runtime_checkable
class Trusting(Protocol):
    """A transport that can be told whom to trust."""

    def trust(self, authority: str, client: str) -> None:
        """``authority``: PEM files, joined by ``:``, "" = the system's; ``client``: our own key and
        certificate, "" = none."""


class SecuredTransport:
    """The transport for one replica that speaks TLS only: its addresses stay host:port."""

    def __init__(self, inner: Transport, spec: HandleSpec) -> None:
        self._inner = inner
        self._places = {spec.address, spec.via}

    async def call(self, address: str, request: Request, *, timeout_s: float) -> Response:
        """See Transport.call."""
        return await self._inner.call(self._full(address), request, timeout_s=timeout_s)

    async def linger(self, address: str, request: Request, *, timeout_s: float) -> float:
        """See Transport.linger."""
        return await self._inner.linger(self._full(address), request, timeout_s=timeout_s)

    def _full(self, address: str) -> str:
        whole = address.startswith(HTTPS) or address not in self._places
        return address if whole else HTTPS + address


def secured(transport: Transport, spec: HandleSpec) -> Transport:
    """The transport that speaks to a replica as the replica wants it: TLS if ``spec.tls``."""
    if not spec.tls:
        return transport
    trust_run(transport, spec.tls)
    return SecuredTransport(transport, spec)


def trust_run(transport: Transport, folder: str) -> None:
    """Trust the run's authority, and show the harness's certificate; ``folder``: a replica's.

    Of a service that we did not start it is the file of its authority instead.
    """
    if isinstance(transport, Trusting):
        home = Path(folder).parent
        if Path(folder).is_dir():
            transport.trust(str(home / AUTHORITY), str(home / HARNESS))
        else:
            transport.trust(folder, "")


def serve_certificate(folder: str, *, expired: bool) -> None:
    """Swap what a replica serves, in one rename. Raises OSError."""
    home = Path(folder)
    fresh = home / f"{SERVING}.new"
    shutil.copy2(home / (EXPIRED if expired else GOOD), fresh)
    os.utime(fresh)  # copy2 keeps the mode (0600); the time must be new
    fresh.replace(home / SERVING)


def client_context(authority: str, client: str) -> ssl.SSLContext:
    """Verifies against ``authority`` alone (see Trusting); shows ``client`` if asked. OSError."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for file in authority.split(os.pathsep) if authority else ():
        context.load_verify_locations(file)
    if not authority:
        context.load_default_certs()
    if client:
        context.load_cert_chain(client)
    return context


class ServedCertificate:
    """The server's side: a certificate file that is read again when it was renewed.

    Looked at in each handshake (one stat), as servers do that take renewed certificates without a
    restart. ``on_renewed`` is called then; connections that stand were made under the old one.
    """

    def __init__(
        self, certificate: str, key: str, authority: str, on_renewed: Callable[[], None]
    ) -> None:
        self._files = (certificate, key)
        self._authority = authority
        self._on_renewed = on_renewed
        self._stamp = self._read_stamp()
        self._current = self.context = self._made()
        self.context.sni_callback = self._choose

    def _read_stamp(self) -> tuple[int, int]:
        status = Path(self._files[0]).stat()
        return status.st_mtime_ns, status.st_ino

    def _made(self) -> ssl.SSLContext:
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(*self._files)
        if self._authority:
            context.load_verify_locations(self._authority)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _choose(self, handshake: Any, name: str | None, context: ssl.SSLContext) -> None:
        """See ssl.SSLContext.sni_callback: called in every handshake, a name or none."""
        stamp = self._read_stamp()
        if stamp != self._stamp:
            self._stamp, self._current = stamp, self._made()
            self._on_renewed()
        if self._current is not context:
            handshake.context = self._current


class Sniffing(asyncio.Protocol):
    """Plain text or TLS on one port, by the first byte: the planted ``plaintext_link``."""

    def __init__(self, make: Callable[[], asyncio.Protocol], context: ssl.SSLContext) -> None:
        self._make = make
        self._context = context
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """The first bytes decide who has the connection from now on."""
        transport, inner = self._transport, self._make()
        assert transport is not None
        if data[0] != HANDSHAKE:
            transport.set_protocol(inner)
            inner.connection_made(transport)
            inner.data_received(data)
            return
        from asyncio.sslproto import SSLProtocol

        loop = asyncio.get_running_loop()
        nobody: Any = None  # who waits for the handshake; typeshed wants somebody
        secure: Any = SSLProtocol(loop, inner, self._context, nobody, server_side=True)
        transport.set_protocol(secure)
        secure.connection_made(transport)
        while data:
            buffer = secure.get_buffer(len(data))
            size = min(len(buffer), len(data))
            buffer[:size] = data[:size]
            secure.buffer_updated(size)
            data = data[size:]
