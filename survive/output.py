"""Streams whose reader may leave: who listens decides nothing."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import textwrap
from pathlib import Path
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


def folded(text: str) -> str:
    """Lines that fit the terminal, broken between words; as they are where nobody looks."""
    if sys.stdout is None or not sys.stdout.isatty():
        return text
    width = max(40, shutil.get_terminal_size().columns)
    lines = (_wrapped(line, width) for line in text.splitlines())
    return "\n".join(piece for pieces in lines for piece in pieces)


def _wrapped(line: str, width: int) -> list[str]:
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.wrap(line, width, subsequent_indent=indent, break_on_hyphens=False) or [""]


def program(start: Path = Path()) -> str:
    """How to type this program in a folder: its name, or where it is if that is on no PATH."""
    called = Path(sys.argv[0]).absolute()
    found = shutil.which("survive")
    on_path = found is not None and Path(found).resolve() == called.resolve()
    if called.name != "survive" or on_path:  # not so named: python -m survive
        return "survive"
    return shlex.quote(min(os.path.relpath(called, start), str(called), key=len))


def to_nowhere(stream: Any, error: OSError) -> None:
    """What a stream still holds, and what will come, is lost without another error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
    if stream.fileno() == 1 and not isinstance(error, BrokenPipeError) and sys.stderr is not None:
        print(f"warning: stdout cannot be written: {error}", file=sys.stderr)
