"""Overlapping ranges made disjoint: where each byte is found when several sources have it."""

from __future__ import annotations

import heapq
from itertools import pairwise
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import FormatError

IntArray: TypeAlias = NDArray[np.int64]

MAX_OFF: Final = 1 << 62
"""Addresses and file offsets stay below this, so that sums of two fit in an int64."""


MAX_OVERLAPPING: Final = 1 << 18
"""Ranges that meet others take 650 bytes each for a while. ELF images have no more in all, and
streams of dump tools write little twice."""


class Pieces(NamedTuple):
    """Disjoint, not empty, ascending: bytes [starts, stops) lie in the file from `offs` on.

    All int64[n_pieces].
    """

    starts: IntArray
    stops: IntArray
    offs: IntArray

    def overlapping(self, start: int, stop: int) -> slice:
        """Indices of the pieces that have a byte in [start, stop)."""
        first = int(np.searchsorted(self.stops, start, side="right"))
        return slice(first, int(np.searchsorted(self.starts, stop, side="left")))


def make_disjoint(starts: IntArray, stops: IntArray, offs: IntArray) -> Pieces:
    """Cut ranges (int64[n] each, none empty) so that each byte belongs to the first that has it.

    Neighbours that continue each other in the file become one piece.

    Raises:
        FormatError: more than `MAX_OVERLAPPING` ranges overlap others.
    """
    order = np.argsort(starts, kind="stable")
    firsts, lasts = starts[order], stops[order]
    reach = np.maximum.accumulate(lasts)
    is_head = np.ones(len(order), dtype=np.bool_)
    is_head[1:] = firsts[1:] >= reach[:-1]
    if is_head.all():
        return _join(firsts, lasts, offs[order])
    # Only ranges that meet others are swept one by one.
    heads = np.flatnonzero(is_head)
    counts = np.diff(np.append(heads, len(order)))
    alone = heads[counts == 1]
    if (n_overlapping := len(order) - len(alone)) > MAX_OVERLAPPING:
        raise FormatError(
            "memory image", None, "overlapping ranges", n_overlapping, f"{MAX_OVERLAPPING} at most"
        )
    cut: list[tuple[int, int, int]] = []
    for head, count in zip(heads[counts > 1].tolist(), counts[counts > 1].tolist(), strict=True):
        ranks = order[head : head + count].tolist()
        cut += _sweep([(int(starts[i]), int(stops[i]), int(offs[i]), i) for i in ranks])
    table = np.array(cut, dtype=np.int64).reshape(-1, 3)
    merged = [
        np.concatenate((column[alone], table[:, at]))
        for at, column in enumerate((firsts, lasts, offs[order]))
    ]
    order = np.argsort(merged[0], kind="stable")
    return _join(*(column[order] for column in merged))


def _sweep(ranges: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int]]:
    """Pieces of (start, stop, off, rank) ranges, ascending by start; the lowest rank wins."""
    out: list[tuple[int, int, int]] = []
    edges = sorted({edge for start, stop, _, _ in ranges for edge in (start, stop)})
    active: list[tuple[int, int, int, int]] = []
    coming = 0
    for start, stop in pairwise(edges):
        while coming < len(ranges) and ranges[coming][0] == start:
            first, last, off, rank = ranges[coming]
            heapq.heappush(active, (rank, first, last, off))
            coming += 1
        while active and active[0][2] <= start:
            heapq.heappop(active)
        if active:
            _, first, _, off = active[0]
            out.append((start, stop, off + start - first))
    return out


def _join(starts: IntArray, stops: IntArray, offs: IntArray) -> Pieces:
    """Merge neighbours that touch both in memory and in the file."""
    is_head = np.ones(len(starts), dtype=np.bool_)
    lengths = stops - starts
    is_head[1:] = (starts[1:] != stops[:-1]) | (offs[1:] != offs[:-1] + lengths[:-1])
    heads = np.flatnonzero(is_head)
    tails = np.append(heads[1:], len(starts)) - 1 if len(heads) else heads
    return Pieces(starts[heads], stops[tails], offs[heads])
