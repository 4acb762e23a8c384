"""A page bitmap that stays small: one compact entry for each 32768-page block.

A flat bitmap of 12 TiB at 4 KiB pages is 384 MiB, more than a capture kernel has. Real bitmaps are
long runs with a few busy blocks, so a block is kept in the smallest of three forms::

    EMPTY / FULL        the int 0 or 1
    run boundaries      uint16[n_edges], the offsets at which the bit flips, first value is 0 -> 1
    packed bits         uint8[4096], LSB first (the form both dump bitmaps have on disk)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.memory.addresses import BoolArray, ByteArray, PfnArray
from pipeline.memory.arrays import distinct
from pipeline.memory.extents import ExtentSet

BLOCK_PAGES: Final = 32768
"""Pages a block: its packed form fills one 4 KiB page, as makedumpfile's bitmap buffer does."""
BLOCK_BYTES: Final = BLOCK_PAGES // 8
_EMPTY: Final = 0
_FULL: Final = 1
# Above this many flips the packed form (4096 bytes) is smaller than two bytes a flip.
_MAX_EDGES: Final = BLOCK_BYTES // 2

_Block: TypeAlias = int | NDArray[np.uint16] | ByteArray


def _compact(bits: BoolArray) -> _Block:
    n_set = int(np.count_nonzero(bits))
    if n_set == 0:
        return _EMPTY
    if n_set == BLOCK_PAGES:
        return _FULL
    edges = np.flatnonzero(bits[1:] != bits[:-1]) + 1
    if bits[0]:
        edges = np.concatenate(([0], edges))
    if len(edges) < _MAX_EDGES:
        return edges.astype(np.uint16)
    return np.packbits(bits, bitorder="little")


def _expand(block: _Block) -> BoolArray:
    if isinstance(block, int):
        return np.full(BLOCK_PAGES, block == _FULL, dtype=np.bool_)
    out = np.zeros(BLOCK_PAGES, dtype=np.bool_)
    if block.dtype == np.uint8:
        out[:] = np.unpackbits(block.view(np.uint8), bitorder="little")
        return out
    edges = [*block.tolist(), BLOCK_PAGES]
    for start, stop in zip(edges[0::2], edges[1::2], strict=False):
        out[start:stop] = True
    return out


