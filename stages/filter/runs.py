"""Runs: buddy blocks and compound pages, of which only the first page is looked at.

Pages are judged in ascending order, and each run that is left out is jumped over. What lies inside
does not count, and often is stale: tails, or what the pages were before they were freed. A run may
reach into windows that follow, which is why windows are resolved in order.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.memory.addresses import BoolArray
from stages.filter.classify import PageCodes
from stages.filter.levels import PageClass


class Carry(NamedTuple):
    """A run that reaches beyond the pages seen so far: all up to `stop` are of `page_class`."""

    stop: int
    page_class: PageClass


NO_CARRY: Final = Carry(0, PageClass.KEPT)


def _accepted(starts: NDArray[np.int64], stops: NDArray[np.int64]) -> BoolArray:
    """Which runs are met when the pages are looked at in order and each met run is jumped over.

    Runs that are aligned to their length are nested or disjoint, so a run is met exactly when it
    starts at or after the end of all before it. Corrupt buddy orders take the loop.
    """
    lengths = stops - starts
    if not (starts & (lengths - 1)).any():
        ends = np.maximum.accumulate(np.concatenate((starts[:1], stops[:-1])))
        met: BoolArray = starts >= ends
        return met
    out = np.zeros(len(starts), dtype=np.bool_)
    end = int(starts[0])
    for index, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
        if start >= end:
            out[index] = True
            end = stop
    return out


def _cover(
    starts: NDArray[np.int64], stops: NDArray[np.int64], codes: NDArray[np.uint8], n_pages: int
) -> None:
    """Spread the class of each run's first page over the run; runs are disjoint and ascending."""
    edges = np.empty(2 * len(starts) + 2, dtype=np.int64)
    edges[0], edges[-1] = 0, n_pages
    edges[1:-1:2] = starts
    edges[2:-1:2] = np.minimum(stops, n_pages)
    fills = np.zeros(len(edges) - 1, dtype=np.uint8)
    fills[1::2] = codes[starts]
    spread = np.repeat(fills, np.diff(edges))
    codes *= spread == PageClass.KEPT
    codes |= spread


def _runs(
    codes: NDArray[np.uint8], orders: NDArray[np.uint8], first_pfn: int, begin: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Starts and stops of the runs from index `begin` on, relative to `first_pfn`.

    A compound page is always aligned to its size; one that is not is corrupt, and only its head is
    left out. A buddy block is believed, as makedumpfile does.
    """
    starts = np.flatnonzero(orders[begin:] != 0) + begin
    lengths = np.left_shift(1, orders[starts].astype(np.int64))
    aligned = (starts + first_pfn) & (lengths - 1) == 0
    usable = aligned | (codes[starts] == PageClass.FREE)
    starts, lengths = starts[usable], lengths[usable]
    return starts, starts + lengths


def resolve_runs(
    page_codes: PageCodes, first_pfn: int, present: BoolArray, carry: Carry
) -> tuple[NDArray[np.uint8], Carry]:
    """Apply runs to the pages of one window; call in ascending pfn order.

    Args:
        page_codes: belongs to this call; its arrays are changed.
        first_pfn: pfn of the window's first page.
        present: bool[n_pages]; pages that do not exist are neither looked at nor left out.
        carry: what the call before returned.

    Returns:
        uint8[n_pages] of `PageClass`, KEPT for pages that are not present, and the next carry.
    """
    codes = page_codes.codes
    n_pages = len(codes)
    covered = min(max(carry.stop - first_pfn, 0), n_pages)
    codes[:covered] = carry.page_class
    orders = page_codes.orders
    orders *= present
    starts, stops = _runs(codes, orders, first_pfn, covered)
    if len(starts):
        met = _accepted(starts + first_pfn, stops + first_pfn)
        starts, stops = starts[met], stops[met]
        _cover(starts, stops, codes, n_pages)
        if stops[-1] > n_pages:
            carry = Carry(first_pfn + int(stops[-1]), PageClass(int(codes[starts[-1]])))
    codes *= present
    return codes, carry
