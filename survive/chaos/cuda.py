"""What the helper does on an NVIDIA GPU, by the CUDA driver API: ``vram``, ``membw`` or ``pcie``.

``use(how, device, size, duty, library)`` takes ``size`` bytes (plain device memory, never managed:
that could be evicted), says ``ready``, and goes on until the process ends; the driver frees what it
held. No toolkit and no package is needed, only the driver's ``libcuda.so.1``.
"""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any

ROUND_S = 0.05  # of a duty cycle
PIECE = 64 << 20  # bytes copied at once


class Cuda:
    """The few calls that are needed; each raises OSError with the driver's own number."""

    def __init__(self, device: int, library: str) -> None:
        self._lib: Any = ctypes.CDLL(library)
        self._call("cuInit", ctypes.c_uint(0))
        found, context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(found), ctypes.c_int(device))
        self._call("cuCtxCreate_v2", ctypes.byref(context), ctypes.c_uint(0), found)

    def alloc(self, size: int) -> ctypes.c_uint64:
        """Device memory, written once so that it is really there."""
        place = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(place), ctypes.c_size_t(size))
        self._call("cuMemsetD8_v2", place, ctypes.c_ubyte(1), ctypes.c_size_t(size))
        return place

    def pinned(self, size: int) -> ctypes.c_void_p:
        """Host memory that the card reads at full speed."""
        place = ctypes.c_void_p()
        self._call("cuMemAllocHost_v2", ctypes.byref(place), ctypes.c_size_t(size))
        return place

    def copy(self, call: str, to: Any, source: Any, size: int) -> None:
        """One copy, waited for."""
        self._call(call, to, source, ctypes.c_size_t(size))
        self._call("cuCtxSynchronize")

    def _call(self, name: str, *args: Any) -> None:
        code = getattr(self._lib, name)(*args)
        if code:
            raise OSError(f"{name} failed with CUDA error {code}")


def use(how: str, device: int, size: int, duty: float, library: str) -> None:
    """See the module. Never returns; raises OSError before ``ready`` if the card says no."""
    cuda = Cuda(device, library)
    one = cuda.alloc(size)
    if how == "vram":
        os.write(1, b"ready\n")
        while True:
            time.sleep(60)
    pcie = how == "pcie"
    call = "cuMemcpyHtoD_v2" if pcie else "cuMemcpyDtoD_v2"
    other = cuda.pinned(size) if pcie else cuda.alloc(size)
    cuda.copy(call, one, other, min(size, PIECE))
    os.write(1, b"ready\n")
    while True:
        began = time.monotonic()
        while time.monotonic() - began < ROUND_S * duty:
            cuda.copy(call, one, other, min(size, PIECE))
        time.sleep(ROUND_S * (1 - duty))
