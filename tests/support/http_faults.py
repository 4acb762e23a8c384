"""Bursts of 503 in a stream of HTTP/1.1 requests: the part of `faulty_proxy` that reads HTTP.

Requests are told apart by their Content-Length or chunked body, so that a failure is a whole answer
to a whole request, on connections that are kept alive too. Pipelining is not supported.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

import anyio

_ANSWER = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 0\r\n"
    b"Connection: close\r\n\r\n"
)
_MAX_HEAD = 64 << 10


@dataclass(slots=True)
class HttpFailures:
    """Which requests fail: after every `every` good ones, `burst` bad ones."""

    every: int
    burst: int
    requests: int = 0
    failures: int = 0

    def next_fails(self) -> bool:
        """Count a request and decide."""
        place = self.requests % (self.every + self.burst)
        self.requests += 1
        fails = place >= self.every
        self.failures += fails
        return fails


class _Requests:
    """Cuts a byte stream at the ends of heads and bodies."""

    def __init__(self, incoming: AsyncIterator[bytearray]) -> None:
        self._incoming = incoming
        self._held = bytearray()

    async def _more(self) -> bool:
        async for data in self._incoming:
            self._held += data
            return True
        return False

    async def head(self) -> bytearray | None:
        """The next request up to its empty line, None at the end of the connection."""
        return await self._upto(b"\r\n\r\n")

    async def body(self, head: bytearray) -> AsyncGenerator[bytearray, None]:
        """The body that goes with `head`, as it comes."""
        fields = _fields(head)
        if fields.get(b"transfer-encoding", b"").lower() == b"chunked":
            while (line := await self._upto(b"\r\n")) is not None:
                yield line
                n_bytes = int(line.split(b";")[0], 16)
                async for data in self._exactly(n_bytes + 2):
                    yield data
                if n_bytes == 0:
                    return
        else:
            async for data in self._exactly(int(fields.get(b"content-length", b"0"))):
                yield data

    async def _upto(self, end: bytes) -> bytearray | None:
        while (at := self._held.find(end)) < 0:
            if len(self._held) > _MAX_HEAD or not await self._more():
                return None
        return self._take(at + len(end))

    async def _exactly(self, n_bytes: int) -> AsyncGenerator[bytearray, None]:
        while n_bytes:
            if not self._held and not await self._more():
                return
            data = self._take(min(n_bytes, len(self._held)))
            n_bytes -= len(data)
            yield data

    def _take(self, n_bytes: int) -> bytearray:
        taken = self._held[:n_bytes]
        del self._held[:n_bytes]
        return taken


def _fields(head: bytearray) -> dict[bytes, bytes]:
    lines = bytes(head).split(b"\r\n")[1:]
    pairs = (line.partition(b":") for line in lines)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


async def relay_requests(
    incoming: AsyncIterator[bytearray], client: socket.socket, failures: HttpFailures
) -> AsyncGenerator[bytearray, None]:
    """What of `incoming` goes on to the server; failed requests are answered to `client` here.

    After a failure the connection ends, as servers in trouble do.
    """
    requests = _Requests(incoming)
    while (head := await requests.head()) is not None:
        if not failures.next_fails():
            yield head
            async for data in requests.body(head):
                yield data
            continue
        if b"expect" not in _fields(head):
            async for _ in requests.body(head):
                pass
        await _send(client, _ANSWER)
        return


async def _send(client: socket.socket, data: bytes) -> None:
    await anyio.wait_writable(client)
    client.send(data)
