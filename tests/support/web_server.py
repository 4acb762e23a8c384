"""A small HTTP server in the test's own process, for answers that real servers give rarely."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qsl, unquote, urlsplit

import anyio
from anyio.abc import ByteStream, Listener
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.tls import TLSListener


@dataclass
class Request:
    """Header names in lower case, the path decoded, a repeated query key only once."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    target: str
    """The path and query as they were sent."""


@dataclass
class Response:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class HangUpError(Exception):
    """Raised by a handler: close the connection without an answer."""


Handler = Callable[[Request], Awaitable[Response]]


@asynccontextmanager
async def web_server(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Serve as long as the block lasts; gives the server's URL."""
    plain = await anyio.create_tcp_listener(local_host="127.0.0.1", family=socket.AF_INET)
    port = plain.extra(anyio.abc.SocketAttribute.local_port)
    listener: Listener[ByteStream] = plain
    if tls is not None:  # a peer that goes away without TLS's own goodbye is no error here
        listener = TLSListener(plain, tls, standard_compatible=False)

    async def connection(stream: ByteStream) -> None:
        async with stream:
            await _serve(stream, handler)

    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, connection)
        try:
            yield f"http{'' if tls is None else 's'}://127.0.0.1:{port}"
        finally:
            group.cancel_scope.cancel()


async def _serve(stream: ByteStream, handler: Handler) -> None:
    incoming = BufferedByteReceiveStream(stream)
    try:
        while True:
            request = await _read(incoming)
            response = await handler(request)
            await stream.send(_pack(request, response))
    except (HangUpError, anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError):
        return


async def _read(incoming: BufferedByteReceiveStream) -> Request:
    head = (await incoming.receive_until(b"\r\n\r\n", 64 << 10)).decode("latin-1")
    first, *lines = head.split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.strip().lower(): value.strip() for name, _, value in map(_colon, lines)}
    if headers.get("transfer-encoding") == "chunked":
        body = await _chunks(incoming)
    else:
        body = await incoming.receive_exactly(int(headers.get("content-length", "0")))
    parts = urlsplit(target)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    return Request(method, unquote(parts.path), query, headers, body, target)


async def _chunks(incoming: BufferedByteReceiveStream) -> bytes:
    body = bytearray()
    while n_bytes := int(await incoming.receive_until(b"\r\n", 100), 16):
        body += await incoming.receive_exactly(n_bytes)
        await incoming.receive_exactly(2)
    await incoming.receive_until(b"\r\n", 100)
    return bytes(body)


def _colon(line: str) -> tuple[str, str, str]:
    return line.partition(":")


def _pack(request: Request, response: Response) -> bytes:
    phrase = HTTPStatus(response.status).phrase
    headers = {"content-length": str(len(response.body))} | response.headers
    lines = [f"HTTP/1.1 {response.status} {phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    body = b"" if request.method == "HEAD" else response.body
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
