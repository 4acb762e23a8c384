"""Chunks of a dump, put together to the blocks that are sealed, without I/O and without keys.

A block is given out once all its bytes are there and it is certain whether it is the last one. The
areas of the dump become areas of whole blocks, in the same order::

    dump:      | head | bitmaps, descriptors | data ...            |
    blocks:    | 0 .. H-1 | H .. D-1           | D ..              |
    given out:   as one,    ascending,           ascending
                 last       D-1 at the end
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

from pipeline.errors import SinkError
from pipeline.flow.items import Chunk, ChunkKind
from stages.crypt.payload import BLOCK

_RUN_BLOCKS: Final = 16
"""1 MiB: what is sealed at once, in 0.25 to 0.8 ms."""


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring blocks, full but for the last of the dump.

    Attributes:
        kind: the area; bitmaps and descriptors are one.
        first: number of the first block.
        blocks: their bytes; borrowed from the chunk that was added last.
        ends: the last one is the dump's last.
    """

    kind: ChunkKind
    first: int
    blocks: list[memoryview | bytearray]
    ends: bool = False


class BlockAssembler:
    """Takes chunks as the writer sends them, the head once and last."""

    def __init__(self, data_start: int) -> None:
        self._data_start = data_start
        self.data_block = -(-data_start // BLOCK)
        """Number of the first block that has nothing but data."""
        self._low_start: int | None = None
        self._low_end = 0
        self._data_end = data_start
        self._head: bytes | None = None
        self._open: dict[int, _Filling] = {}

    def add(self, chunk: Chunk) -> list[Run]:
        """Take `chunk`; the runs that it completes, which must be used before it is released.

        Raises:
            SinkError: the chunk is not where its cursor stands.
        """
        view = memoryview(chunk.data)
        if chunk.kind is ChunkKind.HEAD:
            if self._head is not None or chunk.offset:
                raise SinkError("an encrypted dump takes its head once")
            self._head = bytes(view)
            return []
        if chunk.kind is ChunkKind.DATA:
            if chunk.offset != self._data_end:
                raise SinkError(f"data at {chunk.offset} where {self._data_end} was due")
            return self._add_data(view)
        if self._low_start is None:
            self._low_start = self._low_end = chunk.offset
        if not self._low_end <= chunk.offset <= self._data_start - len(view):
            raise SinkError(f"{chunk.kind.name} at {chunk.offset} where {self._low_end} was due")
        return self._pad_low(chunk.offset) + self._add_low(view)

    def _add_data(self, view: memoryview) -> list[Run]:
        if not view:
            return []
        start = self._data_end
        self._data_end += len(view)
        # The block that the data ends in, or at the end of, may turn out to be the dump's last.
        bound = (self._data_end - 1) // BLOCK
        held = self._take_full((start - 1) // BLOCK, self.data_block, bound)
        return _runs(ChunkKind.DATA, held + self._place(start, view, self.data_block, bound))

    def _add_low(self, view: memoryview) -> list[Run]:
        start = self._low_end
        self._low_end += len(view)
        # The last low block may hold data too, or be the dump's last: it waits for the end.
        blocks = self._place(start, view, self._first_low_block(), self.data_block - 1)
        return _runs(ChunkKind.DESCRIPTORS, blocks)

    def _pad_low(self, offset: int) -> list[Run]:
        return self._add_low(memoryview(bytes(offset - self._low_end)))

    def _first_low_block(self) -> int:
        """The block that the bitmaps start in goes with the head, unless they fill it."""
        start = self._data_start if self._low_start is None else self._low_start
        return -(-start // BLOCK)

    def _place(self, offset: int, view: memoryview, first: int, bound: int) -> list[_Block]:
        """Put `view` where it belongs; blocks of [first, bound) that are full now."""
        full: list[_Block] = []
        while view:
            index, at = divmod(offset, BLOCK)
            part, view = view[: BLOCK - at], view[BLOCK - at :]
            offset += len(part)
            if len(part) == BLOCK and first <= index < bound:
                full.append((index, part))
            else:
                self._open.setdefault(index, _Filling()).put(at, part)
                full += self._take_full(index, first, bound)
        return full

    def _take_full(self, index: int, first: int, bound: int) -> list[_Block]:
        filling = self._open.get(index)
        if filling is None or filling.n_bytes < BLOCK or not first <= index < bound:
            return []
        return [(index, self._open.pop(index).data)]

    def finish(self) -> list[Run]:
        """Everything that is left, the head last.

        Text has no head, and begins with its data.

        Raises:
            SinkError: there was no head, or it does not fit below the bitmaps.
        """
        if self._low_start is None:
            self._low_start = self._low_end = self._data_start
        if self._data_start == 0:
            self._head = b""
        if self._head is None or len(self._head) > self._low_start:
            raise SinkError(f"the dump has no head that fits below {self._low_start}")
        first_low = self._first_low_block()
        runs = self._pad_low(self._data_start)
        self._place(0, memoryview(self._head.ljust(self._low_start, b"\0")), 0, 0)
        n_blocks = -(-self._data_end // BLOCK)
        areas = (
            (ChunkKind.DESCRIPTORS, range(first_low, self.data_block)),
            (ChunkKind.DATA, range(self.data_block, n_blocks)),
            (ChunkKind.HEAD, range(first_low)),
        )
        for kind, indices in areas:
            left: list[_Block] = [
                (index, self._cut_to_size(index)) for index in indices if index in self._open
            ]
            runs += _runs(kind, left, last=n_blocks - 1)
        return runs

    def _cut_to_size(self, index: int) -> memoryview:
        data = self._open.pop(index).data
        return memoryview(data)[: self._data_end - index * BLOCK]


_Block: TypeAlias = tuple[int, memoryview | bytearray]


class _Filling:
    """A block that comes in pieces."""

    __slots__ = ("data", "n_bytes")

    def __init__(self) -> None:
        self.data = bytearray(BLOCK)
        self.n_bytes = 0

    def put(self, at: int, part: memoryview) -> None:
        self.data[at : at + len(part)] = part
        self.n_bytes += len(part)


def _runs(kind: ChunkKind, blocks: list[_Block], last: int = -1) -> list[Run]:
    """Neighbours together, up to `_RUN_BLOCKS`."""
    runs: list[Run] = []
    for start in range(0, len(blocks), _RUN_BLOCKS):
        some = blocks[start : start + _RUN_BLOCKS]
        runs.append(Run(kind, some[0][0], [data for _, data in some], ends=some[-1][0] == last))
    return runs
