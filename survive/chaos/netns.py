"""Network namespaces of a run: who holds them, rules in them, calls from them. Linux, root.

A namespace here has no name on the host. A process of the run holds it (``sleep``, in the ledger,
dies with its parent), and the services of the run live in it. When the last of them is gone, by
whatever means, the kernel takes the namespace, its interfaces and every rule in it. So nothing of
it can outlive the run, and nothing is ever written into the host's own tables: an entered
namespace that is the host's is refused.

A holder is told as ``pid:start time``, as a process is anywhere in the ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import os
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from survive.chaos import processes
from survive.clock import Clock
from survive.contracts import FaultFailedError, HandleSpec
from survive.errors import RefusedError
from survive.transport import Broken, Transport

T = TypeVar("T")
TOOL_S = 1.5  # of one ip or iptables; 10 ms are usual
LINK_GONE_S = 1.0  # from the end of a namespace to that of its interfaces; 50 ms are usual
_ISOLATION = "isolation: netns"
_PROGRAMS = {
    "ip": "iproute2",
    "mount": "mount",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "unshare": "util-linux",
}
_DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")
_NET = Path("/sys/class/net")
_libc = ctypes.CDLL(None, use_errno=True)


def lacks() -> str:
    """What namespaces need and is not here; "" if all is."""
    if os.geteuid() != 0:
        return f"{_ISOLATION} needs root"
    for program, package in _PROGRAMS.items():
        if shutil.which(program) is None:
            return f"{_ISOLATION} needs the program {program} (apt-get install {package})"
    return ""


def unwilling() -> str:
    """Why this host gives no namespaces, "" if it does: one is tried, and thrown away.

    Not for the start of a run, which finds out by itself: the kernel is busy afterwards.
    """
    if why := lacks():
        return why
    argv = ["unshare", "--net", "--mount", "--", "ip", "link", "set", "lo", "up"]
    try:
        tried = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=TOOL_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{_ISOLATION} cannot be had here: {error}"
    said = tried.stderr.strip().splitlines() or ["no word"]
    return f"{_ISOLATION} cannot be had here: {said[0]}" if tried.returncode else ""


def link_name(run_id: str) -> str:
    """The run's one interface in the host's namespace (15 characters at most)."""
    return "sv-" + hashlib.sha256(run_id.encode()).hexdigest()[:8]


def link_exists(run_id: str) -> bool:
    """The run's interface is there, and so is a namespace of the run."""
    return (_NET / link_name(run_id)).exists()


async def remove_link(run_id: str) -> bool:
    """Wait until the run's interface went with its namespaces, else delete it; whether it is gone.

    For after the run's processes were ended.
    """
    if not await _link_gone(run_id):
        with contextlib.suppress(FaultFailedError):  # gone meanwhile, or the next look tells
            await tool(["ip", "link", "delete", link_name(run_id)])
    return await _link_gone(run_id)


async def _link_gone(run_id: str) -> bool:
    for _ in range(round(LINK_GONE_S / 2 / 0.01)):
        if not link_exists(run_id):
            return True
        await asyncio.sleep(0.01)
    return not link_exists(run_id)


async def tool(argv: Sequence[str], text: str = "", fds: Sequence[int] = ()) -> str:
    """What a program says on stdout. Raises FaultFailedError with its first line on stderr.

    It dies with this process: a rule must not appear after whoever ordered it was given up.
    ``setpriv`` and no ``preexec_fn``, as looks are threads.
    """
    name = next(part for part in argv if part != "nsenter" and not part.startswith("-"))
    try:
        process = await asyncio.create_subprocess_exec(
            *_DIE_WITH_PARENT,
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=tuple(fds),
        )
    except OSError as error:
        raise FaultFailedError(f"{name} cannot be started: {error.strerror}") from error
    try:
        async with asyncio.timeout(TOOL_S):
            out, err = await process.communicate(text.encode())
    except TimeoutError as error:
        raise FaultFailedError(f"{name} did not end within {TOOL_S:g} s") from error
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode:
        said = err.decode(errors="replace").strip().splitlines() or ["no word"]
        raise FaultFailedError(f"{name} failed ({process.returncode}): {said[0]}")
    return out.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Look:
    """One call: how long until its end, and its status or how it broke."""

    took_us: int
    status: int = 0
    broken: Broken | None = None

    def __str__(self) -> str:
        return f"{self.broken or f'status {self.status}'} after {self.took_us / 1000:.1f} ms"


