"""A TCP proxy that is slow, far away, and breaks on purpose, for tests of network targets.

In a test::

    async with faulty_proxy(server_port, Faults(reset_every=8 << 20)) as proxy:
        ...connect to 127.0.0.1:proxy.port...
        assert proxy.seen.resets >= 3

As a process, for programs that are measured alone; the port is the one line on standard output::

    python -m tests.support.faulty_proxy --upstream 127.0.0.1:9000 --delay 0.05 --rate 50e6

`up` is what clients send, `down` what they get. Delay and rate belong to the line, which all
connections share; delay does not cost rate, because bytes are under way at the same time. Counts
(`reset_every`, `stall_after`, `corrupt_at`) are over all connections of the proxy's life.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import struct
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

import anyio
import anyio.lowlevel
from anyio import BrokenResourceError, ClosedResourceError

from pipeline.flow.channel import Channel
from tests.support.http_faults import HttpFailures, relay_requests

_PIECE = 256 << 10
_PACED_PIECE = 32 << 10
"""Small enough that a limited line looks smooth."""
_BURST_S = 0.005
_CREDIT_S = 0.02
"""A line does not stand still because the machine that plays it was busy elsewhere."""


@dataclass(slots=True)
class Line:
    """One direction. May be changed while the proxy runs; what is under way keeps its old delay."""

    delay_s: float = 0.0
    rate: float = 0.0
    """Bytes a second, 0 for no limit."""
    stall_after: int | None = None
    """After this many bytes nothing moves for `stall_s`, once; connections stay open."""
    stall_s: float = 0.0
    corrupt_at: int | None = None
    """This byte is changed, once; the first byte is 0."""


@dataclass(slots=True)
class Faults:
    """What goes wrong, and when."""

    up: Line = field(default_factory=Line)
    down: Line = field(default_factory=Line)
    reset_every: int | None = None
    """Each time this many more bytes went up, every open connection gets a TCP reset."""
    refuse_s: float = 0.0
    """So long after each reset new connections are reset at once."""
    http_fail_every: int = 0
    """Plain HTTP only: after so many good requests ..."""
    http_fail_burst: int = 1
    """... so many are answered with 503 and not passed on."""


@dataclass(slots=True)
class Seen:
    """What the proxy did so far."""

    connections: int = 0
    resets: int = 0
    stalls: int = 0
    corrupted: int = 0
    up_bytes: int = 0
    down_bytes: int = 0


@dataclass(slots=True, frozen=True)
class _Piece:
    due: float
    data: bytes | bytearray

    @property
    def n_bytes(self) -> int:
        return len(self.data)


class ResetError(Exception):
    """The connection is to be reset now."""


class _Direction:
    """A line's state, shared by all connections."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.total = 0
        self.free_at = 0.0

    def schedule(self, n_bytes: int) -> float:
        """When the last of `n_bytes` that enter the line now comes out at the far end."""
        now = time.monotonic()
        if self.line.rate:
            self.free_at = max(now - _CREDIT_S, self.free_at) + n_bytes / self.line.rate
            now = max(now, self.free_at)
        return now + self.line.delay_s

    async def wait_for_entry(self) -> None:
        """Sleep while the line has no room: that is what stops the sender."""
        ahead = self.free_at - time.monotonic() - _BURST_S
        if ahead > 0:
            await anyio.sleep(ahead)


class FaultyProxy:
    """The proxy behind `faulty_proxy`; `faults` may be changed while it runs.

    `http` has the counts of the HTTP mode.
    """

    def __init__(self, upstream: tuple[str, int], faults: Faults) -> None:
        self.faults = faults
        self.seen = Seen()
        self.port = 0
        self._upstream = upstream
        self._up = _Direction(faults.up)
        self._down = _Direction(faults.down)
        self._open: set[socket.socket] = set()
        self._refuse_until = 0.0
        self.http = HttpFailures(faults.http_fail_every, faults.http_fail_burst)

    def cut(self) -> None:
        """Reset every open connection now."""
        self.seen.resets += bool(self._open)
        for sock in list(self._open):
            reset(sock)
        self._open.clear()
        self._refuse_until = time.monotonic() + self.faults.refuse_s

    async def serve(self, listener: socket.socket) -> None:
        """Take connections until cancelled."""
        try:
            async with anyio.create_task_group() as group:
                while True:
                    client = await _accept(listener)
                    if time.monotonic() < self._refuse_until:
                        reset(client)
                        continue
                    self.seen.connections += 1
                    self._open.add(client)
                    group.start_soon(self._connection, client)
        finally:
            for sock in self._open:
                sock.close()

    async def _connection(self, client: socket.socket) -> None:
        server = None
        try:
            server = await _connect(self._upstream)
            self._open.add(server)
            async with anyio.create_task_group() as group:
                group.start_soon(self._relay, self._down, server, client)
                await self._relay(self._up, client, server)
        except* (ResetError, OSError, ValueError, ClosedResourceError, BrokenResourceError):
            # ValueError: the descriptor is -1 because `cut` closed the socket.
            reset(client)
            if server is not None:
                reset(server)
        finally:
            for sock in filter(None, (client, server)):
                self._open.discard(sock)
                sock.close()

    async def _relay(
        self, direction: _Direction, source: socket.socket, target: socket.socket
    ) -> None:
        way: Channel[_Piece] = Channel("way", 64 << 20)
        async with anyio.create_task_group() as group:
            group.start_soon(_deliver, way, target)
            async with way.sender(), aclosing(self._pieces(direction, source)) as pieces:
                async for data in pieces:
                    await self._enter(direction, data, way)

    def _pieces(
        self, direction: _Direction, source: socket.socket
    ) -> AsyncGenerator[bytearray, None]:
        incoming = _incoming(direction, source)
        if direction is self._up and self.faults.http_fail_every:
            return relay_requests(incoming, source, self.http)
        return incoming

    async def _enter(self, direction: _Direction, data: bytearray, way: Channel[_Piece]) -> None:
        line, first = direction.line, direction.total
        direction.total += len(data)
        if line.corrupt_at is not None and first <= line.corrupt_at < direction.total:
            data[line.corrupt_at - first] ^= 0x40
            line.corrupt_at = None
            self.seen.corrupted += 1
        if line.stall_after is not None and direction.total > line.stall_after:
            line.stall_after = None
            self.seen.stalls += 1
            direction.free_at = time.monotonic() + line.stall_s
            await anyio.sleep(line.stall_s)
        self._count(direction, len(data))
        every = self.faults.reset_every
        if direction is self._up and every and first // every != direction.total // every:
            self.cut()
            raise ResetError
        await way.send(_Piece(direction.schedule(len(data)), data))

    def _count(self, direction: _Direction, n_bytes: int) -> None:
        if direction is self._up:
            self.seen.up_bytes += n_bytes
        else:
            self.seen.down_bytes += n_bytes


