"""What a run has done so far: one plain object that the stages update and the observers read.

Everything happens in one event loop, so nothing is locked. Worker processes report through the
stage that owns them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from msgspec import Struct, field

if TYPE_CHECKING:
    from pipeline.flow.channel import ChannelStats


class CacheCounts(Struct):
    """Hits, misses and evictions in pages; prefetches in blocks of the cache.

    What concerns the source is about the whole run, whichever path a read took, and is only known
    of sources that are waited for.
    """

    hits: int = 0
    misses: int = 0
    reads: int = 0
    """Reads that the cache made of the image."""
    bytes_read: int = 0
    evicted: int = 0
    prefetches: int = 0
    prefetches_used: int = 0
    prefetches_wasted: int = 0
    prefetches_dropped: int = 0
    """Hints that were not followed."""
    source_requests: int = 0
    source_bytes: int = 0
    joined: int = 0
    """Reads that travelled in another one's request."""
    waited_s: float = 0.0
    """Time in which the run waited for the source, or read ahead from it."""
    hidden_s: float = 0.0
    """Estimate: what the same requests would have taken on top, one after the other."""

    @property
    def hit_ratio(self) -> float:
        return self.hits / max(self.hits + self.misses, 1)


class Snapshot(Struct, frozen=True):
    """The counters that progress shows, at one moment."""

    phase: str
    page_size: int
    pages_done: int
    pages_total: int
    bytes_in: int
    bytes_out: int
    elapsed_s: float
    """Since the run began."""
    phase_s: float
    """Since the phase began."""


class RunCounters(Struct):
    """Counts of a whole run, unless a field says otherwise.

    Attributes:
        phase: what is going on, as a person would name it: ``filter``, ``copy``.
        pages_total: pages of this phase, 0 when not known.
        pages_done: pages of this phase that are through.
        pages_in: pages that the source describes.
        pages_kept: pages with a descriptor in the dump, zero pages among them.
        pages_zero: kept, and all zero.
        pages_missing: should be there and could not be read.
        pages_shared: kept, and stored as another identical page's bytes.
        pages_raw: stored as they are since compression did not make them smaller.
        pages_coded: stored compressed.
        excluded: pages left out, by class.
        bytes_in: read from the source.
        bytes_out: given to the sink.
        stage_seconds: time a stage worked, by name; waiting is in the channels' statistics.
        worker_seconds: time each compressor worker was busy, by its index.
        channels: statistics of every channel, added as they are made.
    """

    page_size: int = 4096
    phase: str = ""
    pages_total: int = 0
    pages_done: int = 0
    pages_in: int = 0
    pages_kept: int = 0
    pages_zero: int = 0
    pages_missing: int = 0
    pages_shared: int = 0
    pages_raw: int = 0
    pages_coded: int = 0
    excluded: dict[str, int] = field(default_factory=dict)
    bytes_in: int = 0
    bytes_out: int = 0
    phase_seconds: dict[str, float] = field(default_factory=dict)
    stage_seconds: dict[str, float] = field(default_factory=dict)
    worker_seconds: dict[int, float] = field(default_factory=dict)
    cache: CacheCounts = field(default_factory=CacheCounts)
    channels: list[ChannelStats] = field(default_factory=list)
    _began: float = field(default_factory=time.perf_counter)
    _phase_began: float = field(default_factory=time.perf_counter)

    def begin_phase(self, name: str, pages_total: int = 0) -> None:
        """End the current phase, and start `name` with nothing done."""
        self.end_phase()
        self.phase = name
        self.pages_total = pages_total
        self.pages_done = 0

    def end_phase(self) -> None:
        """Book the time of the current phase; a name that comes twice adds up."""
        now = time.perf_counter()
        if self.phase:
            spent = now - self._phase_began
            self.phase_seconds[self.phase] = self.phase_seconds.get(self.phase, 0.0) + spent
        self.phase = ""
        self._phase_began = now

    def forget_copy(self) -> None:
        """Nothing is left of what was copied: the target failed."""
        self.pages_done = self.pages_kept = self.pages_zero = self.pages_missing = 0
        self.pages_shared = self.pages_raw = self.pages_coded = self.bytes_out = 0

    @contextmanager
    def stage_time(self, stage: str) -> Iterator[None]:
        """Book the time of the block on `stage`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add_stage_seconds(stage, time.perf_counter() - began)

    def add_stage_seconds(self, stage: str, seconds: float) -> None:
        self.stage_seconds[stage] = self.stage_seconds.get(stage, 0.0) + seconds

    def add_worker_seconds(self, worker: int, seconds: float) -> None:
        self.worker_seconds[worker] = self.worker_seconds.get(worker, 0.0) + seconds

    def exclude(self, page_class: str, n_pages: int) -> None:
        """Count `n_pages` more as left out."""
        self.excluded[page_class] = self.excluded.get(page_class, 0) + n_pages

    @property
    def pages_excluded(self) -> int:
        return sum(self.excluded.values())

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._began

    @property
    def peak_channel_fill(self) -> float:
        """The fullest any channel was, 1.0 being its capacity; 0.0 without channels."""
        return max((each.peak_bytes / each.capacity_bytes for each in self.channels), default=0.0)

    def snapshot(self) -> Snapshot:
        now = time.perf_counter()
        return Snapshot(
            phase=self.phase,
            page_size=self.page_size,
            pages_done=self.pages_done,
            pages_total=self.pages_total,
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
            elapsed_s=now - self._began,
            phase_s=now - self._phase_began,
        )
