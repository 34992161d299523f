"""The loop of the fault proxy: what is served within its poll, and that nothing else waits."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from select import EPOLLIN

import pytest

from faults.proxy.poller import Loop, Poller
from faults.proxy.sockets import Wire


class Heard:
    """An owner of a wire that writes down what it is told."""

    def __init__(self, then=lambda chunk: None):
        self.told = []
        self._then = then

    def received(self, chunk):
        self.told.append(chunk)
        self._then(chunk)

    def full(self, on):
        self.told.append(on)

    def lost(self, *, broken):
        self.told.append("broken" if broken else "closed")


def run(test):
    poller = Poller()
    with asyncio.Runner(loop_factory=lambda: Loop(poller)) as runner:
        runner.run(asyncio.wait_for(test(poller), 5))


@contextlib.contextmanager
def pair():
    """Two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    with near, far:
        yield near, far


async def until(true):
    while not true():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def test_a_socket_that_is_always_ready_keeps_neither_timers_nor_threads_waiting():
    async def test(poller):
        loop = asyncio.get_running_loop()
        with pair() as (near, far):
            far.send(b"never read, so always ready")
            calls = []
            poller.watch(near.fileno(), EPOLLIN, calls.append)
            began = time.monotonic()
            await asyncio.sleep(0.02)
            assert 0.02 <= time.monotonic() - began < 1
            called = asyncio.Event()
            threading.Thread(target=loop.call_soon_threadsafe, args=(called.set,)).start()
            await called.wait()
            poller.watch(near.fileno(), 0, calls.append)
            assert len(calls) > 10

    run(test)


def test_what_a_served_socket_asks_of_the_loop_is_done_at_once():
    async def test(poller):
        loop = asyncio.get_running_loop()
        with pair() as (near, far):
            done = asyncio.Event()

            def ready(events):
                poller.watch(near.fileno(), 0, ready)
                loop.call_soon(done.set)

            poller.watch(near.fileno(), EPOLLIN, ready)
            far.send(b"x")
            await done.wait()  # there is no timer that could wake the loop but the test's own

    run(test)


def test_a_wire_keeps_what_cannot_be_sent_and_ends_after_it():
    async def test(poller):
        with pair() as (near, far):
            heard, data = Heard(), bytes(range(256)) * 65_536
            wire = Wire(near, heard, poller)
            wire.write(data)
            wire.end()
            assert heard.told == [True]
            got = await asyncio.to_thread(lambda: b"".join(iter(lambda: far.recv(1 << 20), b"")))
            assert got == data
            await until(lambda: heard.told == [True, False])

    run(test)


def test_a_wire_that_closes_sends_the_rest_and_hears_nothing_more():
    async def test(poller):
        with pair() as (near, far):
            heard, data = Heard(), bytes(8 << 20)
            wire = Wire(near, heard, poller)
            wire.write(data)
            wire.close()
            wire.read(True)
            far.shutdown(socket.SHUT_WR)
            got = await asyncio.to_thread(lambda: len(far.recv(len(data), socket.MSG_WAITALL)))
            assert got == len(data)
            await until(lambda: heard.told == [True, False, "closed"])

    run(test)


def test_a_wire_reads_only_when_it_is_to_and_tells_an_end_once():
    async def test(poller):
        with pair() as (near, far):
            heard = Heard()
            wire = Wire(near, heard, poller)
            far.send(b"early")
            await asyncio.sleep(0.01)
            assert heard.told == []
            wire.read(True)
            far.shutdown(socket.SHUT_WR)
            await until(lambda: heard.told == [b"early", b""])
            wire.read(True)
            await asyncio.sleep(0.01)
            assert heard.told == [b"early", b""]
            wire.close()
            await until(lambda: heard.told[-1] == "closed")
            assert far.recv(1) == b""

    run(test)


def test_a_reset_is_passed_on_and_an_error_within_ends_only_its_own_connection():
    async def test(poller):
        def fail(chunk):
            raise RuntimeError("a toxic with a bug")

        errors = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, told: errors.append(told))
        with pair() as (near, far):
            heard = Heard(then=fail)
            Wire(near, heard, poller).read(True)
            far.send(b"x")
            await until(lambda: heard.told == [b"x", "closed"])
            assert str(errors[0]["exception"]) == "a toxic with a bug"
            with pytest.raises(ConnectionResetError):
                far.recv(1)
        with pair() as (near, far):
            heard = Heard()
            other = Wire(near, heard, poller)
            other.read(True)
            Wire(far, Heard(), poller).reset()
            await until(lambda: heard.told == ["broken"])
            assert other.is_closed

    run(test)
