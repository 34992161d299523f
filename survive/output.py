"""Streams whose reader may leave: who listens decides nothing."""

from __future__ import annotations

import os
import sys
from typing import Any


class Unheard:
    """A stream whose reader may leave (`2>&1 | head`, a terminal that is closed): that ends no run
    and changes no exit code."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As of the stream."""
        try:
            self._stream.write(text)
        except OSError as error:
            to_nowhere(self._stream, error)
        return len(text)

    def flush(self) -> None:
        """As of the stream."""
        try:
            self._stream.flush()
        except OSError as error:
            to_nowhere(self._stream, error)


def to_nowhere(stream: Any, error: OSError) -> None:
    """What a stream still holds, and what will come, is lost without another error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
    if stream.fileno() == 1 and not isinstance(error, BrokenPipeError) and sys.stderr is not None:
        print(f"warning: stdout cannot be written: {error}", file=sys.stderr)
