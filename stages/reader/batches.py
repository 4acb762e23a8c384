"""Cut the kept pages into batches: full ones where possible, whole holes apart. Pure planning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pipeline.memory.addresses import BoolArray, PfnArray
from pipeline.memory.bitmap import BLOCK_PAGES, PageBitmap
from stages.reader.image import Image

MIN_HOLE_PAGES = 256
"""Holes shorter than this travel with their neighbours: the image answers them without reading."""


class PlannedBatch(NamedTuple):
    """uint64[n_pages] ascending pfns, and whether all of them are known to be zero."""

    pfns: PfnArray
    hole: bool


def plan_batches(
    image: Image, kept: PageBitmap, *, batch_pages: int, hole_pages: int
) -> Iterator[PlannedBatch]:
    """Batches of at most `batch_pages` pages (holes: `hole_pages`) that cover `kept` in order.

    Sparse pages of several blocks are gathered, so that a level 31 dump has full batches too.
    """
    waiting: list[PfnArray] = []
    n_waiting = 0
    waiting_hole = False
    for pfns, hole in _pieces(image, kept):
        if waiting and hole != waiting_hole:
            yield PlannedBatch(np.concatenate(waiting), waiting_hole)
            waiting, n_waiting = [], 0
        waiting_hole = hole
        limit = hole_pages if hole else batch_pages
        at = 0
        while n_waiting + len(pfns) - at >= limit:
            take = limit - n_waiting
            yield PlannedBatch(np.concatenate([*waiting, pfns[at : at + take]]), hole)
            waiting, n_waiting = [], 0
            at += take
        if at < len(pfns):
            waiting.append(pfns[at:])
            n_waiting += len(pfns) - at
    if waiting:
        yield PlannedBatch(np.concatenate(waiting), waiting_hole)


def _pieces(image: Image, kept: PageBitmap) -> Iterator[tuple[PfnArray, bool]]:
    """Kept pfns of one block after another, cut where a long hole starts or ends."""
    for pfns in kept.iter_pfns():
        base = int(pfns[0]) // BLOCK_PAGES * BLOCK_PAGES
        in_hole = _long_holes(image, base)
        if in_hole is None:
            yield pfns, False
            continue
        flags = in_hole[(pfns - np.uint64(base)).astype(np.intp)]
        cuts = np.flatnonzero(flags[1:] != flags[:-1]) + 1
        start = 0
        for stop in [*cuts.tolist(), len(pfns)]:
            yield pfns[start:stop], bool(flags[start])
            start = stop


def _long_holes(image: Image, base: int) -> BoolArray | None:
    found = [
        hole for hole in image.holes(base, base + BLOCK_PAGES) if hole.n_pages >= MIN_HOLE_PAGES
    ]
    if not found:
        return None
    flags = np.zeros(BLOCK_PAGES, dtype=np.bool_)
    for hole in found:
        flags[hole.start - base : hole.stop - base] = True
    return flags
