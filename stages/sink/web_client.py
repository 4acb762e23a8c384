"""One way to make HTTP requests for every sink that needs them: limits, TLS, errors in one line.

The library is httpx2 (docs/adr/0010). Bodies are sent in small steps, so that nothing is copied
whole, the rate limit is kept smoothly, and a peer that stops reading is noticed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from pipeline.errors import SinkError, UnsupportedError
from stages.sink.proxies import proxy_for, show_proxy
from stages.sink.retry import TransientError
from stages.sink.throttle import TokenBucket

if TYPE_CHECKING:
    import httpx2

    from pipeline.config.targets import NetSettings

# 65 KiB steps cost 0.74 s of CPU a GB, 256 KiB steps 0.5 s; larger ones gain nothing.
_STEP: Final = 256 << 10
_MAX_ANSWER: Final = 8 << 20
"""Larger than any list or manifest; a server must not fill our memory."""
_TRANSIENT_STATUSES: Final = frozenset({408, 429, 500, 502, 503, 504})
_MAX_RETRY_AFTER_S: Final = 120.0
_TCP_NOTSENT_LOWAT: Final = 25  # linux/tcp.h; the socket module does not have it
_MAX_UNSENT: Final = 256 << 10
_MAX_PATIENCE: Final = 8
"""A server that answered late is given up to so many times longer: retries that come too early
would load a slow link with more than it carries."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_good(self) -> bool:
        return 200 <= self.status < 300

    @property
    def is_transient(self) -> bool:
        """The server is busy or broken for now."""
        return self.status in _TRANSIENT_STATUSES

    @property
    def retry_after_s(self) -> float | None:
        """When the server wants to be asked again, if it says so in seconds."""
        text = self.headers.get("retry-after", "")
        return min(float(text), _MAX_RETRY_AFTER_S) if text.isdecimal() else None


class WebClient:
    """Connections to one target, direct ones and those through proxies that the environment names.

    Opened by the first request that needs them; closed by `close`.
    """

    def __init__(self, target: str, net: NetSettings, bucket: TokenBucket) -> None:
        """`target` stands in every error: a URL without secrets."""
        self._target = target
        self._net = net
        self._bucket = bucket
        self._clients: dict[str | None, httpx2.AsyncClient] = {}
        """By proxy, None for direct ones: presigned URLs may be of another host than their list."""
        self._patience = 1

    async def call(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | memoryview = b"",
        *,
        patience_s: float = 0,
    ) -> Answer:
        """Make one request, whatever status comes back.

        Args:
            method: in capitals.
            url: encoded as it shall be sent; never shown.
            headers: all but Host and Content-Length.
            body: must not change until this returns.
            patience_s: wait at least this long for the answer to begin.

        Raises:
            TransientError: not reached, or the connection was lost or stalled.
            SinkError: the server's certificate is not trusted, or its name is unknown.
        """
        client = self._open(url)
        import httpx2

        timeout = self._timeout(patience_s)
        request = client.build_request(
            method,
            url,
            headers={**headers, "content-length": str(len(body))},
            content=self._steps(memoryview(body)),
            timeout=timeout,
        )
        try:
            answer = await client.send(request, stream=True)
            try:
                return Answer(answer.status_code, dict(answer.headers), await self._read(answer))
            finally:
                await answer.aclose()
        except (httpx2.TransportError, OSError) as error:
            raise self._failure(url, error) from error

    async def _steps(self, body: memoryview) -> AsyncIterator[bytes]:
        for at in range(0, len(body), _STEP):
            step = bytes(body[at : at + _STEP])
            await self._bucket.take(len(step))
            yield step

    async def _read(self, answer: httpx2.Response) -> bytes:
        data = bytearray()
        async for piece in answer.aiter_bytes():
            data += piece
            if len(data) > _MAX_ANSWER:
                raise SinkError(f"{self._target}: an answer of more than {_MAX_ANSWER} bytes")
        return bytes(data)

    def _timeout(self, patience_s: float) -> httpx2.Timeout:
        import httpx2

        stall = self._net.stall_timeout_s
        return httpx2.Timeout(
            connect=self._net.connect_timeout_s,
            write=stall,
            read=max(stall * self._patience, patience_s),
            pool=None,
        )

    def _open(self, url: str) -> httpx2.AsyncClient:
        proxy = proxy_for(url, os.environ)
        if proxy not in self._clients:
            self._clients[proxy] = _make_client(self._target, self._net, proxy)
        return self._clients[proxy]

    def _failure(self, url: str, error: Exception) -> SinkError:
        import httpx2

        host = urlsplit(url).hostname or "?"
        proxy = proxy_for(url, os.environ)
        if proxy is not None:
            host = f"{host} by way of the proxy {show_proxy(proxy)}"
        stall = self._net.stall_timeout_s
        for cause in _chain(error):
            if isinstance(cause, ssl.SSLCertVerificationError):
                why = cause.verify_message or str(cause)
                return SinkError(f"{self._target}: {host}: certificate not trusted: {why}")
            if isinstance(cause, socket.gaierror) and cause.errno != socket.EAI_AGAIN:
                return SinkError(f"{self._target}: {host}: {cause.strerror}")
        match error:
            case httpx2.ProxyError() if not _may_pass(str(error)):
                return SinkError(f"{self._target}: {host}: {error}")
            case httpx2.ConnectTimeout():
                why = f"no connection within {self._net.connect_timeout_s:g} s"
            case httpx2.WriteTimeout():
                why = f"it took nothing for {stall:g} s"
            case httpx2.ReadTimeout():
                why = f"no answer for {stall * self._patience:g} s"
                self._patience = min(self._patience * 2, _MAX_PATIENCE)
            case _:
                why = _reason(error)
        return TransientError(f"{self._target}: {host}: {why}")

    async def close(self) -> None:
        """Close all connections; never raises."""
        while self._clients:
            _, client = self._clients.popitem()
            with contextlib.suppress(Exception):
                await client.aclose()


