"""Results on disk, a line each, so that an exam that was interrupted goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

from survive.errors import ExitCode
from survive.exam.cells import Outcome
from survive.exam.sitting import Sitting, in_worker, key_of, sit

# Such a run says nothing of the stack, so it is no result to keep.
_STOPPED = frozenset({ExitCode.INTERRUPTED, ExitCode.TERMINATED})
_DECIDED = frozenset({ExitCode.SURVIVED, ExitCode.FAILED, ExitCode.STOPPED})
_NOT_KEPT = _STOPPED | {ExitCode.BUG}


class Store:
    """``results.ndjson``. The last line of a key counts; a torn last line does not."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Outcome] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                self._read(line)

    def _read(self, line: str) -> None:
        try:
            plain = json.loads(line)
            self._known[str(plain["key"])] = Outcome.of_json(plain)
        except (ValueError, KeyError, TypeError):
            return  # torn by a kill, or of another version: it is done again

    def get(self, key: str) -> Outcome | None:
        """What is known of a sitting."""
        return self._known.get(key)

    def add(self, key: str, outcome: Outcome) -> None:
        """Keep, at once."""
        if not _kept(outcome):
            return
        self._known[key] = outcome
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, **outcome.to_json()}) + "\n")


def _kept(outcome: Outcome) -> bool:
    """In real time what a busy machine left undecided is worth another try."""
    if outcome.host == "real":
        return outcome.exit_code in _DECIDED
    return outcome.exit_code not in _NOT_KEPT


def outcomes(
    sittings: Iterable[Sitting], store: Store, jobs: int, seen: Callable[[int, int], None]
) -> list[Outcome]:
    """The outcome of each, from the store or sat now; ``seen(done, all)`` as they come in.

    Raises KeyboardInterrupt if a run was stopped: whoever meant it meant the exam.
    """
    keys = {sitting: key_of(sitting) for sitting in dict.fromkeys(sittings)}
    found = [known for key in keys.values() if (known := store.get(key)) is not None]
    todo = [sitting for sitting, key in keys.items() if store.get(key) is None]
    seen(len(found), len(keys))
    for sitting, outcome in _sat(todo, jobs):
        if outcome.exit_code in _STOPPED:
            raise KeyboardInterrupt
        store.add(keys[sitting], outcome)
        found.append(outcome)
        seen(len(found), len(keys))
    return found


def _sat(todo: list[Sitting], jobs: int) -> Iterator[tuple[Sitting, Outcome]]:
    """In processes of their own, each sitting many: the imports cost as much as a small run."""
    if not todo:
        return
    pool = ProcessPoolExecutor(
        min(jobs, len(todo)), mp_context=get_context("spawn"), initializer=in_worker
    )
    left = iter(todo)
    waiting: dict[Future[Outcome], Sitting] = {}

    def begin(count: int) -> None:
        for sitting in islice(left, count):
            waiting[pool.submit(sit, sitting)] = sitting

    try:
        # No more than there are processes: what the pool has handed out cannot be taken back, and
        # in real time Ctrl-C would wait for a whole run.
        begin(jobs)
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            ended = [(waiting.pop(future), future.result()) for future in done]
            begin(len(ended))
            yield from ended
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
