"""Cuts a dump into the numbered parts of an object store's upload; pure, no I/O.

The object is a grid of parts, so a part's number follows from an offset and the other way round.
Low parts are small because up to three of them stay open for as long as the dump takes::

    0        low_part  ...            data_start                  total size
    | part 1 | part 2 | ... | part k with the first data | k+1 | ... | n (short) |
      head     bitmaps and                                 `data_part` bytes each
      waits    descriptors, filled
      for the  by the slow cursor
      end

Both sizes are equal unless the dump may exceed the limit on the number of parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from pipeline.errors import SinkError
from pipeline.flow.items import Chunk, ChunkKind, Outline

_MIB: Final = 1 << 20
_LOW_SHARE: Final = 10
"""At most a tenth of the parts may lie below the data."""


@dataclass(frozen=True, slots=True)
class PartLimits:
    """What a store allows; the last part may always be smaller than `least_bytes`."""

    least_bytes: int
    most_bytes: int
    most_parts: int


class Part(NamedTuple):
    """A part that lies at `offset` of the object; `number` counts from 1."""

    number: int
    offset: int
    n_bytes: int


class Span(NamedTuple):
    """Bytes for one part: `data` goes to `start` inside it; None is `n_bytes` zeros."""

    number: int
    start: int
    n_bytes: int
    data: memoryview | None


@dataclass(frozen=True, slots=True)
class Grid:
    """Where each part lies.

    Attributes:
        n_low: parts that hold anything below the data; the last of them is filled up with data.
    """

    data_start: int
    low_part: int
    data_part: int

    @property
    def n_low(self) -> int:
        return -(-self.data_start // self.low_part)

    @property
    def n_open(self) -> int:
        """Parts that may be incomplete at once.

        The head's, the one descriptors fill, the one where data begins, and the one data fills.
        """
        return min(self.n_low, 3) + 1

    def locate(self, offset: int) -> tuple[int, int]:
        """Number of the part that holds `offset`, and the byte inside it."""
        low_end = self.n_low * self.low_part
        if offset < low_end:
            index, start = divmod(offset, self.low_part)
            return index + 1, start
        index, start = divmod(offset - low_end, self.data_part)
        return self.n_low + index + 1, start

    def part(self, number: int) -> Part:
        """The part of that number at its full size."""
        if number <= self.n_low:
            return Part(number, (number - 1) * self.low_part, self.low_part)
        start = self.n_low * self.low_part + (number - self.n_low - 1) * self.data_part
        return Part(number, start, self.data_part)


def plan_grid(outline: Outline, limits: PartLimits, wanted_bytes: int | None) -> Grid:
    """Parts for a dump of that outline.

    Parts grow so that the dump fits even if no page compresses; where the store's limits forbid
    that, it may turn out too large when it comes to it.

    Args:
        outline: of the dump.
        limits: of the store.
        wanted_bytes: part size asked for, None for the smallest.
    """
    wanted = min(max(wanted_bytes or 0, limits.least_bytes), limits.most_bytes)
    if outline.most_bytes <= wanted * limits.most_parts:
        return Grid(outline.data_start, wanted, wanted)
    n_low = max(limits.most_parts // _LOW_SHARE, 1)
    low = min(max(wanted, _share(outline.data_start, n_low)), limits.most_bytes)
    n_left = max(limits.most_parts - -(-outline.data_start // low), 1)
    data = max(wanted, _share(outline.most_bytes - outline.data_start, n_left))
    return Grid(outline.data_start, low, min(data, limits.most_bytes))


def _share(n_bytes: int, n_parts: int) -> int:
    """Size in whole MiB of which `n_parts` hold `n_bytes`."""
    return -(-n_bytes // (n_parts * _MIB)) * _MIB


class PartAssembler:
    """Follows the cursors of a dump and says which parts are complete.

    The caller copies each `Span` where it belongs and then calls `add`.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._head_end: int | None = None
        self._low_start: int | None = None
        self._low_end = 0
        self._data_end = grid.data_start

    @property
    def size(self) -> int:
        """Bytes of the object so far, the gaps below the data included."""
        return self._data_end

    def spans(self, chunk: Chunk) -> Iterator[Span]:
        """Where the bytes of `chunk` go; zeros for the gap before it, if there is one.

        Raises:
            SinkError: the chunk is not where its cursor stands.
        """
        data = memoryview(chunk.data)
        if chunk.kind is ChunkKind.HEAD:
            yield from self._head_spans(chunk, data)
            return
        start = self._data_end if chunk.kind is ChunkKind.DATA else self._low_end
        if chunk.kind is ChunkKind.DATA:
            self._require(chunk, chunk.offset == start, f"wanted at {start}")
        else:
            if self._low_start is None:
                self._low_start = self._low_end = start = chunk.offset
            fits = start <= chunk.offset <= self._grid.data_start - len(data)
            self._require(
                chunk, fits, f"wanted from {start}, below the data at {self._grid.data_start}"
            )
            yield from self._cut(start, chunk.offset - start, None)
        yield from self._cut(chunk.offset, len(data), data)

    def _head_spans(self, chunk: Chunk, data: memoryview) -> Iterator[Span]:
        low_start = self._grid.data_start if self._low_start is None else self._low_start
        self._require(chunk, self._head_end is None, "wanted once")
        self._require(chunk, chunk.offset == 0 and len(data) <= low_start, f"below {low_start}")
        self._head_end = 0
        yield from self._cut(0, len(data), data)
        yield from self._cut(len(data), low_start - len(data), None)

    @staticmethod
    def _require(chunk: Chunk, fits: bool, wanted: str) -> None:
        if not fits:
            raise SinkError(
                f"{chunk.kind.name} chunk of {chunk.n_bytes} bytes at {chunk.offset}, {wanted}"
            )

    def _cut(self, offset: int, n_bytes: int, data: memoryview | None) -> Iterator[Span]:
        done = 0
        while done < n_bytes:
            number, start = self._grid.locate(offset + done)
            size = min(self._grid.part(number).n_bytes - start, n_bytes - done)
            piece = None if data is None else data[done : done + size]
            yield Span(number, start, size, piece)
            done += size

    def add(self, kind: ChunkKind, span: Span) -> Part | None:
        """Note that `span` is in place; its part, if that is complete now."""
        part = self._grid.part(span.number)
        end = part.offset + span.start + span.n_bytes
        if kind is ChunkKind.HEAD:
            self._head_end = end
        elif kind is ChunkKind.DATA:
            self._data_end = end
        else:
            self._low_end = end
        return part if self._is_complete(part) else None

    def _is_complete(self, part: Part) -> bool:
        end = part.offset + part.n_bytes
        data_start = self._grid.data_start
        if end > data_start and self._data_end < end:
            return False
        if part.offset >= data_start:
            return True
        low_start = data_start if self._low_start is None else self._low_start
        low_end = min(end, data_start)
        if low_end > low_start and self._low_end < low_end:
            return False
        if part.offset >= low_start:
            return True
        if part.number == 1 and low_start <= end:
            return False  # `finish` gives it out: it makes the rest a dump
        return self._head_end is not None and self._head_end >= min(end, low_start)

    def finish(self, sent: set[int]) -> list[Part]:
        """The parts that are still open, now that the dump has ended, the first part last.

        The one at the end is cut short.

        Args:
            sent: numbers of the parts that `add` returned.

        Raises:
            SinkError: the head is missing, or there is nothing at all.
        """
        if self.size == 0:
            raise SinkError("the dump has no bytes")
        if self._low_start != 0 and self._grid.data_start and self._head_end is None:
            raise SinkError("the dump ended without its head")
        last, _ = self._grid.locate(self.size - 1)
        left = [self._grid.part(number) for number in range(last, 0, -1) if number not in sent]
        return [part._replace(n_bytes=min(part.n_bytes, self.size - part.offset)) for part in left]
