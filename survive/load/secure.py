"""TLS of one lane: OpenSSL on the lane's own non-blocking socket, with the errors of a plain one.

What would block is BlockingIOError, an end without a farewell (close_notify) is a reset: an answer
that only ends with its connection could else be cut short unseen (RFC 9112 §9.8).

``ssl`` is imported late: runs without TLS need none, and Locust must have been imported before.
"""

from __future__ import annotations

import socket
from typing import Any


class Secure:
    """One server's name and whom we trust; makes verified connections to it."""

    def __init__(self, server_name: str, authority: str) -> None:
        """``authority``: PEM text, "" = the system's. Raises OSError if it holds none."""
        import ssl

        class Wire(ssl.SSLSocket):
            """A connection with the errors of a plain socket."""

            def send(self, data: Any, flags: int = 0) -> int:
                """See socket.send."""
                try:
                    return super().send(data, flags)
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    raise BlockingIOError from None
                except ssl.SSLError as error:
                    raise ConnectionResetError(str(error)) from error

            def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
                """See socket.recv."""
                try:
                    return super().recv(buflen, flags)
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    raise BlockingIOError from None

        self._name = server_name
        self._want_read, self._want_write = ssl.SSLWantReadError, ssl.SSLWantWriteError
        self.failures: tuple[type[BaseException], ...] = (ssl.SSLError, ssl.CertificateError)
        context = ssl.create_default_context(cadata=authority or None)
        context.sslsocket_class = Wire
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
        self._context = context

    def wrap(self, made: socket.socket) -> Any:
        """The connection over a connected socket, which it takes over; not a byte is sent yet."""
        return self._context.wrap_socket(
            made,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
            server_hostname=self._name,
        )

    def shake(self, wire: Any) -> str:
        """Go on with the handshake: "" = done, else what it waits for, ``read`` or ``write``.

        Raises one of ``failures``: no trust; OSError: no connection.
        """
        try:
            wire.do_handshake()
        except self._want_read:
            return "read"
        except self._want_write:
            return "write"
        return ""
