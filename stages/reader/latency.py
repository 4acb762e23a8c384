"""A source made slow on purpose: each request waits, and bytes come at a bounded rate.

For tests and measurements of what prefetching gains. The waiting is real. Requests that are made
together wait together, as many as `Link.max_in_flight` at once; the others queue for a slot::

    slot 0   |-- delay --|-- delay --|
    slot 1   |-- delay --|-- delay --|
    line                 |bytes|bytes|           one at a time, when bandwidth is bounded
"""

from __future__ import annotations

import heapq
import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stages.reader.file_io import ImageFile
from stages.reader.remote_file import Outcome, Request
from stages.reader.remote_link import Link


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
        self._slots = [0.0] * link.max_in_flight  # a heap: when each becomes free
        self._line_free = 0.0
        self._random = random.Random(0)

    def fetch(self, requests: Sequence[Request]) -> list[Outcome]:
        began = time.perf_counter()
        sizes = [len(view) for view, _ in requests]
        due = self._schedule(sizes, began)
        out: list[Outcome] = [0] * len(requests)
        read_into, now = self._file.read_into, began
        for index in sorted(range(len(due)), key=due.__getitem__):
            while now < due[index]:
                time.sleep(due[index] - now)
                now = time.perf_counter()
            try:
                out[index] = read_into(*requests[index])
            except OSError as error:
                out[index] = error
        n_bytes = sum(sizes)
        self.link.book(len(requests), n_bytes, self._slowness.delay_s)
        return out

    def _schedule(self, sizes: Sequence[int], now: float) -> list[float]:
        """When the answer to each request is there."""
        slow, draw = self._slowness, self._random.random
        due: list[float] = []
        with self._lock:
            for n_bytes in sizes:
                done = max(now, self._slots[0]) + slow.delay_s
                if slow.jitter_s:
                    done += slow.jitter_s * draw()
                if slow.bytes_per_s:
                    done = max(done, self._line_free) + n_bytes / slow.bytes_per_s
                    self._line_free = done
                heapq.heapreplace(self._slots, done)
                due.append(done)
        return due

    def holes(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        return self._file.holes(start, stop)

    def close(self) -> None:
        self._file.close()
