"""Byte ranges of a URL, over connections that stay open.

The standard library's client, not httpx2 as for targets: an answer's body goes straight into the
caller's buffer, and importing it takes 30 ms instead of 300 (docs/adr/0016). A thread a request in
flight: they wait, and the interpreter lock is free while they do.
"""

from __future__ import annotations

import http.client
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin, urlsplit

from pipeline.errors import UnsupportedError
from pipeline.obs.log import log_event
from stages.reader.remote_file import HEAD_BLOCK, Outcome, Request
from stages.reader.remote_link import Link, SourceError

if TYPE_CHECKING:
    from pipeline.config.targets import NetSettings

_PARTIAL: Final = 206
_CHANGED: Final = 412
_TRANSIENT: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_EXPIRED: Final = frozenset({401, 403, 404, 410})
"""What signed URLs answer some time after a redirection: the first one gives another."""
_MAX_REDIRECTS: Final = 5
_PORTS: Final = {"http": 80, "https": 443}
_MAX_RETRY_AFTER_S: Final = 120.0
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")

Sign = Callable[[str, Mapping[str, str]], dict[str, str]]
"""Headers, with those that authorise a GET of the URL among them: after a redirection it may be one
of a server that is not to learn who we are."""


def unsigned(_url: str, headers: Mapping[str, str]) -> dict[str, str]:
    """For servers that ask nobody who he is."""
    return dict(headers)


def origin_of(url: str) -> tuple[str, str, int | None]:
    """What has to be the same for credentials to be sent: scheme, host and port."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or _PORTS.get(parts.scheme)


class _TransientError(Exception):
    """Another attempt may succeed."""

    def __init__(self, why: str, retry_after_s: float = 0.0) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(why)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where requests go; changes when the server redirects."""

    url: str

    @property
    def is_tls(self) -> bool:
        return urlsplit(self.url).scheme == "https"

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int | None:
        return urlsplit(self.url).port

    @property
    def target(self) -> str:
        parts = urlsplit(self.url)
        return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