class PageBitmap:
    """Bits for pfns [0, n_pages), all clear at first.

    Reading or writing single bits is slow on purpose: work on whole blocks.
    """

    def __init__(self, n_pages: int) -> None:
        self.n_pages = n_pages
        self.n_blocks = -(-n_pages // BLOCK_PAGES)
        self._blocks: dict[int, _Block] = {}  # absent: empty
        self._counts: dict[int, int] = {}

    @classmethod
    def from_extents(cls, extents: ExtentSet, n_pages: int) -> PageBitmap:
        """Bits of `extents` below `n_pages` set; work grows with extents and their blocks."""
        out = cls(n_pages)
        for extent in extents.clip(0, n_pages):
            first, last = extent.start // BLOCK_PAGES, (extent.stop - 1) // BLOCK_PAGES
            for index in range(first, last + 1):
                base = index * BLOCK_PAGES
                start, stop = max(extent.start - base, 0), min(extent.stop - base, BLOCK_PAGES)
                if start == 0 and stop == BLOCK_PAGES:
                    out._blocks[index] = _FULL
                    out._counts[index] = BLOCK_PAGES
                    continue
                bits = out.block(index)
                bits[start:stop] = True
                out.set_block(index, bits)
        return out

    @classmethod
    def from_packed(cls, packed: ByteArray, n_pages: int) -> PageBitmap:
        """From on-disk bits (LSB first); bits at and above `n_pages` are ignored."""
        out = cls(n_pages)
        for index in range(out.n_blocks):
            raw = packed[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
            if not raw.any():
                continue
            bits = np.zeros(BLOCK_PAGES, dtype=np.bool_)
            some = np.unpackbits(raw, bitorder="little").view(np.bool_)
            n_valid = min(len(some), n_pages - index * BLOCK_PAGES)
            bits[:n_valid] = some[:n_valid]
            out.set_block(index, bits)
        return out

    def copy(self) -> PageBitmap:
        out = PageBitmap(self.n_pages)
        out._blocks = dict(self._blocks)
        out._counts = dict(self._counts)
        return out

    def truncated(self, n_pages: int) -> PageBitmap:
        """The same bits below `n_pages`, nothing above."""
        out = PageBitmap(n_pages)
        for index in sorted(self._blocks):
            if index < out.n_blocks:
                bits = self.block(index)
                bits[max(n_pages - index * BLOCK_PAGES, 0) :] = False
                out.set_block(index, bits)
        return out

    def block(self, index: int) -> BoolArray:
        """bool[BLOCK_PAGES] of block `index`, a fresh array that the caller owns."""
        return _expand(self._blocks.get(index, _EMPTY))

    def set_block(self, index: int, bits: BoolArray) -> None:
        """Replace block `index` by bool[BLOCK_PAGES]; bits past `n_pages` must be clear."""
        block = _compact(bits)
        if isinstance(block, int) and block == _EMPTY:
            self._blocks.pop(index, None)
            self._counts.pop(index, None)
            return
        self._blocks[index] = block
        self._counts[index] = int(np.count_nonzero(bits))

    def clear_range(self, start: int, stop: int) -> int:
        """Clear pfns [start, stop); returns how many were set."""
        n_cleared = 0
        stop = min(stop, self.n_pages)
        if start >= stop:
            return 0
        for index in self.busy_blocks(start // BLOCK_PAGES, (stop - 1) // BLOCK_PAGES + 1):
            base = index * BLOCK_PAGES
            bits = self.block(index)
            part = bits[max(start - base, 0) : stop - base]
            n_cleared += int(np.count_nonzero(part))
            part[:] = False
            self.set_block(index, bits)
        return n_cleared

    def block_count(self, index: int) -> int:
        return self._counts.get(index, 0)

    def busy_blocks(self, start: int, stop: int) -> list[int]:
        """Blocks of [start, stop) in which any bit is set, ascending.

        Looks at every block of the range or at all that are not empty, whichever are fewer.
        """
        if stop - start <= len(self._blocks):
            return [index for index in range(start, stop) if index in self._blocks]
        return sorted(index for index in self._blocks if start <= index < stop)

    def count(self) -> int:
        """Set bits in all."""
        return sum(self._counts.values())

    def pfns(self, index: int) -> PfnArray:
        """uint64[n]: pfns set in block `index`, ascending."""
        found = np.flatnonzero(self.block(index)).astype(np.uint64)
        return found + np.uint64(index * BLOCK_PAGES)

    def iter_pfns(self) -> Iterator[PfnArray]:
        """Pfns set, ascending, one array for each block that has any."""
        for index in sorted(self._blocks):
            yield self.pfns(index)

    def contains(self, pfns: PfnArray) -> BoolArray:
        """bool[n]: which of `pfns` are set; any order, those past the end are not."""
        out = np.zeros(len(pfns), dtype=np.bool_)
        blocks = pfns // np.uint64(BLOCK_PAGES)
        for index in distinct(blocks).tolist():
            if index in self._blocks:
                mine = blocks == index
                out[mine] = self.block(index)[(pfns[mine] % np.uint64(BLOCK_PAGES)).astype(np.intp)]
        return out

    def packed(self, index: int) -> bytes:
        """The block's 4096 bytes as they stand on disk, LSB first."""
        block = self._blocks.get(index, _EMPTY)
        if isinstance(block, int):
            return (b"\xff" if block == _FULL else b"\x00") * BLOCK_BYTES
        if block.dtype == np.uint8:
            return block.tobytes()
        return np.packbits(_expand(block), bitorder="little").tobytes()

    @property
    def n_bytes(self) -> int:
        """Memory the blocks take, without Python's own overhead."""
        return sum(8 if isinstance(block, int) else block.nbytes for block in self._blocks.values())
