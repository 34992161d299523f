"""Who is computed next: the waiting queue of a simulated GPU.

``Fair`` serves interactive work before batch, and within a class takes turns among tenants by
deficit round robin (Shreedhar and Varghese, 1995; a turn is worth QUANTUM tokens). When the queue
is full it gives up the newest batch work for interactive work, and the newest of the greediest
tenant for one that asks less. With one tenant and one class it is first come, first served.

``Fifo`` is the weakness ``unfair_scheduler``: first come, first served, whoever it is. While there
is room for all nobody can tell; once capacity shrinks, batch work keeps users waiting.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

QUANTUM = 64  # tokens


class Work(Protocol):
    """What is queued."""

    @property
    def urgent(self) -> bool:
        """Interactive, not batch."""

    @property
    def tenant(self) -> str:
        """On whose behalf."""

    @property
    def cost(self) -> int:
        """Tokens."""


W = TypeVar("W", bound=Work)


class Fifo(Generic[W]):
    """First come, first served."""

    ranked = False  # urgent work may take the place of other work

    def __init__(self) -> None:
        self._all: deque[W] = deque()

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[W]:
        return iter(self._all)

    def push(self, work: W) -> None:
        """At the end."""
        self._all.append(work)

    def push_back(self, work: W) -> None:
        """It was begun and must wait again: before all others of its tenant."""
        self._all.appendleft(work)

    def head(self) -> W:
        """Who is next; there is one."""
        return self._all[0]

    def pop(self) -> W:
        """Take who is next: the last ``head``."""
        return self._all.popleft()

    def remove(self, work: W) -> None:
        """It left; absent is fine."""
        if work in self._all:
            self._all.remove(work)

    def shed(self, newcomer: W) -> W | None:
        """Take out who makes room for the newcomer; None if that would have to be itself."""
        return None


class Fair(Generic[W]):
    """Two classes, and turns among the tenants of each."""

    ranked = True

    def __init__(self) -> None:
        self._urgent = _Turns[W]()
        self._batch = _Turns[W]()

    def __len__(self) -> int:
        return self._urgent.count + self._batch.count

    def __iter__(self) -> Iterator[W]:
        yield from self._urgent
        yield from self._batch

    def push(self, work: W) -> None:
        """At the end."""
        self._class_of(work).push(work)

    def push_back(self, work: W) -> None:
        """It was begun and must wait again: before all others of its tenant."""
        self._class_of(work).push_back(work)

    def head(self) -> W:
        """Who is next; there is one."""
        return self._next_class().head()

    def pop(self) -> W:
        """Take who is next: the last ``head``."""
        return self._next_class().pop()

    def remove(self, work: W) -> None:
        """It left; absent is fine."""
        self._class_of(work).remove(work)

    def shed(self, newcomer: W) -> W | None:
        """Take out who makes room for the newcomer; None if that would have to be itself."""
        if newcomer.urgent and self._batch.count:
            return self._batch.shed("", 0)
        mine = self._class_of(newcomer)
        return mine.shed(newcomer.tenant, mine.waiting_of(newcomer.tenant) + 1)

    def _class_of(self, work: W) -> _Turns[W]:
        return self._urgent if work.urgent else self._batch

    def _next_class(self) -> _Turns[W]:
        return self._urgent if self._urgent.count else self._batch


class _Turns(Generic[W]):
    """Deficit round robin over tenants; the first of ``_queues`` has its turn."""

    def __init__(self) -> None:
        self.count = 0
        self._queues: OrderedDict[str, deque[W]] = OrderedDict()
        self._credit: dict[str, int] = {}

    def __iter__(self) -> Iterator[W]:
        for queue in self._queues.values():
            yield from queue

    def waiting_of(self, tenant: str) -> int:
        return len(self._queues.get(tenant, ()))

    def push(self, work: W) -> None:
        self._queue_of(work).append(work)
        self.count += 1

    def push_back(self, work: W) -> None:
        self._queue_of(work).appendleft(work)
        self._credit[work.tenant] += work.cost  # it has paid already
        self.count += 1

    def head(self) -> W:
        while True:
            tenant, queue = next(iter(self._queues.items()))
            if len(self._queues) == 1 or self._credit[tenant] >= queue[0].cost:
                return queue[0]
            self._credit[tenant] += QUANTUM
            self._queues.move_to_end(tenant)

    def pop(self) -> W:
        work = self.head()
        self._credit[work.tenant] = max(0, self._credit[work.tenant] - work.cost)
        self._drop(work.tenant, first=True)
        return work

    def remove(self, work: W) -> None:
        queue = self._queues.get(work.tenant)
        if queue is not None and work in queue:
            queue.remove(work)
            self.count -= 1
            self._forget_if_empty(work.tenant)

    def shed(self, spared: str, more_than: int) -> W | None:
        """The newest of the tenant with the longest queue, if that is long enough."""
        tenant = max(self._queues, key=self.waiting_of, default=spared)
        if tenant == spared or self.waiting_of(tenant) <= more_than:
            return None
        work = self._queues[tenant][-1]
        self._drop(tenant, first=False)
        return work

    def _queue_of(self, work: W) -> deque[W]:
        queue = self._queues.get(work.tenant)
        if queue is None:
            queue = self._queues[work.tenant] = deque()
            self._credit[work.tenant] = 0
        return queue

    def _drop(self, tenant: str, *, first: bool) -> None:
        queue = self._queues[tenant]
        if first:
            queue.popleft()
        else:
            queue.pop()
        self.count -= 1
        self._forget_if_empty(tenant)

    def _forget_if_empty(self, tenant: str) -> None:
        if not self._queues[tenant]:
            del self._queues[tenant], self._credit[tenant]
