"""``python nameserver.py ADDRESS NAME=IP...``: the name server of an isolated target.

Answers A queries (RFC 1035) for the names it was given, "no such name" for all others and "no such
record" for other types. A program of its own, standard library only.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys

TTL_S = 1


def answer(query: bytes, names: dict[str, bytes]) -> bytes:
    """The reply to one query; b"" to what is none."""
    if len(query) < 12 or query[2] & 0x80:
        return b""
    labels, at = [], 12
    while at < len(query) and query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]])
        at += 1 + query[at]
    question, kind = query[12 : at + 5], query[at + 1 : at + 3]
    address = names.get(b".".join(labels).decode("latin-1").lower())
    found = address is not None and kind == b"\0\1"
    flags = 0x8580 if address is not None else 0x8583  # an answer with authority; NXDOMAIN
    head = query[:2] + struct.pack("!5H", flags, 1, found, 0, 0)
    record = struct.pack("!HHHIH", 0xC00C, 1, 1, TTL_S, 4) + address if found and address else b""
    return head + question + record


def main(listen: str, zone: list[str]) -> None:
    """Serve for ever."""
    pairs = (entry.split("=") for entry in zone)
    names = {name: ipaddress.ip_address(ip).packed for name, ip in pairs}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wire:
        wire.bind((listen, 53))
        print("listening", flush=True)
        while True:
            query, peer = wire.recvfrom(512)
            if reply := answer(query, names):
                wire.sendto(reply, peer)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
