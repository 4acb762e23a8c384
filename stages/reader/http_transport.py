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
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urljoin

from pipeline.errors import UnsupportedError
from pipeline.obs.log import log_event
from stages.reader.http_connections import Connections, Place, ProxyRefusedError
from stages.reader.pieces import MAX_OFF
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
_SCHEMES: Final = ("http", "https")
_URL_MARKS: Final = ":/?#[]@!$&'()*+,;=%~"
"""What stays in a Location as it is, beside letters and digits."""
_MAX_RETRY_AFTER_S: Final = 120.0
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")

Sign = Callable[[str, Mapping[str, str]], dict[str, str]]
"""Headers, with those that authorise a GET of the URL among them: after a redirection it may be one
of a server that is not to learn who we are."""


def unsigned(_url: str, headers: Mapping[str, str]) -> dict[str, str]:
    """For servers that ask nobody who he is."""
    return dict(headers)


class _TransientError(Exception):
    """Another attempt may succeed."""

    def __init__(self, why: str, retry_after_s: float = 0.0) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(why)


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
            ConfigError: what the environment names is no proxy.
        """
        self.path = shown
        self.link = link
        self.size: int | None = None
        self._net = net
        self._sign = sign
        self._pause = pause
        self._first = self._place = Place.of(url)
        self._tag: str | None = None
        self._connections = Connections(shown, net)
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
        except (RuntimeError, CancelledError) as error:  # `close` empties the pool
            raise SourceError(f"{self.path}: closed") from error

    def _fetch_one(self, request: Request) -> int:
        """Fill the view up to the end of the file; a server may send less than it was asked for."""
        view, off = request
        done = 0
        while done < len(view) and (self.size is None or off + done < self.size):
            done += self._fetch_piece((view[done:], off + done))
        return done

    def _fetch_piece(self, request: Request) -> int:
        give_up_at = time.monotonic() + self._net.retry_deadline_s
        n_failures = 0
        while True:
            began = time.perf_counter()
            if self._pause is not None:
                time.sleep(self._pause())
            try:
                got = self._attempt(request)
            except _TransientError as error:
                if self._connections.is_closed:  # that is why
                    raise SourceError(f"{self.path}: closed") from error
                n_failures += 1
                bound = min(
                    self._net.retry_most_s, self._net.retry_first_s * 2 ** min(n_failures, 30)
                )
                delay = max(error.retry_after_s, random.uniform(0, bound))
                if time.monotonic() + delay >= give_up_at:
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
            connection = self._connections.take(place)
            try:
                # An answer that ends with its connection holds the socket, too.
                with self._ask(connection, place, request) as answer:
                    if answer.status in _REDIRECTS:
                        self._connections.drop(connection)
                        self._follow(place, answer)
                        continue
                    if answer.status in _EXPIRED and place is not self._first and not went_back:
                        self._connections.drop(connection)
                        self._place, went_back = self._first, True
                        continue
                    got = self._take(answer, request)
            except (OSError, http.client.HTTPException, ProxyRefusedError) as error:
                self._connections.drop(connection)
                raise self._failure(error, place) from error
            except BaseException:
                self._connections.drop(connection)
                raise
            self._connections.give_back(connection, place)
            return got
        raise SourceError(f"{self.path}: more than {_MAX_REDIRECTS} redirections")

    def _ask(
        self, connection: http.client.HTTPConnection, place: Place, request: Request
    ) -> http.client.HTTPResponse:
        view, off = request
        last = off + len(view) - 1
        headers = {"Range": f"bytes={off}-{last}", "Accept-Encoding": "identity"}
        if self._tag is not None:
            headers["If-Match"] = self._tag
        headers = self._sign(place.url, headers) | place.headers
        connection.request("GET", place.target, headers=headers)
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
        # Reading on marks the answer as finished, and must not bring anything.
        if not answer.isclosed() and answer.read(1):
            raise SourceError(f"{self.path}: sends more than the {done} bytes that it announces")
        return done

    def _check_status(self, answer: http.client.HTTPResponse) -> None:
        status = answer.status
        if status == _PARTIAL:
            return
        if status in _TRANSIENT:
            after = answer.getheader("Retry-After", "")
            wait = min(float(after), _MAX_RETRY_AFTER_S) if after.isdecimal() else 0.0
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
        if not first <= last < size <= MAX_OFF:
            raise SourceError(f"{self.path}: Content-Range is {text!r}, which makes no sense")
        return first, last + 1, size

    def _follow(self, place: Place, answer: http.client.HTTPResponse) -> None:
        location = quote(answer.getheader("Location", "").encode("latin-1"), safe=_URL_MARKS)
        try:
            following = Place.of(urljoin(place.url, location))
        except ValueError:
            following = None
        if following is None or following.origin[0] not in _SCHEMES or not following.origin[1]:
            raise SourceError(f"{self.path}: redirected to something that is no http or https URL")
        if place.is_tls and not following.is_tls:
            raise SourceError(f"{self.path}: redirected from https to http")
        self._place = following

    def _failure(self, error: Exception, place: Place) -> Exception:
        match error:
            case ssl.SSLCertVerificationError():
                why = error.verify_message or str(error)
                return SourceError(f"{self.path}: {place.via}certificate not trusted: {why}")
            case socket.gaierror() if error.errno != socket.EAI_AGAIN:
                return SourceError(f"{self.path}: {place.via}{error.strerror}")
            case ProxyRefusedError() if error.status not in _TRANSIENT:
                return SourceError(f"{self.path}: {place.via}{error}")
            case TimeoutError():
                why = "no answer in time"
            case OSError():
                why = error.strerror or str(error) or type(error).__name__
            case ProxyRefusedError():
                why = str(error)
            case _:
                why = f"{type(error).__name__}: {error}"
        return _TransientError(f"{place.via}{why}")

    def holes(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        return iter(())

    def close(self) -> None:
        self._connections.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
