"""Connections of an HTTP source: kept open, direct or by way of the proxy that is named for it.

Requests for ``http`` go to a proxy as they are, with the whole URL. For ``https`` it is asked for a
tunnel, and the certificate that is verified is the server's::

    http     us ── GET http://server/x ──▶ proxy ── GET /x ──▶ server
    https    us ── CONNECT server:443 ──▶ proxy ◀────────────▶ server
             us ◀═══════════════════ TLS ════════════════════▶ server
"""

from __future__ import annotations

import base64
import http.client
import os
import socket
import ssl
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from pipeline.errors import UnsupportedError
from stages.reader.remote_link import SourceError
from stages.sink.proxies import proxy_for, show_proxy

if TYPE_CHECKING:
    from pipeline.config.targets import NetSettings

_PORTS: Final = {"http": 80, "https": 443}


class ProxyRefusedError(Exception):
    """The proxy opens no tunnel."""

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        super().__init__(f"HTTP {status} {reason}")


def origin_of(url: str) -> tuple[str, str, int | None]:
    """What has to be the same for credentials to be sent: scheme, host and port.

    Raises:
        ValueError: not a URL.
    """
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or _PORTS.get(parts.scheme)


@dataclass(frozen=True, slots=True)
class Place:
    """Where requests go, and by what proxy."""

    url: str
    origin: tuple[str, str, int | None]
    proxy: str | None

    @classmethod
    def of(cls, url: str) -> Place:
        """The place of `url`, as the environment is now.

        Raises:
            ValueError: not a URL.
            ConfigError: what the environment names is no proxy.
        """
        return cls(url, origin_of(url), proxy_for(url, os.environ))

    @property
    def is_tls(self) -> bool:
        return self.origin[0] == "https"

    @property
    def target(self) -> str:
        """What stands in the first line of a request."""
        parts = urlsplit(self.url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if self.proxy is None or self.is_tls:
            return path
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}"

    @property
    def headers(self) -> dict[str, str]:
        """What the proxy wants to see in a request that it reads."""
        return {} if self.proxy is None or self.is_tls else _proxy_headers(self.proxy)

    @property
    def via(self) -> str:
        """For people, in front of what went wrong."""
        return "" if self.proxy is None else f"by way of the proxy {show_proxy(self.proxy)}: "


def _proxy_headers(proxy: str) -> dict[str, str]:
    parts = urlsplit(proxy)
    if parts.username is None:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


class _Tunnel(http.client.HTTPSConnection):
    """TLS to a server through a proxy, which sees nothing but where to."""

    def __init__(
        self, host: str, port: int | None, proxy: str, *, timeout: float, context: ssl.SSLContext
    ) -> None:
        super().__init__(host, port, timeout=timeout, context=context)
        self._proxy = proxy
        self._tls = context

    def connect(self) -> None:
        """As of a connection, through the proxy.

        Raises:
            ProxyRefusedError: it answers, but opens no tunnel.
        """
        _, host, port = origin_of(self._proxy)
        sock = socket.create_connection((host, port), self.timeout)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._ask(sock)
            self.sock = self._tls.wrap_socket(sock, server_hostname=self.host)
        except BaseException:
            sock.close()
            raise

    def _ask(self, sock: socket.socket) -> None:
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [f"CONNECT {host}:{self.port} HTTP/1.1", f"Host: {host}:{self.port}"]
        lines += [f"{name}: {value}" for name, value in _proxy_headers(self._proxy).items()]
        sock.sendall("\r\n".join([*lines, "", ""]).encode("ascii"))
        answer = http.client.HTTPResponse(sock, method="CONNECT")
        try:
            answer.begin()
            if not 200 <= answer.status < 300:
                raise ProxyRefusedError(answer.status, answer.reason)
        finally:
            answer.close()


class Connections:
    """Connections that wait for the next request, of one origin at a time. Safe from threads."""

    def __init__(self, shown: str, net: NetSettings) -> None:
        """`shown` is the source's URL for people."""
        self.is_closed = False
        self._shown = shown
        self._net = net
        self._idle: list[http.client.HTTPConnection] = []
        self._in_use: set[http.client.HTTPConnection] = set()
        self._origin: tuple[str, str, int | None] | None = None
        """Where all idle connections lead: a request must not reach whom it is not meant for."""
        self._lock = threading.Lock()
        self._tls: ssl.SSLContext | None = None

    def take(self, place: Place) -> http.client.HTTPConnection:
        """A connection that leads to `place`; new ones are opened by their first request.

        Raises:
            SourceError: `close` was called.
            UnsupportedError: a proxy that is itself reached by TLS, for https.
            SinkError: the file of authorities cannot be used.
        """
        with self._lock:
            idle = self._idle.pop() if place.origin == self._origin and self._idle else None
        connection = idle or self._open(place)
        with self._lock:
            if not self.is_closed:
                self._in_use.add(connection)
                return connection
        connection.close()
        raise SourceError(f"{self._shown}: closed")

    def _open(self, place: Place) -> http.client.HTTPConnection:
        timeout = self._net.connect_timeout_s
        _, host, port = place.origin
        if not place.is_tls:
            scheme = "http"
            if place.proxy is not None:
                scheme, host, port = origin_of(place.proxy)
            if scheme == "http":
                return http.client.HTTPConnection(host, port, timeout=timeout)
        elif place.proxy is not None:
            if origin_of(place.proxy)[0] == "https":
                raise UnsupportedError(
                    f"{self._shown}: the proxy {show_proxy(place.proxy)} is reached by TLS, which "
                    "works for http:// sources only"
                )
            context = self._tls_context()
            return _Tunnel(host, port, place.proxy, timeout=timeout, context=context)
        context = self._tls_context()
        return http.client.HTTPSConnection(host, port, timeout=timeout, context=context)

    def _tls_context(self) -> ssl.SSLContext:
        with self._lock:
            if self._tls is None:
                from stages.sink.web_client import tls_context

                self._tls = tls_context(self._net)
            return self._tls

    def give_back(self, connection: http.client.HTTPConnection, place: Place) -> None:
        """Keep `connection` for the next request to where `place` is."""
        if connection.sock is not None:
            connection.sock.settimeout(self._net.stall_timeout_s)
        with self._lock:
            self._in_use.discard(connection)
            if self.is_closed:
                stale = [connection]
            elif place.origin == self._origin:
                self._idle.append(connection)
                return
            else:
                stale, self._idle, self._origin = self._idle, [connection], place.origin
        for each in stale:
            each.close()

    def drop(self, connection: http.client.HTTPConnection) -> None:
        """Close a connection that was taken, and is no good any more."""
        with self._lock:
            self._in_use.discard(connection)
        connection.close()

    def close(self) -> None:
        """Close all; what is in use ends at once, and is closed by whom it is used."""
        with self._lock:
            self.is_closed = True
            idle, self._idle = self._idle, []
            socks = [each.sock for each in self._in_use if each.sock is not None]
        for connection in idle:
            connection.close()
        for sock in socks:
            with suppress(OSError):  # not of SSLSocket, which would forget its state under a reader
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
