"""An asyncio loop that serves the proxy's sockets within its poll, without a round for each chunk.

With asyncio's transports a small chunk cost 27,000 instructions in user space, without them and
its selector 11,000 (counted by perf, CPython 3.11). Timers, API and dialling stay asyncio's.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Mapping
from contextvars import Context
from select import EPOLLIN, EPOLLOUT, epoll
from selectors import EVENT_READ, EVENT_WRITE, SelectorKey
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVarTuple, cast

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

Ready: TypeAlias = Callable[[int], None]  # gets the epoll events
_Args = TypeVarTuple("_Args")


class Poller(selectors.BaseSelector):
    """The loop's selector; besides, it calls those who ``watch`` a descriptor themselves."""

    def __init__(self) -> None:
        self._epoll = epoll()
        self._keys: dict[int, SelectorKey] = {}  # of the loop
        self._watched: dict[int, Ready] = {}
        self.is_due = False  # the loop got something to do

    def watch(self, fd: int, mask: int, ready: Ready) -> None:
        """Call ``ready`` as long as there is one of the epoll events of ``mask``; 0 = no more."""
        if not mask:
            del self._watched[fd]
            self._epoll.unregister(fd)
        elif fd in self._watched:
            self._epoll.modify(fd, mask)
        else:
            self._epoll.register(fd, mask)
            self._watched[fd] = ready

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """See BaseSelector. Returns as soon as there is anything for the loop to do."""
        until = None if timeout is None else monotonic() + max(0.0, timeout)
        poll, watched = self._epoll.poll, self._watched
        found: list[tuple[SelectorKey, int]] = []
        self.is_due = False
        while True:
            for fd, events in poll(timeout):
                ready = watched.get(fd)
                if ready is not None:
                    ready(events)
                elif fd in self._keys:
                    found.append(self._found(fd, events))
            if found or self.is_due:
                return found
            if until is not None:
                timeout = until - monotonic()
                if timeout <= 0:
                    return found

    def _found(self, fd: int, events: int) -> tuple[SelectorKey, int]:
        key = self._keys[fd]  # an error wakes both who reads and who writes
        both = (EVENT_READ if events & ~EPOLLOUT else 0) | (EVENT_WRITE if events & ~EPOLLIN else 0)
        return key, both & key.events

    def register(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> SelectorKey:
        """See BaseSelector. Known by its number, so ``add_reader`` wants that and no object."""
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        read, write = events & EVENT_READ, events & EVENT_WRITE
        self._epoll.register(fd, (EPOLLIN if read else 0) | (EPOLLOUT if write else 0))
        self._keys[fd] = SelectorKey(fileobj, fd, events, data)
        return self._keys[fd]

    def unregister(self, fileobj: FileDescriptorLike) -> SelectorKey:
        """See BaseSelector."""
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        key = self._keys.pop(fd)
        self._epoll.unregister(fd)
        return key

    def get_map(self) -> Mapping[FileDescriptorLike, SelectorKey]:
        """See BaseSelector."""
        return cast("Mapping[FileDescriptorLike, SelectorKey]", self._keys)

    def close(self) -> None:
        """See BaseSelector."""
        self._epoll.close()


class Loop(asyncio.SelectorEventLoop):
    """Tells its poller of all that comes up while that serves. Threads and signals wake a poll."""

    def __init__(self, poller: Poller) -> None:
        super().__init__(poller)
        self._poller = poller

    def call_soon(
        self,
        callback: Callable[[*_Args], object],
        *args: *_Args,
        context: Context | None = None,
    ) -> asyncio.Handle:
        """See AbstractEventLoop."""
        self._poller.is_due = True
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*_Args], object],
        *args: *_Args,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """See AbstractEventLoop."""
        self._poller.is_due = True
        return super().call_at(when, callback, *args, context=context)