def _may_pass(refusal: str) -> bool:
    """Whether a proxy's answer to CONNECT, which starts with its status, is one for now only."""
    status = refusal[:3]
    return not status.isdigit() or int(status) in _TRANSIENT_STATUSES


def _make_client(target: str, net: NetSettings, proxy: str | None) -> httpx2.AsyncClient:
    try:
        import httpx2
    except ImportError as error:
        raise UnsupportedError(f"{target}: needs the package httpx2 (dumpstream[http])") from error
    # Its request log has whole URLs, and a presigned URL is a secret.
    for name in ("httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    transport = httpx2.AsyncHTTPTransport(
        verify=tls_context(net),
        limits=httpx2.Limits(max_connections=net.concurrency + 1),
        socket_options=_socket_options(net),
        proxy=proxy,
    )
    return httpx2.AsyncClient(transport=transport, follow_redirects=False)


def _socket_options(net: NetSettings) -> list[tuple[int, int, int]]:
    """Have a write mean that bytes left, so that a slow link is not taken for a dead one.

    By itself the kernel takes megabytes at once; on a slow link the wait for the answer would then
    hold most of the transfer.
    """
    stall_ms = int(net.stall_timeout_s * 1000)
    return [
        (socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _MAX_UNSENT),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, stall_ms),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    ]


def tls_context(net: NetSettings) -> ssl.SSLContext:
    """Verifies the peer, against `net.ca_file` or the system's authorities.

    Raises:
        SinkError: the file cannot be read or holds no certificate.
    """
    try:
        return ssl.create_default_context(cafile=net.ca_file)
    except (OSError, ssl.SSLError) as error:
        name = Path(net.ca_file or "").name
        raise SinkError(f"net.ca_file {name}: {error.strerror or error}") from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    """`error` and what caused it, groups taken apart."""
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        left += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            left += one.exceptions


def _reason(error: Exception) -> str:
    """The operating system's words where there are any."""
    for cause in _chain(error):
        # asyncio puts its own words, with the address, into `strerror`.
        if isinstance(cause, OSError) and cause.errno is not None and cause.errno > 0:
            return os.strerror(cause.errno)
    return str(error) or type(error).__name__
