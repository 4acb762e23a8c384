"""Reading images in tests: pages by pfn, and what a page should hold."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from pipeline.flow.items import PageState
from stages.reader.image import Image


def read_all(image: Image, pfns: Iterable[int]) -> dict[int, bytes | None]:
    """Each page's bytes, None for MISSING ones, read in one call."""
    wanted = np.array(sorted(pfns), dtype=np.uint64)
    out = np.full((len(wanted), image.info.page_size), 0xA5, dtype=np.uint8)
    states = image.read_pages(wanted, out)
    assert len(states) == len(wanted)
    pages: dict[int, bytes | None] = {}
    for pfn, state, row in zip(wanted.tolist(), states.tolist(), out, strict=True):
        if state == PageState.ZERO:
            assert not row.any(), f"pfn {pfn:#x} is ZERO, and its row is not"
        pages[pfn] = None if state == PageState.MISSING else row.tobytes()
    return pages


def states_of(image: Image, pfns: Iterable[int]) -> dict[int, PageState]:
    """The state of each page, read in one call."""
    wanted = np.array(sorted(pfns), dtype=np.uint64)
    out = np.empty((len(wanted), image.info.page_size), dtype=np.uint8)
    states = image.read_pages(wanted, out)
    return {
        pfn: PageState(state) for pfn, state in zip(wanted.tolist(), states.tolist(), strict=True)
    }
