"""The faulty proxy does what it says: tests of network targets stand on it."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from tests.support.faulty_proxy import Faults, Line, faulty_proxy

MIB = 1 << 20


@dataclass
class Echo:
    """A server that keeps what it got and answers each connection's bytes back."""

    port: int = 0
    got: list[bytearray] = field(default_factory=list)

    async def handle(self, stream: SocketStream) -> None:
        mine = bytearray()
        self.got.append(mine)
        async with stream:
            try:
                async for data in stream:
                    mine += data
                    await stream.send(data)
            except anyio.BrokenResourceError:
                pass


@asynccontextmanager
async def echo_server() -> AsyncIterator[Echo]:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    echo = Echo(listener.extra(SocketAttribute.local_port))
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, echo.handle)
        yield echo
        group.cancel_scope.cancel()


async def exchange(port: int, data: bytes) -> bytes:
    """Send `data` while reading back as much."""
    back = bytearray()
    stream = await anyio.connect_tcp("127.0.0.1", port)
    async with stream, anyio.create_task_group() as group:
        group.start_soon(stream.send, data)
        while len(back) < len(data):
            back += await stream.receive()
    return bytes(back)


async def test_clean_line_passes_everything() -> None:
    """Without faults the proxy changes nothing and counts both ways."""
    data = bytes(range(256)) * 8192
    async with echo_server() as echo, faulty_proxy(echo.port) as proxy:
        assert await exchange(proxy.port, data) == data

        assert (proxy.seen.up_bytes, proxy.seen.down_bytes) == (len(data), len(data))


async def test_rate_limits_and_delay_adds() -> None:
    """1 MiB at 8 MiB/s takes an eighth of a second, and two delays come on top."""
    faults = Faults(up=Line(delay_s=0.05, rate=8 * MIB), down=Line(delay_s=0.05))
    async with echo_server() as echo, faulty_proxy(echo.port, faults) as proxy:
        started = time.monotonic()
        await exchange(proxy.port, bytes(MIB))
        seconds = time.monotonic() - started

    assert 0.21 <= seconds < 0.8


async def test_delay_does_not_cost_rate() -> None:
    """4 MiB with a delay of 0.1 s and no rate limit takes about one round trip, not one a piece."""
    faults = Faults(up=Line(delay_s=0.1), down=Line(delay_s=0.1))
    async with echo_server() as echo, faulty_proxy(echo.port, faults) as proxy:
        started = time.monotonic()
        await exchange(proxy.port, bytes(4 * MIB))

    assert time.monotonic() - started < 1.0


async def test_reset_comes_after_so_many_bytes() -> None:
    """With reset_every 1 MiB, sending 2 MiB ends in a connection reset; the next one works."""
    async with echo_server() as echo, faulty_proxy(echo.port, Faults(reset_every=MIB)) as proxy:
        with pytest.raises((anyio.BrokenResourceError, ExceptionGroup)):
            await exchange(proxy.port, bytes(2 * MIB))
        assert proxy.seen.resets == 1

        assert await exchange(proxy.port, b"again") == b"again"


async def test_stall_holds_the_line_once() -> None:
    """Behind the stall point nothing moves for the time given, then everything arrives."""
    faults = Faults(up=Line(stall_after=1000, stall_s=0.3))
    async with echo_server() as echo, faulty_proxy(echo.port, faults) as proxy:
        started = time.monotonic()
        await exchange(proxy.port, bytes(MIB))
        assert time.monotonic() - started >= 0.3

        assert proxy.seen.stalls == 1


async def test_one_byte_is_corrupted() -> None:
    """Exactly the byte that was named differs."""
    data = bytes(MIB)
    faults = Faults(up=Line(corrupt_at=700_000))
    async with echo_server() as echo, faulty_proxy(echo.port, faults) as proxy:
        back = await exchange(proxy.port, data)

    assert [at for at, byte in enumerate(back) if byte] == [700_000]


async def test_cut_resets_open_connections() -> None:
    """`cut` breaks a connection that waits."""
    async with echo_server() as echo, faulty_proxy(echo.port) as proxy:
        stream = await anyio.connect_tcp("127.0.0.1", proxy.port)
        await stream.send(b"x")
        assert await stream.receive() == b"x"
        proxy.cut()
        with pytest.raises(anyio.BrokenResourceError):
            await stream.receive()
        await stream.aclose()


async def http_server(stream: SocketStream) -> None:
    """Answers every request with its body's length; bodies have a Content-Length."""
    held = b""
    async with stream:
        try:
            while True:
                while b"\r\n\r\n" not in held:
                    held += await stream.receive()
                head, _, held = held.partition(b"\r\n\r\n")
                n_bytes = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                while len(held) < n_bytes:
                    held += await stream.receive()
                held = held[n_bytes:]
                text = str(n_bytes).encode()
                answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(text)
                await stream.send(answer + text)
        except anyio.EndOfStream:
            return


def put(port: int, n_bytes: int) -> int:
    """Status of a PUT through http.client."""
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("PUT", "/x", body=bytes(n_bytes))
        return connection.getresponse().status
    finally:
        connection.close()


async def test_http_failures_come_in_bursts() -> None:
    """After every two good requests two are answered with 503 and never reach the server."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(SocketAttribute.local_port)
    faults = Faults(http_fail_every=2, http_fail_burst=2)
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, http_server)
        async with faulty_proxy(port, faults) as proxy:
            statuses = [await anyio.to_thread.run_sync(put, proxy.port, 300_000) for _ in range(6)]
            assert proxy.http.failures == 2
        group.cancel_scope.cancel()

    assert statuses == [200, 200, 503, 503, 200, 200]


async def test_runs_as_a_process() -> None:
    """As a program it prints its port and passes bytes."""
    async with echo_server() as echo:
        argv = [sys.executable, "-m", "tests.support.faulty_proxy"]
        argv += ["--upstream", f"127.0.0.1:{echo.port}", "--delay", "0.001", "--rate", "1e9"]
        async with await anyio.open_process(argv, stderr=None) as process:
            assert process.stdout is not None
            port = int(await process.stdout.receive())
            assert await exchange(port, b"through") == b"through"
            process.terminate()


def test_port_is_on_loopback_only() -> None:
    """Nothing outside this machine can reach the proxy."""

    async def address() -> str:
        async with faulty_proxy(1) as proxy:
            with socket.create_connection(("127.0.0.1", proxy.port)) as sock:
                return str(sock.getpeername()[0])

    assert anyio.run(address) == "127.0.0.1"