class Namespace:
    """One network namespace, by its holder; "" = the host's own, which is only ever called from."""

    def __init__(self, holder: str) -> None:
        self._holder = holder

    @contextlib.contextmanager
    def _open(self) -> Iterator[int]:
        """A descriptor of it. Raises FaultFailedError if its holder is gone or it is the host's."""
        pid, _, began = self._holder.partition(":")
        try:
            fd = os.open(f"/proc/{int(pid)}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise FaultFailedError(f"network namespace {self._holder!r} is gone") from error
        try:
            # Looked at after opening: the descriptor is of that very process.
            if not processes.exists(int(pid), int(began)):
                raise FaultFailedError(f"network namespace {self._holder!r} is gone")
            if _same(fd, "/proc/self/ns/net"):
                raise FaultFailedError("that is the host's own network namespace; left alone")
            yield fd
        finally:
            os.close(fd)

    def alive(self) -> bool:
        """Its holder is there. Raises FaultFailedError for the host's own, which has none."""
        pid, _, began = self._holder.partition(":")
        if not began:
            raise FaultFailedError("the host's own network namespace is left alone")
        return processes.exists(int(pid), int(began))

    async def run(self, argv: Sequence[str], text: str = "") -> str:
        """A program inside; what it says. Raises FaultFailedError."""
        with self._open() as fd:
            return await tool(["nsenter", f"--net=/proc/self/fd/{fd}", *argv], text, [fd])

    # ---------------------------------------------------------------------------- rules

    async def put(self, mark: str, rules: Sequence[str]) -> None:
        """Insert filter rules ("INPUT -s 10.0.0.1 -j DROP"), all or none. Replaces its own.

        Raises FaultFailedError.
        """
        await self.take(mark)
        marked = (rule.partition(" ") for rule in rules)
        lines = [f'-I {chain} -m comment --comment "{mark}" {rest}' for chain, _, rest in marked]
        await self._restore(lines)

    async def take(self, mark: str) -> None:
        """Delete the rules that bear a mark; none, or the namespace gone, is success."""
        if not self.alive():
            return
        try:
            listed = (await self.run(["iptables", "-w", "1", "-S"])).splitlines()
            rules = [line for line in listed if _comment(line) == mark]
            if rules:
                await self._restore([f"-D {rule.removeprefix('-A ')}" for rule in rules])
        except FaultFailedError:
            if self.alive():
                raise

    async def clear(self, mark: str) -> None:
        """Without the fault: its rules, and any queue that delays; gone is success."""
        await self.take(mark)
        if self.alive() and "netem" in await self.run(["tc", "qdisc", "show", "dev", "eth0"]):
            await self.run(["tc", "qdisc", "del", "dev", "eth0", "root"])

    async def _restore(self, lines: Sequence[str]) -> None:
        text = "\n".join(["*filter", *lines, "COMMIT", ""])
        await self.run(["iptables-restore", "-w", "1", "--noflush"], text)

    # ---------------------------------------------------------------------------- looks

    async def call(self, address: str, path: str, timeout_s: float) -> Look:
        """GET a path on a connection of its own, from inside."""
        return await self._inside(lambda: _get(address, path, timeout_s))

    async def ping(self, address: str, count: int, within_s: float) -> float:
        """The share of ICMP echoes that were not answered. Raises FaultFailedError."""
        host = address.rpartition(":")[0]
        return await self._inside(lambda: _ping(host, count, within_s))

    async def lookup(self, server: str, name: str, timeout_s: float) -> str:
        """Ask a name server for a name: "answered", or how that failed."""
        return await self._inside(lambda: _lookup(server, name, timeout_s))

    async def _inside(self, work: Callable[[], T]) -> T:
        """Work in a thread that entered and then ends: sockets stay where they were made."""
        with contextlib.ExitStack() as stack:
            fd = stack.enter_context(self._open()) if self._holder else -1
            loop = asyncio.get_running_loop()
            answer: asyncio.Future[T] = loop.create_future()
            own = os.dup(fd) if fd >= 0 else -1  # a look that was given up outlives this call

        def run() -> None:
            try:
                if own >= 0 and _libc.setns(own, 0x40000000):  # CLONE_NEWNET
                    raise OSError(ctypes.get_errno(), "setns")
                result = work()
            except OSError as error:
                told = FaultFailedError(f"a look from a network namespace: {error}")
                _tell(loop, answer, lambda: answer.set_exception(told))
            else:
                _tell(loop, answer, lambda: answer.set_result(result))
            finally:
                if own >= 0:
                    os.close(own)

        threading.Thread(target=run, daemon=True).start()
        return await answer

    def end(self) -> None:
        """The last resort: SIGKILL to everything inside, the holder included."""
        try:
            with self._open() as fd:
                inside = [pid for pid in _pids() if _same(fd, f"/proc/{pid}/ns/net")]
        except FaultFailedError:
            return
        for pid in inside:
            processes.send(pid, processes.start_time(pid), signal.SIGKILL)


class NetnsLink:
    """What one link of an isolated target is to faults: the callee's namespace and its callers."""

    def __init__(self, spec: HandleSpec, clock: Clock, transport: Transport) -> None:
        self.spec = spec
        self.clock = clock
        self.transport = transport
        self.inside = Namespace(spec.netns)
        self.peer = Namespace(spec.peer_netns)

    async def seen(self) -> Mapping[str, int]:
        """No proxy stands on the link, so nobody counts. Raises RefusedError."""
        raise RefusedError(
            f"no fault proxy stands on {self.spec.link}: nobody tells what goes through it",
            hint="whether a link is encrypted needs a target without `isolation:`",
        )


def _tell(
    loop: asyncio.AbstractEventLoop, answer: asyncio.Future[T], say: Callable[[], None]
) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(lambda: None if answer.done() else say())


def _same(fd: int, path: str) -> bool:
    """A descriptor and a path are one namespace."""
    try:
        there = Path(path).stat()
    except OSError:
        return False
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _comment(rule: str) -> str:
    words = shlex.split(rule)
    return words[words.index("--comment") + 1] if "--comment" in words else ""


def _get(address: str, path: str, timeout_s: float) -> Look:
    host, _, port = address.rpartition(":")
    began = time.monotonic()

    def left() -> float:
        return max(0.001, began + timeout_s - time.monotonic())

    status, broken, data = 0, None, b""
    try:
        with socket.create_connection((host, int(port)), timeout=left()) as wire:
            wire.sendall(
                f"GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n".encode()
            )
            while part := wire.recv(65536):
                data += part
                wire.settimeout(left())
        status = int(data.split(b" ", 2)[1])
    except TimeoutError:
        broken = Broken.TIMEOUT
    except ConnectionRefusedError:
        broken = Broken.REFUSED
    except ConnectionError:
        broken = Broken.RESET
    except (IndexError, ValueError):
        broken = Broken.PROTOCOL
    return Look(round((time.monotonic() - began) * 1e6), status, broken)


def _ping(host: str, count: int, within_s: float) -> float:
    """RFC 792 echoes, all sent within the first half of the time."""
    mine = (os.getpid() ^ threading.get_native_id()) & 0xFFFF
    deadline = time.monotonic() + within_s
    gap_s = within_s / 2 / count
    answered: set[int] = set()
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as wire:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        for number in range(count):
            wire.sendto(_echo(mine, number), (host, 0))
            _hear(wire, mine, answered, time.monotonic() + gap_s)
        while len(answered) < count and time.monotonic() < deadline:
            _hear(wire, mine, answered, min(deadline, time.monotonic() + 0.02))
    return 1 - len(answered) / count


def _hear(wire: socket.socket, mine: int, answered: set[int], until_s: float) -> None:
    """Take echo replies until a moment."""
    while (left := until_s - time.monotonic()) > 0:
        wire.settimeout(left)
        try:
            packet = wire.recv(256)
        except TimeoutError:
            return
        kind, _, _, sender, number = struct.unpack("!BBHHH", packet[20:28])
        if kind == 0 and sender == mine:
            answered.add(number)


def _echo(mine: int, number: int) -> bytes:
    head = struct.pack("!BBHHH", 8, 0, 0, mine, number)
    total = sum(struct.unpack("!4H", head))
    total = (total >> 16) + (total & 0xFFFF)
    total += total >> 16
    return struct.pack("!BBHHH", 8, 0, ~total & 0xFFFF, mine, number)


def _lookup(server: str, name: str, timeout_s: float) -> str:
    """One A query (RFC 1035) over UDP."""
    number = os.getpid() & 0xFFFF
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    query = struct.pack("!6H", number, 0x0100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wire:
        wire.settimeout(timeout_s)
        try:
            wire.connect((server, 53))
            wire.send(query)
            answer = wire.recv(512)
        except TimeoutError:
            return "no answer"
        except ConnectionError:
            return "refused"
    code, answers = answer[3] & 0xF, int.from_bytes(answer[6:8], "big")
    return "answered" if code == 0 and answers else f"error {code}"
