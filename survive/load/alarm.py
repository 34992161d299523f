"""A timer that is exact to the microsecond, for those that pace and for those that measure it."""

from __future__ import annotations

import ctypes
import os
import time


class Alarm:
    """A timerfd on CLOCK_MONOTONIC: readable at a moment, to the microsecond."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._settime = libc.timerfd_settime
        self._spec = (ctypes.c_long * 4)(0, 0, 0, 0)  # interval s, ns; value s, ns
        self._pointer = ctypes.byref(self._spec)

    def arm(self, at_ns: int) -> None:
        """Fire at an absolute time; 0 = never. Clears what has fired."""
        self._spec[2], self._spec[3] = divmod(at_ns, 1_000_000_000)
        if self._settime(self.fd, 1, self._pointer, None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.fd)
