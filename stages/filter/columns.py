"""The members of many struct pages as arrays: strided views on raw memmap, nothing is copied."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.memory.addresses import BoolArray, ByteArray
from stages.filter.page_layout import PageLayout


class Columns:
    """Views of `n_pages` struct pages that lie one after the other in `raw`."""

    def __init__(self, raw: ByteArray, n_pages: int, layout: PageLayout) -> None:
        if raw.nbytes < n_pages * layout.size:
            raise ValueError(f"{raw.nbytes} bytes do not hold {n_pages} struct pages")
        self._raw = raw
        self._n_pages = n_pages
        self._layout = layout
        self._little = layout.byte_order == "<"

    def _view(self, offset: int, n_bytes: int) -> NDArray[np.unsignedinteger]:
        return np.ndarray(
            (self._n_pages,),
            dtype=f"{self._layout.byte_order}u{n_bytes}",
            buffer=self._raw.data,
            offset=offset,
            strides=(self._layout.size,),
        )

    def word(self, offset: int) -> NDArray[np.unsignedinteger]:
        return self._view(offset, self._layout.word)

    def u32(self, offset: int) -> NDArray[np.unsignedinteger]:
        return self._view(offset, 4)

    def byte(self, offset: int) -> NDArray[np.unsignedinteger]:
        return self._view(offset, 1)

    def bit0(self, offset: int) -> BoolArray:
        """Bit 0 of the word at `offset`; reads one byte a page, which is all that is needed."""
        low = offset if self._little else offset + self._layout.word - 1
        bits: BoolArray = np.bitwise_and(self._view(low, 1), 1).view(np.bool_)
        return bits

    def flags(self, masks: int) -> NDArray[np.unsignedinteger]:
        """page.flags, contiguous; as uint32 when all of `masks` fit, which halves the work."""
        offset, word = self._layout.flags_off, self._layout.word
        if masks >> 32:
            return np.ascontiguousarray(self._view(offset, word))
        low = offset if self._little else offset + word - 4
        return np.ascontiguousarray(self._view(low, 4))


def is_set(flags: NDArray[np.unsignedinteger], mask: int) -> BoolArray:
    """All bits of `mask`, which is not 0."""
    wanted = flags.dtype.type(mask)
    result: BoolArray = (flags & wanted) == wanted
    return result
