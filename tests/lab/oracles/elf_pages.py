"""Reads pages from an ELF vmcore by pfn: what every dump made of it has to agree with."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Self

import numpy as np

from tests.lab.elfhead import PT_LOAD, read_program_headers
from tests.lab.oracles.codecs import PAGE_SIZE

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray


class ElfPages:
    """An opened ELF vmcore; use it as a context manager."""

    def __init__(self, path: Path, page_size: int = PAGE_SIZE) -> None:
        """Maps the file and reads its program headers."""
        self._page_size = page_size
        headers = read_program_headers(path)
        self._loads = sorted(
            (header.p_paddr, header.p_paddr + header.p_filesz, header.p_offset)
            for header in headers
            if header.p_type == PT_LOAD
        )
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)

    def __enter__(self) -> Self:
        """The opened vmcore."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Unmaps the file."""
        self._map.close()

    @property
    def pfns(self) -> NDArray[np.int64]:
        """int64[n_pages]: pages that lie wholly in one segment, ascending."""
        runs = [
            np.arange(-(-start // self._page_size), stop // self._page_size, dtype=np.int64)
            for start, stop, _ in self._loads
        ]
        return np.concatenate(runs)

    def read_page(self, pfn: int) -> bytes | None:
        """A page's contents, zero where no segment has it; None if no segment has any of it."""
        first = pfn * self._page_size
        page = bytearray(self._page_size)
        found = False
        for start, stop, off in self._loads:
            low, high = max(start, first), min(stop, first + self._page_size)
            if low < high:
                found = True
                page[low - first : high - first] = self._map[off + low - start : off + high - start]
        return bytes(page) if found else None