async def _incoming(
    direction: _Direction, source: socket.socket
) -> AsyncGenerator[bytearray, None]:
    while True:
        await direction.wait_for_entry()
        data = await receive(source, _PACED_PIECE if direction.line.rate else _PIECE)
        if not data:
            return
        yield data


async def _deliver(way: Channel[_Piece], target: socket.socket) -> None:
    async with way.receiver():
        async for piece in way:
            ahead = piece.due - time.monotonic()
            if ahead > 0:
                await anyio.sleep(ahead)
            await send_all(target, piece.data)
    target.shutdown(socket.SHUT_WR)


@asynccontextmanager
async def faulty_proxy(
    upstream_port: int, faults: Faults | None = None, *, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[FaultyProxy]:
    """A proxy in front of `host:upstream_port` that lives as long as the block."""
    proxy = FaultyProxy((host, upstream_port), faults or Faults())
    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.setblocking(False)
        proxy.port = listener.getsockname()[1]
        async with anyio.create_task_group() as group:
            group.start_soon(proxy.serve, listener)
            try:
                yield proxy
            finally:
                group.cancel_scope.cancel()


def reset(sock: socket.socket) -> None:
    """Close with a reset instead of an orderly end."""
    if sock.fileno() < 0:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    anyio.notify_closing(sock)
    sock.close()


async def receive(sock: socket.socket, most: int) -> bytearray:
    """Up to `most` bytes, none at the end."""
    while True:
        try:
            data = bytearray(sock.recv(most))
        except BlockingIOError:
            await anyio.wait_readable(sock)
        else:
            await anyio.lowlevel.checkpoint()
            return data


async def send_all(sock: socket.socket, data: bytes | bytearray) -> None:
    """Send everything."""
    view = memoryview(data)
    while view:
        try:
            view = view[sock.send(view) :]
        except BlockingIOError:
            await anyio.wait_writable(sock)
    await anyio.lowlevel.checkpoint()


async def _accept(listener: socket.socket) -> socket.socket:
    while True:
        try:
            client, _ = listener.accept()
        except BlockingIOError:
            await anyio.wait_readable(listener)
        else:
            client.setblocking(False)
            return client


async def _connect(address: tuple[str, int]) -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    try:
        if sock.connect_ex(address):
            await anyio.wait_writable(sock)
            problem = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if problem:
                raise OSError(problem, "connect")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A TCP proxy that is slow and breaks on purpose.")
    parser.add_argument("--upstream", required=True, metavar="HOST:PORT")
    parser.add_argument("--port", type=int, default=0, help="to listen on; 0 picks a free one")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds, each way")
    parser.add_argument("--rate", type=float, default=0.0, help="bytes a second, each way")
    parser.add_argument("--reset-every", type=int, help="bytes sent up between two resets")
    parser.add_argument("--refuse", type=float, default=0.0, help="seconds after each reset")
    parser.add_argument("--stall-after", type=int, help="bytes sent up before the one stall")
    parser.add_argument("--stall", type=float, default=0.0, help="seconds the stall lasts")
    parser.add_argument("--corrupt-at", type=int, help="byte sent up that is changed")
    parser.add_argument("--http-fail-every", type=int, default=0, help="good requests, then")
    parser.add_argument("--http-fail-burst", type=int, default=1, help="so many answers of 503")
    return parser.parse_args()


async def _main(arguments: argparse.Namespace) -> None:
    host, _, port = arguments.upstream.rpartition(":")
    faults = Faults(
        up=Line(
            arguments.delay,
            arguments.rate,
            arguments.stall_after,
            arguments.stall,
            arguments.corrupt_at,
        ),
        down=Line(arguments.delay, arguments.rate),
        reset_every=arguments.reset_every,
        refuse_s=arguments.refuse,
        http_fail_every=arguments.http_fail_every,
        http_fail_burst=arguments.http_fail_burst,
    )
    async with faulty_proxy(int(port), faults, host=host, port=arguments.port) as proxy:
        sys.stdout.write(f"{proxy.port}\n")
        sys.stdout.flush()
        await anyio.sleep_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        anyio.run(_main, _arguments())
