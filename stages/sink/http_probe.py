"""What a web server can do with files: found out by doing it, on a file that is removed again.

No header tells. nginx answers 501 to a PUT with Content-Range and takes MOVE; lighttpd takes both,
but in one of its two modes copies the whole file for every range, which makes a dump's cost grow
with the square of its size (1 GB in pieces of 16 MiB: 28 MB/s and falling, against 570 MB/s).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Final

import anyio

from pipeline.errors import SinkError
from stages.sink.http_files import CannotReadError, HttpFiles
from stages.sink.http_url import PROBE

_MARK: Final = b"dumpstream"
_FAR: Final = 64 << 20
"""Far enough that copying what lies before it takes longer than a request does."""
_MOVED: Final = f"{PROBE}2"
_TRIES: Final = 3
_CLEAN_S: Final = 5.0
_COPY_RATE: Final = 8 << 30
"""Bytes a second that no server copies a file with."""


class Ranges(Enum):
    """What becomes of a PUT with Content-Range."""

    NONE = "the server cannot write parts of a file"
    COPIED = "the server copies the whole file for every part"
    IN_PLACE = "the server writes parts of a file in place"


@dataclass(frozen=True, slots=True)
class Abilities:
    """What the server can do.

    Attributes:
        moves: a file can get another name, so that the dump's own name appears when all is well.
        reads: what was written can be looked at.
    """

    ranges: Ranges
    moves: bool
    reads: bool


async def probe(files: HttpFiles) -> Abilities:
    """Write, move and remove a small file next to the dump, whose directory must be there.

    Raises:
        SinkError: the server refuses to take anything.
    """
    await files.try_put(PROBE, _MARK)
    try:
        reads = await _reads(files)
        ranges = await _ranges(files) if reads else Ranges.NONE
        moves = await files.can_move(PROBE, _MOVED, overwrite=True)
        await _remove(files, _MOVED if moves else PROBE)
    except BaseException:  # an answer may have been lost, so nobody knows which of them is there
        with anyio.move_on_after(_CLEAN_S, shield=True):
            for suffix in (PROBE, _MOVED):
                await _remove(files, suffix)
        raise
    return Abilities(ranges, moves, reads)


async def _remove(files: HttpFiles, suffix: str) -> None:
    """A server that does not let us remove keeps a small file."""
    with suppress(SinkError):
        await files.delete(suffix)


async def _reads(files: HttpFiles) -> bool:
    try:
        return await files.read(PROBE, 0, len(_MARK)) == _MARK
    except CannotReadError:
        return False


async def _ranges(files: HttpFiles) -> Ranges:
    at = len(_MARK) // 2
    if not await files.takes_range(PROBE, at, b"STREAM"):
        return Ranges.NONE
    wanted = _MARK[:at] + b"STREAM"
    if await files.read(PROBE, 0, 2 * len(wanted)) != wanted:
        return Ranges.NONE  # it took the part for the whole
    near_s = await _fastest(files)
    if not await files.takes_range(PROBE, _FAR, _MARK):
        return Ranges.NONE  # data is written far ahead of what lies before it
    extra_s = await _fastest(files) - near_s
    copies = extra_s > _FAR / _COPY_RATE and extra_s > near_s
    return Ranges.COPIED if copies else Ranges.IN_PLACE


async def _fastest(files: HttpFiles) -> float:
    """Seconds that changing the first bytes takes, without what else went on meanwhile."""
    times = []
    for _ in range(_TRIES):
        started = anyio.current_time()
        await files.put_range(PROBE, 0, _MARK)
        times.append(anyio.current_time() - started)
    return min(times)
