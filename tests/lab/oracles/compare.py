"""Compares two dumps of one image, and a dump with the image it was made from."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tests.lab.oracles.codecs import CODEC_FLAGS, decode
from tests.lab.oracles.elf_pages import ElfPages
from tests.lab.oracles.kdump_pages import KdumpPages

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.lab.oracles.kdump_pages import BoolArray, PfnArray

THREADS = 2
CHUNK_PAGES = 8192


class Differences(NamedTuple):
    """Pfns, ascending; all empty when the dumps agree."""

    exists_only_a: PfnArray  # 1st bitmaps
    exists_only_b: PfnArray
    only_a: PfnArray  # 2nd bitmaps: dumped by a alone
    only_b: PfnArray
    content: PfnArray  # dumped by both, with other contents

    def __bool__(self) -> bool:
        """Whether there are any."""
        return any(len(pfns) for pfns in self)

    def summary(self) -> str:
        """How many of each kind, and the first few, for an assertion's message."""
        parts = []
        for name, pfns in zip(self._fields, self, strict=True):
            first = ", ".join(f"{pfn:#x}" for pfn in pfns[:5].tolist())
            parts.append(f"{name}: {len(pfns)}" + (f" ({first} ..)" if first else ""))
        return "; ".join(parts)


def _only(first: BoolArray, second: BoolArray) -> PfnArray:
    """Pfns that are set in `first` and not in `second`, which may be of another length."""
    other = np.zeros(len(first), np.bool_)
    shared = min(len(first), len(second))
    other[:shared] = second[:shared]
    return np.flatnonzero(first & ~other)


def _in_chunks(count: int, differ: Callable[[range], list[int]]) -> list[int]:
    """Runs `differ` on ranges of indices in threads; decoders give up the interpreter lock."""
    ranges = [range(at, min(at + CHUNK_PAGES, count)) for at in range(0, count, CHUNK_PAGES)]
    with ThreadPoolExecutor(THREADS) as pool:
        return [index for found in pool.map(differ, ranges) for index in found]


def _descriptors(dump: KdumpPages, pfns: PfnArray) -> list[tuple[int, int, int]]:
    rows = dump.descriptors[np.searchsorted(dump.pfns, pfns)]
    flags = (rows["flags"] & int(CODEC_FLAGS)).tolist()
    return list(zip(rows["off"].tolist(), rows["size"].tolist(), flags, strict=True))


def _differing_pages(a: KdumpPages, b: KdumpPages, pfns: PfnArray) -> PfnArray:
    """Those of `pfns` (dumped by both) whose contents differ."""
    pairs = list(zip(_descriptors(a, pfns), _descriptors(b, pfns), strict=True))
    # all zero pages of a dump share one stored page: look at it once
    seen = dict.fromkeys(pairs)
    unique = list(seen)

    def differ(indices: range) -> list[int]:
        return [index for index in indices if not _same(*unique[index])]

    def _same(one: tuple[int, int, int], two: tuple[int, int, int]) -> bool:
        stored_a, stored_b = a.stored(*one[:2]), b.stored(*two[:2])
        if stored_a == stored_b and one[2] == two[2]:
            return True
        return decode(one[2], stored_a, a.page_size) == decode(two[2], stored_b, b.page_size)

    bad = {unique[index] for index in _in_chunks(len(unique), differ)}
    return pfns[[index for index, pair in enumerate(pairs) if pair in bad]] if bad else pfns[:0]


def compare_dumps(a: Path, b: Path) -> Differences:
    """Compares two kdump-compressed files page by page; their codecs may differ.

    Raises:
        ValueError: one of them is damaged, or in another format.
    """
    with KdumpPages(a) as one, KdumpPages(b) as two:
        both = np.intersect1d(one.pfns, two.pfns, assume_unique=True)
        return Differences(
            _only(one.exists, two.exists),
            _only(two.exists, one.exists),
            _only(one.dumped, two.dumped),
            _only(two.dumped, one.dumped),
            _differing_pages(one, two, both),
        )


def compare_with_image(dump: Path, image: Path) -> PfnArray:
    """Pfns of a kdump-compressed file whose contents are not those of its ELF image."""
    with KdumpPages(dump) as pages, ElfPages(image, pages.page_size) as memory:
        pfns = pages.pfns.tolist()

        def differ(indices: range) -> list[int]:
            return [i for i in indices if pages.page_at(i) != memory.read_page(pfns[i])]

        return pages.pfns[_in_chunks(len(pfns), differ)]
