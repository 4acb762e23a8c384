"""Shared memory slots: where a worker finds its batch and leaves what came of it.

One anonymous shared mapping, made before the workers are forked, cut into equal slots::

    pfns     uint64[capacity]     in    which pages, when the worker reads them itself
    offsets  int64[capacity]      out   first byte of the page in `data`
    sizes    uint32[capacity]     out   bytes of the page in `data`
    states   uint8[capacity]      in/out
    coded    bool[capacity]       out
    data     uint8[capacity * page_size], encoded pages; raw is the worst case, so it always fits
    input    uint8[capacity * page_size], page contents; only when batches bring their data along
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pipeline.memory.addresses import ByteArray, PfnArray

_ALIGN = 4096


class Slot(Struct):
    """Arrays over one slot, all of the slot's capacity; a batch uses their first rows."""

    index: int
    pfns: PfnArray
    offsets: NDArray[np.int64]
    sizes: NDArray[np.uint32]
    states: NDArray[np.uint8]
    coded: NDArray[np.bool_]
    data: ByteArray
    input: ByteArray | None


def slot_bytes(capacity: int, page_size: int, *, with_input: bool) -> int:
    """Memory that one slot takes."""
    tables = capacity * (8 + 8 + 4 + 1 + 1)
    pages = capacity * page_size * (2 if with_input else 1)
    return -(-(tables + pages) // _ALIGN) * _ALIGN


class SlotArena:
    """All slots of a run."""

    def __init__(self, n_slots: int, capacity: int, page_size: int, *, with_input: bool) -> None:
        self.capacity = capacity
        self.page_size = page_size
        self.n_bytes = n_slots * slot_bytes(capacity, page_size, with_input=with_input)
        self._mapping = mmap.mmap(-1, self.n_bytes, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
        whole = np.frombuffer(self._mapping, dtype=np.uint8)
        size = self.n_bytes // n_slots
        self.slots = [
            self._cut(index, whole[index * size : (index + 1) * size], with_input=with_input)
            for index in range(n_slots)
        ]

    def _cut(self, index: int, memory: ByteArray, *, with_input: bool) -> Slot:
        at = 0

        def take(dtype: Any, n_items: int) -> Any:
            nonlocal at
            part = memory[at : at + n_items * np.dtype(dtype).itemsize].view(dtype)
            at += part.nbytes
            return part

        n, page_size = self.capacity, self.page_size
        data = take(np.uint8, n * page_size)
        pages = take(np.uint8, n * page_size).reshape(n, page_size) if with_input else None
        return Slot(
            index=index,
            pfns=take(np.uint64, n),
            offsets=take(np.int64, n),
            sizes=take(np.uint32, n),
            states=take(np.uint8, n),
            coded=take(np.bool_, n),
            data=data,
            input=pages,
        )
