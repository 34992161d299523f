"""Addresses that the harness can speak to, as text that travels through specs and ledgers.

``host:port``, ``[::1]:port``: plain text. ``https://host:port``: TLS, verified for ``host``.
``https://host:port#127.0.0.1:4000``: the same spoken through a relay that listens there (the fault
proxy passes bytes on, so the certificate is the far end's). ``unix:/run/x.sock``: a socket in the
file system.
"""

from __future__ import annotations

from dataclasses import dataclass

HTTPS = "https://"
UNIX = "unix:"
HOST_OF_UNIX = "localhost"  # the host header where there is no host, as curl sends it


@dataclass(frozen=True, slots=True)
class Address:
    """One place. ``path`` for a Unix socket, else ``dial_host`` and ``dial_port``."""

    host_header: str
    server_name: str = ""  # for which a certificate must hold; "" = no TLS
    dial_host: str = ""
    dial_port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """ValueError if it is none."""
        if text.startswith(UNIX):
            path = text.removeprefix(UNIX)
            if not path.startswith("/"):
                raise ValueError(f"{text!r} is not unix:/path")
            return cls(HOST_OF_UNIX, path=path)
        secure = text.startswith(HTTPS)
        named, _, relay = text.removeprefix(HTTPS).partition("#")
        host, port = _split(relay or named, text)
        name = _split(named, text)[0] if secure else ""
        return cls(named, name, host, port)


def through(address: str, relay: str) -> str:
    """The address as spoken through a relay (``host:port``) that passes bytes on."""
    return f"{address}#{relay}" if address.startswith(HTTPS) else relay


def _split(text: str, whole: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdecimal():
        raise ValueError(f"{whole!r} is not host:port")
    return host.strip("[]"), int(port)
