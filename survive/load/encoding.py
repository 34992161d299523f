"""Answers that come compressed, undone as they come, a bounded piece at a time."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

MAX_PIECE_BYTES = 1 << 20  # a few bytes of gzip can be a thousand times as many
_GZIP, _ZLIB = 31, 15  # window bits: RFC 1952, RFC 1950
_WINDOW_BITS = {"gzip": _GZIP, "x-gzip": _GZIP, "deflate": _ZLIB}


class Inflate:
    """One compressed body. ``broken``: it is no such thing, or of an encoding we do not know."""

    def __init__(self, encoding: str) -> None:
        self._bits = _WINDOW_BITS.get(encoding.strip().lower())
        self.broken = self._bits is None
        self._begun = False
        self._inflater = zlib.decompressobj(self._bits or _GZIP)

    @property
    def whole(self) -> bool:
        """It has its end (or never began: an answer without a body is whole)."""
        return not self.broken and (self._inflater.eof or not self._begun)

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """What some more of the body says. Ends early if it is ``broken``."""
        while data and not self.broken:
            if self._inflater.eof:  # gzip may have several members, one after the other
                self._inflater = zlib.decompressobj(self._bits or _GZIP)
            self._begun = True
            try:
                piece = self._inflater.decompress(data, MAX_PIECE_BYTES)
            except zlib.error:
                self.broken = True
                return
            data = self._inflater.unconsumed_tail or self._inflater.unused_data
            if piece:
                yield piece
