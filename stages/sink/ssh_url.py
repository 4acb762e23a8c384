"""Targets spelt ``sftp://[user@]host[:port]/path``: taken apart, and refused when they are odd.

A path is absolute; ``/~/path`` starts in the user's home directory at the other end.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from pipeline.errors import UsageError

_HOST: Final = re.compile(r"[A-Za-z0-9_.:%\[\]-]+")
"""Names, addresses, and aliases of an OpenSSH configuration."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_HOME: Final = "/~/"


@dataclass(frozen=True, slots=True)
class SshTarget:
    """Where a dump goes; user and port are None where the OpenSSH configuration decides."""

    scheme: str
    user: str | None
    host: str
    port: int | None
    path: str

    @property
    def partial(self) -> str:
        """The name that the dump has until it is whole."""
        return f"{self.path}.partial"

    def show(self, path: str | None = None) -> str:
        """The target in a message; there is nothing secret in it."""
        user = f"{self.user}@" if self.user is not None else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = f":{self.port}" if self.port is not None else ""
        shown = self.path if path is None else path
        start = "" if shown.startswith("/") else _HOME
        return f"{self.scheme}://{user}{host}{port}{start}{shown}"


def parse_ssh_url(url: str) -> SshTarget:
    """`url` as a target.

    Raises:
        UsageError: a part is missing, or could be taken for something else by ssh or a shell.
    """
    shown = re.sub(r"//[^/@]*:[^/@]*@", "//...@", url)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"{shown}: {error}") from error
    host, user = parts.hostname or "", parts.username
    if parts.password is not None:
        raise UsageError(f"{shown}: a password must not stand in a URL; use a key or an agent")
    if host.startswith("-") or not _HOST.fullmatch(host):
        raise UsageError(f"{shown}: {host!r} is not a host")
    if user is not None:
        user = unquote(user)
        if not user or user.startswith("-") or re.search(r"[\s\x00-\x1f]", user):
            raise UsageError(f"{shown}: {user!r} is not a user")
    return SshTarget(parts.scheme, user, _host_as_written(parts), port, _path(parts, shown))


def _host_as_written(parts: SplitResult) -> str:
    """The host without brackets, its case kept: aliases of a configuration have one."""
    place = parts.netloc.rpartition("@")[2]
    if place.startswith("["):
        return place[1:].partition("]")[0]
    return place.partition(":")[0]


def _path(parts: SplitResult, shown: str) -> str:
    if parts.query or parts.fragment:
        raise UsageError(f"{shown}: ? and # in a path are written %3F and %23")
    path = unquote(parts.path)
    if _CONTROL.search(path):
        raise UsageError(f"{shown}: the path has control characters")
    name = path.rpartition("/")[2]
    if name in ("", ".", "..", "~"):
        raise UsageError(f"{shown}: names no file")
    return path.removeprefix(_HOME) if path.startswith(_HOME) else path