class HttpTransport:
    """`Transport` of one URL whose server answers ranges."""

    has_holes = False

    def __init__(
        self,
        shown: str,
        url: str,
        net: NetSettings,
        link: Link,
        sign: Sign = unsigned,
        pause: Callable[[], float] | None = None,
    ) -> None:
        """Ask for the first bytes, which tells the size.

        Args:
            shown: the URL for people, without secrets.
            url: to ask, encoded.
            net: deadlines, retries and authorities.
            link: how much at once; learns how fast it is.
            sign: called for each attempt, in any thread.
            pause: seconds to wait before each request, for tests and measurements.

        Raises:
            SourceError: not reached, or refused.
            UnsupportedError: the server has no ranges.
        """
        self.path = shown
        self.link = link
        self.size: int | None = None
        self._net = net
        self._sign = sign
        self._pause = pause
        self._first = self._place = _Place(url)
        self._tag: str | None = None
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()
        self._closed = False
        self._tls: ssl.SSLContext | None = None
        self._pool = ThreadPoolExecutor(link.max_in_flight, thread_name_prefix="source")
        try:
            view = memoryview(bytearray(HEAD_BLOCK))
            self.head = bytes(view[: self._fetch_one((view, 0))])
        except BaseException:
            self.close()
            raise

    def fetch(self, requests: Sequence[Request]) -> list[Outcome]:
        if len(requests) == 1:
            return [self._fetch_one(requests[0])]
        try:
            return list(self._pool.map(self._fetch_one, requests))
        except RuntimeError as error:  # the pool takes nothing after `close`
            raise SourceError(f"{self.path}: closed") from error

    def _fetch_one(self, request: Request) -> int:
        if self.size is not None and request[1] >= self.size:
            return 0
        give_up_at = time.monotonic() + self._net.retry_deadline_s
        n_failures = 0
        while True:
            began = time.perf_counter()
            if self._pause is not None:
                time.sleep(self._pause())
            try:
                got = self._attempt(request)
            except _TransientError as error:
                n_failures += 1
                bound = min(
                    self._net.retry_most_s, self._net.retry_first_s * 2 ** min(n_failures, 30)
                )
                delay = max(error.retry_after_s, random.uniform(0, bound))
                if self._closed or time.monotonic() + delay >= give_up_at:
                    tries = f"{n_failures} attempts" if n_failures > 1 else "one attempt"
                    raise SourceError(f"{self.path}: {error} ({tries})") from error
                if self.size is None:  # nobody has heard anything yet
                    self._say(error, n_failures, delay)
                time.sleep(delay)
            else:
                self.link.book(1, got, time.perf_counter() - began)
                return got

    def _say(self, error: _TransientError, n_failures: int, delay: float) -> None:
        log_event(
            "connection_failed",
            "warning",
            why=f"{self.path}: {error}",
            failures=n_failures,
            retry_in_s=round(delay, 2),
        )

    def _attempt(self, request: Request) -> int:
        went_back = False
        for _ in range(_MAX_REDIRECTS):
            place = self._place
            connection = self._connection(place)
            try:
                answer = self._ask(connection, place, request)
                if answer.status in _REDIRECTS:
                    connection.close()
                    self._follow(place, answer)
                    continue
                if answer.status in _EXPIRED and place is not self._first and not went_back:
                    connection.close()
                    self._place, went_back = self._first, True
                    continue
                got = self._take(answer, request)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                raise self._failure(error) from error
            except BaseException:
                connection.close()
                raise
            self._give_back(connection, place)
            return got
        raise SourceError(f"{self.path}: more than {_MAX_REDIRECTS} redirections")

    def _ask(
        self, connection: http.client.HTTPConnection, place: _Place, request: Request
    ) -> http.client.HTTPResponse:
        view, off = request
        last = off + len(view) - 1
        headers = {"Range": f"bytes={off}-{last}", "Accept-Encoding": "identity"}
        if self._tag is not None:
            headers["If-Match"] = self._tag
        connection.request("GET", place.target, headers=self._sign(place.url, headers))
        return connection.getresponse()

    def _take(self, answer: http.client.HTTPResponse, request: Request) -> int:
        self._check_status(answer)
        start, stop, size = self._range_of(answer)
        view, off = request
        if start != off or stop - start > len(view):
            raise SourceError(f"{self.path}: asked for bytes from {off}, got {start}-{stop}")
        if self.size is None:
            self.size = size
            tag = answer.getheader("ETag", "")
            self._tag = tag if tag.startswith('"') else None
        elif size != self.size:
            raise SourceError(f"{self.path}: was {self.size} bytes, and is {size} now")
        view = view[: stop - start]
        done = 0
        while done < len(view):
            got = answer.readinto(view[done:])
            if not got:
                raise _TransientError(f"the answer ended after {done} of {len(view)} bytes")
            done += got
        answer.read()  # nothing is left, and the client marks the answer as finished
        return done

    def _check_status(self, answer: http.client.HTTPResponse) -> None:
        status = answer.status
        if status == _PARTIAL:
            return
        if status in _TRANSIENT:
            after = answer.getheader("Retry-After", "")
            wait = min(float(after), _MAX_RETRY_AFTER_S) if after.isdigit() else 0.0
            raise _TransientError(f"HTTP {status} {answer.reason}", wait)
        if status == _CHANGED:
            raise SourceError(f"{self.path}: changed while it was read")
        if status == 200:  # the status that says "here is all of it"
            raise UnsupportedError(f"{self.path}: its server has no byte ranges; download it first")
        raise SourceError(f"{self.path}: HTTP {status} {answer.reason}")

    def _range_of(self, answer: http.client.HTTPResponse) -> tuple[int, int, int]:
        """Start, stop and the whole size; the numbers come from outside."""
        text = answer.getheader("Content-Range", "")
        found = _CONTENT_RANGE.fullmatch(text)
        if found is None:
            raise SourceError(f"{self.path}: Content-Range is {text[:80]!r}, wanted bytes A-B/SIZE")
        first, last, size = (int(group) for group in found.groups())
        if not first <= last < size:
            raise SourceError(f"{self.path}: Content-Range is {text!r}, which makes no sense")
        return first, last + 1, size

    def _follow(self, place: _Place, answer: http.client.HTTPResponse) -> None:
        url = urljoin(place.url, answer.getheader("Location", ""))
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise SourceError(f"{self.path}: redirected to something that is no http or https URL")
        if place.is_tls and not _Place(url).is_tls:
            raise SourceError(f"{self.path}: redirected from https to http")
        self._place = _Place(url)

    def _connection(self, place: _Place) -> http.client.HTTPConnection:
        with self._lock:
            if self._closed:
                raise SourceError(f"{self.path}: closed")
            if self._idle:
                return self._idle.pop()
        timeout = self._net.connect_timeout_s
        if not place.is_tls:
            return http.client.HTTPConnection(place.host, place.port, timeout=timeout)
        return http.client.HTTPSConnection(
            place.host, place.port, timeout=timeout, context=self._tls_context()
        )

    def _tls_context(self) -> ssl.SSLContext:
        with self._lock:
            if self._tls is None:
                from stages.sink.web_client import tls_context

                self._tls = tls_context(self._net)
            return self._tls

    def _give_back(self, connection: http.client.HTTPConnection, place: _Place) -> None:
        if connection.sock is not None:
            connection.sock.settimeout(self._net.stall_timeout_s)
        with self._lock:
            if not self._closed and place is self._place:
                self._idle.append(connection)
                return
        connection.close()

    def _failure(self, error: Exception) -> Exception:
        match error:
            case ssl.SSLCertVerificationError():
                why = error.verify_message or str(error)
                return SourceError(f"{self.path}: certificate not trusted: {why}")
            case socket.gaierror() if error.errno != socket.EAI_AGAIN:
                return SourceError(f"{self.path}: {error.strerror}")
            case TimeoutError():
                return _TransientError("no answer in time")
            case OSError():
                return _TransientError(error.strerror or str(error) or type(error).__name__)
            case _:
                return _TransientError(f"{type(error).__name__}: {error}")

    def holes(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        return iter(())

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
