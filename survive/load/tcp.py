"""What the kernel knows of a connection (Linux)."""

from __future__ import annotations

import socket
import sys

from survive.units import MS

LAST_ACK_AT = 8 + 12 * 4  # tcpi_last_ack_recv (ms) in struct tcp_info: 8 bytes, then 32-bit words


def lain_us(sock: socket.socket) -> int:
    """How long the end of a connection waited for us to look, to a tick of the kernel (1-10 ms).

    A worker that a neighbour kept from its core reads the end late; that is no time in which the
    server held the request. Read from the last segment that acknowledged anything, which is the
    FIN of an end in order. (A reset says nothing of the kind: it counts from when it is read.)
    Of a Unix socket the kernel knows nothing.
    """
    if sock.family == socket.AF_UNIX:
        return 0
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, LAST_ACK_AT + 4)
    return int.from_bytes(info[LAST_ACK_AT:], sys.byteorder) * MS
