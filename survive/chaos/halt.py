"""The lever: end every run that this state directory knows of, and let none begin.

``HALT`` is written first and the ledgers are read after it; a new run writes its ledger first and
looks for ``HALT`` after it (``Ledger.create``). So whichever comes first, one sees the other.
"""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from survive.chaos import processes
from survive.chaos.heal import HealResult, heal_all
from survive.chaos.ledger import LEDGER, Ledger, Owner, folders, halt_file
from survive.errors import RefusedError

STOP_WITHIN_S = 5.0  # a run that is told to stop has healed by then (DESIGN §7)
AGENT_WITHIN_S = 2.0  # an agent that is told to go has healed in one second
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class HaltResult:
    """What ``halt`` did: a line for each run that was alive, and what healing found after it."""

    stopped: tuple[str, ...]
    healed: HealResult
    alive: tuple[str, ...]  # runs that could not be ended

    @property
    def clean(self) -> bool:
        """No run is left, and nothing of any."""
        return not self.alive and self.healed.clean and not self.healed.running

    def lines(self) -> list[str]:
        """For people; never empty."""
        still = [f"{run}: cannot be ended" for run in self.alive]
        told = [f"new runs are refused until `survive halt --clear` ({halt_file()})"]
        return [*(self.stopped or ("no run was alive",)), *still, *self.healed.lines(), *told]


def halt() -> HaltResult:
    """Refuse new runs, stop the living ones within 8 s, mend what is left. Idempotent.

    Raises RefusedError if ``HALT`` cannot be written: nothing would keep the next run away.
    """
    return asyncio.run(_halt())


def clear() -> bool:
    """Let runs begin again; whether there was a halt."""
    try:
        halt_file().unlink()
    except FileNotFoundError:
        return False
    return True


async def _halt() -> HaltResult:
    _pull()
    living = _living()
    said = await asyncio.gather(*(_end(folder.name, owner) for folder, owner in living))
    healed = await heal_all()
    alive = tuple(folder.name for folder, owner in living if owner.alive())
    return HaltResult(tuple(said), healed, alive)


def _pull() -> None:
    file = halt_file()
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.write_text(f"halted {datetime.now(UTC).isoformat(timespec='seconds')}\n")
    except OSError as error:
        raise RefusedError(f"{file} cannot be written: {error.strerror or error}") from error


def _living() -> list[tuple[Path, Owner]]:
    found = []
    for folder in folders():
        try:
            owner = Ledger.read(folder / LEDGER).owner
        except OSError:
            continue  # healing tells of it
        if owner is not None and owner.alive() and owner.survive.pid != os.getpid():
            found.append((folder, owner))
    return found


async def _end(run: str, owner: Owner) -> str:
    """Ask survive; if it does not answer, its agent; at last kill both. What it took."""
    processes.send(owner.survive.pid, owner.survive.start_time, signal.SIGTERM)
    if await _gone(owner, STOP_WITHIN_S):
        return f"{run}: stopped and healed"
    processes.send(owner.agent.pid, owner.agent.start_time, signal.SIGTERM)
    for _ in range(round(AGENT_WITHIN_S / _POLL_S)):
        if not owner.agent.alive():
            break
        await asyncio.sleep(_POLL_S)
    healed = not owner.agent.alive()
    for process in (owner.survive, owner.agent):
        processes.send(process.pid, process.start_time, signal.SIGKILL)
    await _gone(owner, AGENT_WITHIN_S)
    return f"{run}: did not answer; {'its agent healed' if healed else 'both were killed'}"


async def _gone(owner: Owner, within_s: float) -> bool:
    for _ in range(round(within_s / _POLL_S)):
        if not owner.alive():
            return True
        await asyncio.sleep(_POLL_S)
    return not owner.alive()
