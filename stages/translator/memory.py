"""Reading kernel memory by virtual address: one piece, or many small ones at once."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import FormatError, MissingPageError, NonCanonicalError
from pipeline.memory.addresses import AddrArray, BoolArray, ByteArray
from pipeline.memory.arrays import distinct
from stages.arch.paging import ADDRESS_LIMIT
from stages.cache.pages import PageReader
from stages.translator.space import KernelSpace

MAX_READ_BYTES: Final = 64 << 20
"""No structure of a kernel is larger: a larger size comes from a damaged image."""
_BATCH_PAGES: Final = 1024
_BATCH_OBJECTS: Final = 1024


class _Pages(NamedTuple):
    """Contents of virtual pages; row i belongs to page i."""

    rows: ByteArray
    pfns: AddrArray
    mapped: BoolArray
    good: BoolArray
    """Mapped, and in the image; other rows are zero."""


class _Objects(NamedTuple):
    """Pieces of memory: object i is `flat[starts[i]:]`, and whole if good[i]."""

    flat: ByteArray
    starts: NDArray[np.intp]
    good: BoolArray


class VirtualMemory:
    """Kernel memory, through a translator and a page cache."""

    def __init__(self, space: KernelSpace, pages: PageReader, byte_order: str) -> None:
        """`byte_order` is that of kernel data, ``<`` or ``>``."""
        self.translator = space
        self.page_size = pages.page_size
        self.byte_order = byte_order
        self._pages = pages

    async def expect(self, vaddr: int, n_bytes: int) -> None:
        """Have `n_bytes` from `vaddr` on fetched ahead, as far as they are mapped.

        A hint: does nothing where pages are there at once, and may be dropped elsewhere.
        """
        hint = getattr(self._pages, "hint", None)
        if hint is None:
            return
        first, last = vaddr // self.page_size, (vaddr + n_bytes - 1) // self.page_size
        vaddrs = np.arange(first, last + 1, dtype=np.uint64) * np.uint64(self.page_size)
        paddrs, mapped = await self.translator.translate(vaddrs)
        hint(paddrs[mapped] // np.uint64(self.page_size))

    async def read(self, vaddr: int, n_bytes: int) -> bytes:
        """`n_bytes` from `vaddr` on.

        Raises:
            TranslationError: a page of it is not mapped.
            MissingPageError: a page of it is not in the image.
            FormatError: more than `MAX_READ_BYTES`.
        """
        if not 0 <= n_bytes <= MAX_READ_BYTES:
            raise FormatError(
                "kernel memory", None, "bytes to read", n_bytes, f"{MAX_READ_BYTES} at most"
            )
        if not 0 <= vaddr <= ADDRESS_LIMIT - n_bytes:
            raise NonCanonicalError(vaddr, self.translator.form.va_bits)
        first, offset = divmod(vaddr, self.page_size)
        n_pages = -(-(offset + n_bytes) // self.page_size)
        out = bytearray()
        for done in range(0, n_pages, _BATCH_PAGES):
            n_now = min(_BATCH_PAGES, n_pages - done)
            numbers = np.arange(n_now, dtype=np.uint64) + np.uint64(first + done)
            pages = await self._load(numbers)
            if not pages.good.all():
                bad = int(np.argmin(pages.good))
                await self._refuse(max(int(numbers[bad]) * self.page_size, vaddr), pages, bad)
            out += pages.rows.reshape(-1).data
        return bytes(memoryview(out)[offset : offset + n_bytes])

    async def read_u64(self, vaddr: int) -> int:
        """The 8-byte number at `vaddr`; raises as `read`."""
        return self.number(await self.read(vaddr, 8))

    async def read_u32(self, vaddr: int) -> int:
        """The 4-byte number at `vaddr`; raises as `read`."""
        return self.number(await self.read(vaddr, 4))

    async def read_many(self, vaddrs: AddrArray, n_bytes: int) -> tuple[ByteArray, BoolArray]:
        """`n_bytes` (1 to a page) from each of `vaddrs` (uint64[n], any order) on.

        Returns:
            uint8[n, n_bytes], and bool[n]: False where not all of it could be read (row zero).
        """
        out = np.zeros((len(vaddrs), n_bytes), dtype=np.uint8)
        good = np.zeros(len(vaddrs), dtype=np.bool_)
        for first in range(0, len(vaddrs), _BATCH_OBJECTS):
            mine = slice(first, first + _BATCH_OBJECTS)
            sizes = np.full(len(vaddrs[mine]), n_bytes, dtype=np.uint64)
            objects = await self._gather(vaddrs[mine], sizes)
            good[mine] = objects.good
            whole = np.flatnonzero(objects.good)
            out[first + whole] = objects.flat[objects.starts[whole, None] + np.arange(n_bytes)]
        return out, good

    async def read_ragged(self, vaddrs: AddrArray, sizes: AddrArray) -> list[bytes | None]:
        """`sizes[i]` bytes from `vaddrs[i]` on (uint64[n] each), None where not all could be read.

        Everything is held at once: the caller bounds the sum of `sizes`.
        """
        objects = await self._gather(vaddrs, sizes)
        view = objects.flat.data
        return [
            bytes(view[start : start + size]) if whole else None
            for start, size, whole in zip(
                objects.starts.tolist(), sizes.tolist(), objects.good.tolist(), strict=True
            )
        ]

    def number(self, data: bytes) -> int:
        """The unsigned number that `data` is in the kernel's byte order."""
        return int.from_bytes(data, "little" if self.byte_order == "<" else "big")

    async def _refuse(self, vaddr: int, pages: _Pages, bad: int) -> None:
        if not pages.mapped[bad]:
            walk = await self.translator.explain(vaddr)
            if walk.problem is not None:
                raise walk.problem
        pfn = int(pages.pfns[bad])
        raise MissingPageError(pfn, "not in the image", page_size=self.page_size)

    async def _load(self, numbers: AddrArray) -> _Pages:
        """Pages by virtual page number, uint64[n]."""
        page_size = np.uint64(self.page_size)
        paddrs, mapped = await self.translator.translate(numbers * page_size)
        pfns = paddrs // page_size
        if mapped.all():
            rows, good = await self._pages.get_many(pfns)
            return _Pages(rows, pfns, mapped, good)
        rows = np.zeros((len(numbers), self.page_size), dtype=np.uint8)
        good = mapped.copy()
        rows[mapped], good[mapped] = await self._pages.get_many(pfns[mapped])
        return _Pages(rows, pfns, mapped, good)

    async def _gather(self, vaddrs: AddrArray, sizes: AddrArray) -> _Objects:
        """Load all pages of all objects, each once.

        Rows are in ascending order of page number, so an object that crosses pages is contiguous.
        """
        page_size = np.uint64(self.page_size)
        lasts = vaddrs + np.maximum(sizes, np.uint64(1)) - np.uint64(1)
        inside = lasts >= vaddrs  # else past the end of the address space
        firsts, lasts = vaddrs // page_size, np.where(inside, lasts, vaddrs) // page_size
        counts = (lasts - firsts).astype(np.intp) + 1
        ends = np.cumsum(counts)
        nth = np.arange(counts.sum()) - np.repeat(ends - counts, counts)
        numbers = distinct(np.repeat(firsts, counts) + nth.astype(np.uint64))
        pages = await self._load(numbers)
        row = np.searchsorted(numbers, firsts)
        n_good = np.concatenate(([0], np.cumsum(pages.good)))
        good = inside & (n_good[row + counts] - n_good[row] == counts)
        starts = row * self.page_size + (vaddrs % page_size).astype(np.intp)
        return _Objects(pages.rows.reshape(-1), starts, good)
