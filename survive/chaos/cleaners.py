"""Who removes what a run made on the host that is no process, by the type in its ledger entry.

A cleaner knows its things by the run's own mark on them (a label, a name), never by a remembered
handle: whoever holds the ledger can clean up.
"""

from __future__ import annotations

import importlib
from typing import Protocol, cast

from survive.chaos.ledger import LedgerError

LOOK_S = 5.0
CLEAN_S = 10.0  # DESIGN §9.3: containers; everything else is far faster

_MODULES = {
    "containers": "survive.chaos.containers",  # name: the URL of their docker daemon
    "toxiproxy": "survive.chaos.lent",  # name: host:port of a Toxiproxy server
}


class Cleaner(Protocol):
    """A module with these functions. The first two raise FaultFailedError, OSError."""

    async def left(self, run: str, name: str) -> list[str]:
        """What of the run is there, each named for people. Changes nothing."""

    async def clean(self, run: str, name: str) -> list[str]:
        """Remove it all; what is still left. Idempotent."""

    def by_hand(self, run: str, name: str) -> str:
        """The shell line that removes it."""


def cleaner(kind: str) -> Cleaner:
    """The cleaner of a type. LedgerError if the ledger was written by somebody else."""
    if kind not in _MODULES:
        raise LedgerError(f"the ledger names {kind!r}, which this survive cannot remove")
    return cast(Cleaner, importlib.import_module(_MODULES[kind]))  # late: its library is heavy
