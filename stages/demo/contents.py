"""What the demo's pages hold: self-describing words, text, or nothing at all."""

from __future__ import annotations

from typing import Final

import numpy as np

from stages.demo.kinds import PageKind
from stages.demo.memory import PAGE, DemoMemory
from stages.demo.struct_pages import StructPages

DESCRIBED_BIT: Final = 1 << 63
_STEP_PAGES: Final = 4096
_TEXT: Final = (
    b"The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs.\n"
)
_ZERO_EACH: Final = {
    PageKind.KERNEL: 4,
    PageKind.FREE: 2,
    PageKind.ANON: 8,
    PageKind.UNACCEPTED: 1,
}
"""Of the pages of a kind, one in so many is zero."""


def fill_contents(memory: DemoMemory, pages: StructPages) -> None:
    """Every page's words are its own physical address with bit 63 set, unless it is text or zero.

    A page that turns up in the wrong place then tells where it came from.
    """
    words = np.arange(PAGE // 8, dtype=np.uint64) * np.uint64(8) | np.uint64(DESCRIBED_BIT)
    text = np.frombuffer((_TEXT * (PAGE // len(_TEXT) + 1))[:PAGE], dtype=np.uint8)
    for ram in memory.ranges:
        for start in range(ram.start, ram.stop, _STEP_PAGES):
            stop = min(start + _STEP_PAGES, ram.stop)
            pfns = np.arange(start, stop, dtype=np.uint64)
            kinds = pages.kinds[start:stop]
            rows = memory.rows(start, stop)
            described = ~_zero_pages(pfns.astype(np.int64), kinds)
            rows.view("<u8")[described] = words + (pfns[described] * np.uint64(PAGE))[:, None]
            rows[described & (kinds == PageKind.CACHE) & (pfns % np.uint64(2) == 0)] = text


def _zero_pages(pfns: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    zero = np.zeros(len(pfns), dtype=np.bool_)
    for kind, each in _ZERO_EACH.items():
        zero |= (kinds == kind) & (pfns % each == each - 1)
    return zero
