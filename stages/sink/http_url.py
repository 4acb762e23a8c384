"""Targets spelt ``http(s)://host[:port]/path[?query]``; the query may be a secret, never shown."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

from pipeline.errors import UsageError

_CONTROL: Final = re.compile(r"[\x00-\x20\x7f]")
PARTIAL: Final = ".partial"
PROBE: Final = ".probe"


@dataclass(frozen=True, slots=True)
class HttpTarget:
    """Where a dump goes.

    Attributes:
        base: scheme, host and path, encoded; nothing secret in it.
        query: with its question mark, or empty.
        user: whose password to look up in netrc, None for whoever is listed.
    """

    base: str
    host: str
    user: str | None
    query: str

    @property
    def name(self) -> str:
        """The last part of the path, decoded."""
        return unquote(self.base.rpartition("/")[2])

    @property
    def is_secure(self) -> bool:
        return self.base.startswith("https:")

    def url(self, suffix: str = "") -> str:
        """What to request; `suffix` makes the names of files that lie next to the dump."""
        return f"{self.base}{suffix}{self.query}"

    def show(self, suffix: str = "") -> str:
        """The target in a message."""
        return f"{self.base}{suffix}"


def parse_http_url(url: str) -> HttpTarget:
    """`url` as a target.

    Raises:
        UsageError: it names no file, or has a password in it.
    """
    shown = re.sub(r"//[^/@]*@", "//...@", url.partition("?")[0])
    try:
        parts = urlsplit(url)
        port = "" if parts.port is None else f":{parts.port}"
    except ValueError as error:
        raise UsageError(f"{shown}: {error}") from error
    if parts.password is not None:
        raise UsageError(f"{shown}: a password must not stand in a URL; netrc is the place")
    host = parts.hostname
    if not host or _CONTROL.search(url):
        raise UsageError(f"{shown}: wanted {parts.scheme}://host/path without spaces")
    if parts.fragment:
        raise UsageError(f"{shown}: # in a path is written %23")
    if unquote(parts.path.rpartition("/")[2]) in ("", ".", ".."):
        raise UsageError(f"{shown}: names no file")
    place = f"[{host}]" if ":" in host else host
    query = f"?{parts.query}" if parts.query else ""
    user = unquote(parts.username) if parts.username else None
    return HttpTarget(f"{parts.scheme}://{place}{port}{parts.path}", host, user, query)
