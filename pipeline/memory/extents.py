"""Sets of page frames as sorted, disjoint, half-open extents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from pipeline.memory.addresses import BoolArray, PfnArray


class Extent(NamedTuple):
    """Pfns `start` up to but not including `stop`."""

    start: int
    stop: int

    @property
    def n_pages(self) -> int:
        return self.stop - self.start


class ExtentSet:
    """An immutable set of pfns, stored as `starts` and `stops`, both uint64[n_extents].

    Extents are ascending, not empty, and neither overlap nor touch.
    """

    __slots__ = ("starts", "stops")

    def __init__(self, starts: PfnArray, stops: PfnArray) -> None:
        """Takes arrays that already hold the invariant; use `from_pairs` for anything else."""
        self.starts = starts
        self.stops = stops

    @classmethod
    def from_pairs(cls, pairs: Iterable[tuple[int, int]]) -> ExtentSet:
        """Union of half-open pfn ranges in any order; empty ones vanish, overlaps merge."""
        merged: list[list[int]] = []
        for start, stop in sorted(pair for pair in pairs if pair[0] < pair[1]):
            if merged and start <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], stop)
            else:
                merged.append([start, stop])
        return cls(
            np.array([start for start, _ in merged], dtype=np.uint64),
            np.array([stop for _, stop in merged], dtype=np.uint64),
        )

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[Extent]:
        for start, stop in zip(self.starts.tolist(), self.stops.tolist(), strict=True):
            yield Extent(start, stop)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ExtentSet):
            return NotImplemented
        return np.array_equal(self.starts, other.starts) and np.array_equal(self.stops, other.stops)

    __hash__ = None  # type: ignore[assignment]  # arrays inside: equal sets, no stable hash

    def __repr__(self) -> str:
        shown = ", ".join(f"{e.start:#x}-{e.stop:#x}" for e in list(self)[:4])
        return f"ExtentSet({shown}{', ...' if len(self) > 4 else ''})"

    @property
    def n_pages(self) -> int:
        return int((self.stops - self.starts).sum()) if len(self) else 0

    @property
    def end(self) -> int:
        """One past the highest pfn, 0 when empty."""
        return int(self.stops[-1]) if len(self) else 0

    def contains(self, pfns: PfnArray) -> BoolArray:
        """bool[n]: which of `pfns` (uint64[n], any order) are in the set."""
        if not len(self):
            return np.zeros(len(pfns), dtype=np.bool_)
        slot = np.searchsorted(self.starts, pfns, side="right")
        inside: BoolArray = (slot > 0) & (pfns < self.stops[np.maximum(slot, 1) - 1])
        return inside

    def clip(self, start: int, stop: int) -> ExtentSet:
        """The part of the set inside [start, stop)."""
        first = int(np.searchsorted(self.stops, np.uint64(start), side="right"))
        last = int(np.searchsorted(self.starts, np.uint64(stop), side="left"))
        if first >= last:
            return EMPTY
        starts = self.starts[first:last].copy()
        stops = self.stops[first:last].copy()
        starts[0] = max(int(starts[0]), start)
        stops[-1] = min(int(stops[-1]), stop)
        return ExtentSet(starts, stops)

    def union(self, other: ExtentSet) -> ExtentSet:
        return ExtentSet.from_pairs([*self, *other])

    def subtract(self, other: ExtentSet) -> ExtentSet:
        """Pfns of this set that are not in `other`."""
        left: list[tuple[int, int]] = []
        for extent in self:
            start = extent.start
            for hole in other.clip(extent.start, extent.stop):
                left.append((start, hole.start))
                start = hole.stop
            left.append((start, extent.stop))
        return ExtentSet.from_pairs(left)

    def intersect(self, other: ExtentSet) -> ExtentSet:
        return self.subtract(self.subtract(other))

    def mask(self, start: int, n_pages: int) -> BoolArray:
        """bool[n_pages]: which pfns of [start, start + n_pages) are in the set."""
        out = np.zeros(n_pages, dtype=np.bool_)
        for extent in self.clip(start, start + n_pages):
            out[extent.start - start : extent.stop - start] = True
        return out


EMPTY = ExtentSet(np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.uint64))


def runs_of(pfns: PfnArray) -> tuple[PfnArray, PfnArray]:
    """Starts and lengths (uint64[n_runs] each) of the consecutive runs in ascending `pfns`."""
    if not len(pfns):
        return EMPTY.starts, EMPTY.starts
    breaks = np.flatnonzero(np.diff(pfns) != 1) + 1
    first = np.concatenate(([0], breaks))
    lengths = np.diff(np.concatenate((first, [len(pfns)]))).astype(np.uint64)
    return pfns[first], lengths
