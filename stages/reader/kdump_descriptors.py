"""Page descriptors of a kdump-compressed dump: which one is a page's, and is it sane.

A page's descriptor is number rank(pfn), the count of dumped pages below it. Ranks come from a
count for each bitmap block and a running count inside the block, kept for the blocks in use.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.memory.addresses import PfnArray
from pipeline.memory.arrays import distinct
from pipeline.memory.bitmap import BLOCK_PAGES, PageBitmap
from stages.compressor.codecs import CODECS
from stages.formats.kdump import PAGE_DESC
from stages.reader.file_io import ImageFile
from stages.reader.pieces import MAX_OFF, IntArray
from stages.reader.rows import ReadBatch

DescArray: TypeAlias = NDArray[np.void]
"""`PAGE_DESC`[n]."""

_RANK_SLOTS: Final = 16
"""Blocks whose running counts are kept, 64 KiB each: 2 GiB of pfns."""
_CHUNK: Final = 2048
"""Descriptors read at a time when single ones are wanted: 48 KiB."""
_CHUNK_SLOTS: Final = 16
_KNOWN_FLAGS: Final = np.array([int(codec.flag) for codec in CODECS], dtype=np.uint32)


class Descriptors:
    """The descriptor table of one file. Reads are cached in fixed slots, without locks."""

    def __init__(self, file: ImageFile, start: int, dumped: PageBitmap, first_pfn: int) -> None:
        """The table is at byte `start` and begins with the first of `dumped` from `first_pfn` on.

        `dumped` is the dump's own second bitmap, whole even in a split part.
        """
        self._file = file
        self._start = start
        self._dumped = dumped
        counts = [dumped.block_count(index) for index in range(dumped.n_blocks)]
        self._below = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
        self._ranks: list[tuple[int, NDArray[np.uint16]] | None] = [None] * _RANK_SLOTS
        self._chunks: list[tuple[int, DescArray] | None] = [None] * _CHUNK_SLOTS
        self._first_rank = 0
        self._first_rank = self.count_below(first_pfn)

    def count_below(self, pfn: int) -> int:
        """Descriptors of pages below `pfn`."""
        index, rest = divmod(min(pfn, self._dumped.n_pages), BLOCK_PAGES)
        inside = int(np.count_nonzero(self._dumped.block(index)[:rest])) if rest else 0
        return int(self._below[index]) + inside - self._first_rank

    def of_pages(self, pfns: PfnArray) -> DescArray:
        """Descriptors of `pfns` (ascending, all dumped); zeros where the file has none."""
        if not len(pfns):
            return np.zeros(0, dtype=PAGE_DESC)
        return self.read(self._rank(pfns))

    def read(self, ranks: IntArray) -> DescArray:
        """Descriptors number `ranks` (int64[n > 0], ascending); zeros where the file has none."""
        first, n_wanted = int(ranks[0]), len(ranks)
        if int(ranks[-1]) - first == n_wanted - 1 and n_wanted >= _CHUNK // 16:
            return self._load(first, n_wanted)
        out = np.zeros(n_wanted, dtype=PAGE_DESC)
        numbers = ranks // _CHUNK
        wanted = distinct(numbers).tolist()
        self._load_together(wanted)
        for number in wanted:
            mine = numbers == number
            out[mine] = self._chunk(number)[ranks[mine] - number * _CHUNK]
        return out

    def _load(self, first: int, n_wanted: int) -> DescArray:
        out = np.zeros(n_wanted, dtype=PAGE_DESC)
        try:
            raw = self._file.read(self._start + first * PAGE_DESC.itemsize, out.nbytes)
        except OSError:  # as good as lost: their pages are
            return out
        n_whole = len(raw) // PAGE_DESC.itemsize
        out[:n_whole] = np.frombuffer(raw, dtype=PAGE_DESC, count=n_whole)
        return out

    def _chunk(self, number: int) -> DescArray:
        slot = number % _CHUNK_SLOTS
        kept = self._chunks[slot]
        if kept is None or kept[0] != number:
            kept = self._chunks[slot] = (number, self._load(number * _CHUNK, _CHUNK))
        return kept[1]

    def _load_together(self, numbers: list[int]) -> None:
        """Over a line, chunks that are not kept are asked for side by side."""
        read_batch: ReadBatch | None = getattr(self._file, "read_batch", None)
        missing = [number for number in numbers if not self._has(number)][:_CHUNK_SLOTS]
        if read_batch is None or len(missing) < 2:
            return
        n_bytes = _CHUNK * PAGE_DESC.itemsize
        tables = [np.zeros(_CHUNK, dtype=PAGE_DESC) for _ in missing]
        views = [table.view(np.uint8).data for table in tables]
        outcomes = read_batch(views, [self._start + number * n_bytes for number in missing])
        for number, table, outcome in zip(missing, tables, outcomes, strict=True):
            n_whole = 0 if isinstance(outcome, OSError) else outcome // PAGE_DESC.itemsize
            table[n_whole:] = 0
            self._chunks[number % _CHUNK_SLOTS] = (number, table)

    def _has(self, number: int) -> bool:
        kept = self._chunks[number % _CHUNK_SLOTS]
        return kept is not None and kept[0] == number

    def _rank(self, pfns: PfnArray) -> IntArray:
        out = np.empty(len(pfns), dtype=np.int64)
        indices = (pfns // np.uint64(BLOCK_PAGES)).astype(np.int64)
        heads = [0, *(np.flatnonzero(np.diff(indices)) + 1).tolist(), len(pfns)]
        for start, stop in pairwise(heads):
            index = int(indices[start])
            inside = (pfns[start:stop] % np.uint64(BLOCK_PAGES)).astype(np.intp)
            out[start:stop] = self._counts(index)[inside]
            out[start:stop] += self._below[index] - 1 - self._first_rank
        return out

    def _counts(self, index: int) -> NDArray[np.uint16]:
        """Pages dumped in block `index` up to and including each of its pages."""
        slot = index % _RANK_SLOTS
        kept = self._ranks[slot]
        if kept is None or kept[0] != index:
            counts = np.cumsum(self._dumped.block(index), dtype=np.uint16)
            kept = self._ranks[slot] = (index, counts)
        return kept[1]


class DescriptorProblem(NamedTuple):
    """A descriptor that no writer meant."""

    pfn: int
    field: str
    value: int
    wanted: str

    def __str__(self) -> str:
        return f"pfn {self.pfn:#x}: {self.field} is {self.value:#x}, wanted {self.wanted}"


def usable(table: DescArray, page_size: int, file_size: int | None) -> NDArray[np.bool_]:
    """bool[n]: descriptors whose page can be looked for; lost ones (offset 0) are not."""
    sizes, flags = table["size"], table["flags"]
    good = (table["offset"] > 0) & (sizes > 0) & (sizes <= page_size)
    good &= np.isin(flags, _KNOWN_FLAGS) & ((flags != 0) | (sizes == page_size))
    limit = MAX_OFF if file_size is None else file_size
    good &= table["offset"] <= limit - sizes.astype(np.int64)
    found: NDArray[np.bool_] = good
    return found


def iter_problems(
    pfns: PfnArray, table: DescArray, page_size: int, file_size: int | None
) -> Iterator[DescriptorProblem]:
    """What is wrong with each descriptor that is not `usable`, lost ones excepted."""
    suspects = np.flatnonzero(~usable(table, page_size, file_size) & (table["offset"] != 0))
    for at in suspects.tolist():
        offset, size, flags, _ = table[at].tolist()
        yield _problem(int(pfns[at]), offset, size, flags, page_size, file_size)


def _problem(
    pfn: int, offset: int, size: int, flags: int, page_size: int, file_size: int | None
) -> DescriptorProblem:
    if flags not in _KNOWN_FLAGS:
        return DescriptorProblem(pfn, "flags", flags, "the flag of one codec, or 0")
    if flags == 0 and size != page_size:
        return DescriptorProblem(pfn, "size", size, f"{page_size:#x} for a raw page")
    if not 0 < size <= page_size:
        return DescriptorProblem(pfn, "size", size, f"1 to {page_size:#x}")
    end = "the file's end" if file_size is None else f"the file's end, {file_size:#x}"
    return DescriptorProblem(pfn, "offset", offset, f"{size} bytes of data before {end}")
