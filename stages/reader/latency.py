"""A source made slow on purpose: each request waits, and bytes come at a bounded rate.

For tests and measurements of what prefetching gains. The waiting is real. Requests that are made
together wait together, as many as `Link.max_in_flight` at once; the others queue for a slot::

    slot 0   |-- delay --|-- delay --|
    slot 1   |-- delay --|-- delay --|
    line                 |bytes|bytes|           one at a time, when bandwidth is bounded
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from stages.reader.file_io import ImageFile
from stages.reader.remote_file import Outcome, Request
from stages.reader.remote_link import Link

_MANY: Final = 16
"""From here on only one thread reads at a time. Each read of a page hands the interpreter over, and
threads that take it from each other for every page pay 3 us for each instead of 1.4."""


@dataclass(frozen=True, slots=True)
class Slowness:
    """Attributes:
    delay_s: of every request.
    jitter_s: drawn from [0, jitter_s] on top of it.
    bytes_per_s: of all requests together, 0 is no limit.
    """

    delay_s: float
    jitter_s: float = 0.0
    bytes_per_s: float = 0.0

    def pause(self) -> float:
        """Seconds that one request waits."""
        return self.delay_s + (random.uniform(0, self.jitter_s) if self.jitter_s else 0.0)


class SlowTransport:
    """Reads another file, slowly; also counts what it was asked for, through its link."""

    head = b""

    def __init__(self, file: ImageFile, slowness: Slowness, link: Link) -> None:
        """`file` becomes this object's to close."""
        self.path = file.path
        self.size = file.size
        self.has_holes = file.has_holes
        self.link = link
        self._file = file
        self._slowness = slowness
        self._lock = threading.Lock()
        self._many = threading.Lock()
        self._slots = np.zeros(link.max_in_flight)
        """When each becomes free."""
        self._next_slot = 0
        self._line_free = 0.0
        self._random = random.Random(0)

    def fetch(self, requests: Sequence[Request]) -> list[Outcome]:
        sizes = [len(view) for view, _ in requests]
        out: list[Outcome] = []
        for due, mine in self._schedule(sizes, time.perf_counter()):
            while (left := due - time.perf_counter()) > 0:
                time.sleep(left)
            out += self._read(requests[mine])
        self.link.book(len(requests), sum(sizes), self._slowness.delay_s)
        return out

    def _read(self, requests: Sequence[Request]) -> list[Outcome]:
        if len(requests) < _MANY:
            return self._read_all(requests)
        with self._many:
            return self._read_all(requests)

    def _read_all(self, requests: Sequence[Request]) -> list[Outcome]:
        read_into = self._file.read_into
        try:
            return [read_into(view, off) for view, off in requests]
        except OSError:
            return [self._read_one(view, off) for view, off in requests]

    def _read_one(self, view: memoryview, off: int) -> Outcome:
        try:
            return self._file.read_into(view, off)
        except OSError as error:
            return error

    def _schedule(self, sizes: Sequence[int], now: float) -> Iterator[tuple[float, slice]]:
        """Runs of requests, and when their answers are there."""
        slow, n_slots = self._slowness, len(self._slots)
        if slow.jitter_s or slow.bytes_per_s:
            due = self._schedule_each(sizes, now)
            yield from ((at, slice(nth, nth + 1)) for nth, at in enumerate(due))
            return
        # All wait alike, so slots become free in the order in which they were taken.
        for first in range(0, len(sizes), n_slots):
            n_now = min(n_slots, len(sizes) - first)
            with self._lock:
                slots = (self._next_slot + np.arange(n_now)) % n_slots
                self._next_slot = (self._next_slot + n_now) % n_slots
                at = np.maximum(self._slots[slots], now) + slow.delay_s
                self._slots[slots] = at
            edges = [0, *(np.flatnonzero(np.diff(at)) + 1).tolist(), n_now]
            for start, stop in pairwise(edges):
                yield float(at[start]), slice(first + start, first + stop)

    def _schedule_each(self, sizes: Sequence[int], now: float) -> list[float]:
        slow, draw = self._slowness, self._random.random
        due: list[float] = []
        with self._lock:
            for n_bytes in sizes:
                slot = int(self._slots.argmin())
                done = max(now, float(self._slots[slot])) + slow.delay_s + slow.jitter_s * draw()
                if slow.bytes_per_s:
                    done = max(done, self._line_free) + n_bytes / slow.bytes_per_s
                    self._line_free = done
                self._slots[slot] = done
                due.append(done)
        return due

    def holes(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        return self._file.holes(start, stop)

    def close(self) -> None:
        self._file.close()
