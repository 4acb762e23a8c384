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

_ENDED = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)


@dataclass
class HttpProxy:
    """Attributes:
    seen: the first line of what every connection asked for.
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
        method, target, version = first.split(" ")
        parts = urlsplit(f"//{target}" if method == "CONNECT" else target)
        assert parts.hostname is not None
        async with await anyio.connect_tcp(parts.hostname, parts.port or 80) as upstream:
            if method == "CONNECT":
                await stream.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                # One request a connection is enough here.
                ours = ("connection:", "proxy-authorization:")
                kept = [line for line in lines if not line.lower().startswith(ours)]
                again = "\r\n".join([f"{method} {parts.path} {version}", *kept, "", ""])
                await upstream.send(again.encode("latin-1"))
            async with anyio.create_task_group() as group:
                group.start_soon(_pump, incoming, upstream)
                group.start_soon(_pump, upstream, stream)


async def _pump(
    source: ByteStream | BufferedByteReceiveStream, sink: anyio.abc.ByteSendStream
) -> None:
    try:
        while True:
            await sink.send(await source.receive())
    except _ENDED:
        await sink.aclose()
