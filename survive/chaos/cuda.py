"""What the helper does on an NVIDIA GPU, by the CUDA driver API: ``vram membw pcie sm``.

``use(how, device, size, duty, library)`` takes ``size`` bytes (plain device memory, never managed:
that could be evicted), says ``ready``, and goes on until the process ends; the driver frees what it
held. No toolkit and no package is needed, only the driver's ``libcuda.so.1``.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from typing import Any

ROUND_S = 0.05  # of a duty cycle
PIECE = 64 << 20  # bytes copied at once
THREADS = 256  # of a block; SPIN writes 4 bytes for each
BLOCKS = 8  # for each multiprocessor: as many threads as one can hold
TRIPS = 16384  # of SPIN's loop: about a millisecond, so that a duty cycle can end in time
_MULTIPROCESSORS = 16  # CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT

# Multiplies and adds in registers, ``trips`` times; what it stores at the end only keeps the
# compiler from removing the loop. An old target, which every later card's driver translates.
SPIN = b"""
.version 5.0
.target sm_52
.address_size 64
.visible .entry spin(.param .u64 out, .param .u32 trips)
{
    .reg .pred %more;
    .reg .f32 %x, %y;
    .reg .b32 %left, %lane;
    .reg .b64 %to, %at;
    ld.param.u64 %to, [out];
    ld.param.u32 %left, [trips];
    mov.u32 %lane, %tid.x;
    cvt.rn.f32.u32 %x, %lane;
    mov.f32 %y, 0f3F7FF972;
again:
    fma.rn.f32 %x, %x, %y, %y;
    fma.rn.f32 %x, %x, %y, %y;
    fma.rn.f32 %x, %x, %y, %y;
    fma.rn.f32 %x, %x, %y, %y;
    add.s32 %left, %left, -1;
    setp.gt.s32 %more, %left, 0;
    @%more bra again;
    cvta.to.global.u64 %to, %to;
    mul.wide.u32 %at, %lane, 4;
    add.s64 %at, %to, %at;
    st.global.f32 [%at], %x;
    ret;
}
"""


class Cuda:
    """The few calls that are needed; each raises OSError with the driver's own number."""

    def __init__(self, device: int, library: str) -> None:
        self._lib: Any = ctypes.CDLL(library)
        self._call("cuInit", ctypes.c_uint(0))
        self._device, context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(self._device), ctypes.c_int(device))
        self._call("cuCtxCreate_v2", ctypes.byref(context), ctypes.c_uint(0), self._device)

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

    def spinner(self, out: ctypes.c_uint64) -> Callable[[], None]:
        """Runs SPIN once on every multiprocessor, waited for."""
        count, module, kernel = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        what = (ctypes.byref(count), ctypes.c_int(_MULTIPROCESSORS), self._device)
        self._call("cuDeviceGetAttribute", *what)
        self._call("cuModuleLoadData", ctypes.byref(module), SPIN)
        self._call("cuModuleGetFunction", ctypes.byref(kernel), module, b"spin")
        trips = ctypes.c_uint(TRIPS)
        each = (ctypes.c_void_p * 2)(ctypes.addressof(out), ctypes.addressof(trips))
        sizes = [BLOCKS * count.value, 1, 1, THREADS, 1, 1, 0]  # grid, block, shared memory

        self._kept = (out, trips)  # ``each`` only points to them

        def spin() -> None:
            shape = map(ctypes.c_uint, sizes)
            self._call("cuLaunchKernel", kernel, *shape, None, each, None)
            self._call("cuCtxSynchronize")

        return spin

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
    work = cuda.spinner(one) if how == "sm" else _copier(cuda, how, one, size)
    work()
    os.write(1, b"ready\n")
    while True:
        began = time.monotonic()
        while time.monotonic() - began < ROUND_S * duty:
            work()
        time.sleep(ROUND_S * (1 - duty))


def _copier(cuda: Cuda, how: str, one: ctypes.c_uint64, size: int) -> Callable[[], None]:
    pcie = how == "pcie"
    call = "cuMemcpyHtoD_v2" if pcie else "cuMemcpyDtoD_v2"
    other = cuda.pinned(size) if pcie else cuda.alloc(size)
    return lambda: cuda.copy(call, one, other, min(size, PIECE))
