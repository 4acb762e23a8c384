"""A finished dump where it is kept, to be looked at and read in parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import anyio.to_thread

from pipeline.errors import SinkError, UsageError
from stages.sink.manifest import MAX_BYTES, SUFFIX

if TYPE_CHECKING:
    from pipeline.config.settings import Settings
    from stages.sink.web_client import Answer

# Each module offers make_stored(url: str, settings: Settings) -> StoredDump.
_SCHEMES: Final = {"az": "stages.sink.azure", "s3": "stages.sink.s3"}


@dataclass(frozen=True, slots=True)
class Looks:
    """What a store says of a dump without giving any of it away.

    Attributes:
        marks: checksums that the store keeps, under the names of `Manifest.stored`.
    """

    size: int
    marks: Mapping[str, str] = field(default_factory=dict)


class StoredDump(Protocol):
    """One dump. Reads may be made several at a time.

    Every method but `close` raises `TransientError` where another attempt may succeed, and
    `SinkError` where it may not; the caller retries.
    """

    target: str

    async def look(self) -> Looks | None:
        """What the store says of it; None when it is not there."""

    async def read(self, offset: int, length: int) -> bytes:
        """Bytes of it; fewer at its end."""
        ...

    async def read_manifest(self) -> bytes | None:
        """The manifest next to it; None when there is none."""

    async def close(self) -> None:
        """Close connections; never raises."""


def find_stored(target: str, settings: Settings) -> StoredDump:
    """The dump at `target`, a path or a URL.

    Raises:
        UsageError: dumps can't be read there, or the URL names none.
    """
    scheme, found, _ = target.partition("://")
    if not found:
        return StoredFile(Path(target))
    name = _SCHEMES.get(scheme.lower())
    if name is None:
        known = ", ".join(f"{one}://" for one in _SCHEMES)
        raise UsageError(f"{scheme}:// can't be verified where it is; {known} and files can")
    dump: StoredDump = import_module(name).make_stored(target, settings)
    return dump


def ranged_body(target: str, answer: Answer, offset: int, length: int) -> bytes:
    """The body of a good answer to a request for `length` bytes at `offset`.

    Raises:
        SinkError: the server did not give that range.
    """
    # Status 206 is not asked for: some servers answer 200 and a part all the same.
    given = answer.headers.get("content-range", "")
    if not given.startswith(f"bytes {offset}-") or len(answer.body) > length:
        raise SinkError(f"{target}: the server does not give parts of it")
    return answer.body


class StoredFile:
    """StoredDump on a mounted file system."""

    def __init__(self, path: Path) -> None:
        self.target = str(path)
        self._path = path

    async def look(self) -> Looks | None:
        try:
            status = await anyio.to_thread.run_sync(self._path.stat)
        except FileNotFoundError:
            return None
        return Looks(status.st_size)

    async def read(self, offset: int, length: int) -> bytes:
        return await anyio.to_thread.run_sync(_read, self._path, offset, length)

    async def read_manifest(self) -> bytes | None:
        path = self._path.with_name(self._path.name + SUFFIX)
        try:
            return await anyio.to_thread.run_sync(_read, path, 0, MAX_BYTES + 1)
        except FileNotFoundError:
            return None

    async def close(self) -> None:
        """Nothing stays open."""


def _read(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)
