"""A forward proxy for HTTP in the test's own process: absolute URLs, and CONNECT."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import anyio
from anyio.abc import ByteStream
from anyio.streams.buffered import BufferedByteReceiveStream

_ENDED = (
    anyio.EndOfStream,
    anyio.IncompleteRead,
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
)


@dataclass
class HttpProxy:
    """Attributes:
    seen: the first line of every request, and of what goes on in a tunnel nothing.
    authorization: value that ``Proxy-Authorization`` must have, empty for none.
    """

    authorization: str = ""
    seen: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Serve as long as the block lasts; gives host and port."""
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", family=socket.AF_INET)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with listener, anyio.create_task_group() as group:
            group.start_soon(listener.serve, self._connection)
            try:
                yield f"127.0.0.1:{port}"
            finally:
                group.cancel_scope.cancel()

    async def _connection(self, stream: ByteStream) -> None:
        async with stream:
            incoming = BufferedByteReceiveStream(stream)
            head = (await incoming.receive_until(b"\r\n\r\n", 64 << 10)).decode("latin-1")
            first, *lines = head.split("\r\n")
            self.seen.append(first)
            given = [line for line in lines if line.lower().startswith("proxy-authorization:")]
            if self.authorization and given != [f"Proxy-Authorization: {self.authorization}"]:
                await stream.send(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
                return
            await self._forward(stream, incoming, first, lines)

    async def _forward(
        self, stream: ByteStream, incoming: BufferedByteReceiveStream, first: str, lines: list[str]
    ) -> None:
        method, target, _ = first.split(" ")
        parts = urlsplit(f"//{target}" if method == "CONNECT" else target)
        assert parts.hostname is not None
        upstream = await anyio.connect_tcp(parts.hostname, parts.port or 80)
        async with upstream, anyio.create_task_group() as group:
            group.start_soon(_pump, upstream, stream)
            if method == "CONNECT":
                await stream.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await _pump(incoming, upstream)
            else:
                await self._requests(incoming, upstream, first, lines)

    async def _requests(
        self,
        incoming: BufferedByteReceiveStream,
        upstream: anyio.abc.ByteSendStream,
        first: str,
        lines: list[str],
    ) -> None:
        """This request, and those that follow it to the same server."""
        try:
            while True:
                await upstream.send(_rewritten(first, lines))
                fields = dict(line.lower().split(": ", 1) for line in lines if ": " in line)
                if "transfer-encoding" in fields:  # nothing follows on such a connection here
                    await _pump(incoming, upstream)
                    return
                left = int(fields.get("content-length", "0"))
                while left:
                    data = await incoming.receive(left)
                    left -= len(data)
                    await upstream.send(data)
                head = (await incoming.receive_until(b"\r\n\r\n", 64 << 10)).decode("latin-1")
                first, *lines = head.split("\r\n")
                self.seen.append(first)
        except _ENDED:
            await upstream.aclose()


def _rewritten(first: str, lines: list[str]) -> bytes:
    """The head for the server, which is not told what was for the proxy."""
    method, target, version = first.split(" ")
    parts = urlsplit(target)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    ours = ("connection:", "proxy-authorization:")
    kept = [line for line in lines if not line.lower().startswith(ours)]
    return "\r\n".join([f"{method} {path or '/'} {version}", *kept, "", ""]).encode("latin-1")


async def _pump(
    source: ByteStream | BufferedByteReceiveStream, sink: anyio.abc.ByteSendStream
) -> None:
    try:
        while True:
            await sink.send(await source.receive())
    except _ENDED:
        await sink.aclose()
