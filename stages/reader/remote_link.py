"""What is known of the way to a slow source: how long a request takes, how fast bytes come.

Measured while the run goes on, from every request; read by whoever decides how much to ask for at
once. Two numbers follow from them:

    window   latency x bandwidth: bytes that must be under way to keep the line busy
    gap      bytes that are cheaper to fetch for nothing than to ask again behind them
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from pipeline.errors import DumpError

_WEIGHT: Final = 0.2
"""Of the newest measurement in the running mean."""
_SMALL_BYTES: Final = 64 << 10
"""Up to here a request's time is latency, above half of the way to `_LARGE_BYTES` it is not."""
_LARGE_BYTES: Final = 512 << 10
_FIRST_BANDWIDTH: Final = 100e6
"""Bytes a second before anything was measured: a gigabit."""
_MIN_WINDOW: Final = 256 << 10
_MAX_GAP: Final = 1 << 20


class SourceError(DumpError):
    """A source that is not here could not be reached, or changed; never a page's own fault."""


@dataclass(slots=True)
class LinkStats:
    """Of all requests. Seconds of requests that ran side by side add up in `request_s` only."""

    requests: int = 0
    bytes: int = 0
    joined: int = 0
    """Reads that travelled in another read's request."""
    request_s: float = 0.0
    waited_s: float = 0.0
    """Time in which at least one caller waited for the source."""

    @property
    def hidden_s(self) -> float:
        """Estimate: what the same requests one after the other would have cost on top."""
        return max(self.request_s - self.waited_s, 0.0)


class Link:
    """Measures one source; safe from several threads."""

    def __init__(self, *, max_in_flight: int, part_bytes: int) -> None:
        """`part_bytes` is the largest single request."""
        self.max_in_flight = max_in_flight
        self.part_bytes = part_bytes
        self.latency_s = 0.0
        self.bandwidth = _FIRST_BANDWIDTH
        self.stats = LinkStats()
        self._lock = threading.Lock()
        self._n_waiting = 0
        self._since = 0.0

    @property
    def window_bytes(self) -> int:
        """Bytes to have under way; grows and shrinks with what is measured."""
        return max(int(2 * self.latency_s * self.bandwidth), _MIN_WINDOW)

    @property
    def gap_bytes(self) -> int:
        """Reading this many bytes for nothing costs as much as one more request."""
        share = self.latency_s / self.max_in_flight
        return min(int(share * self.bandwidth), _MAX_GAP)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Books the time of the block as waiting, however many wait at once."""
        with self._lock:
            if not self._n_waiting:
                self._since = time.perf_counter()
            self._n_waiting += 1
        try:
            yield
        finally:
            with self._lock:
                self._n_waiting -= 1
                if not self._n_waiting:
                    self.stats.waited_s += time.perf_counter() - self._since

    def book(self, n_requests: int, n_bytes: int, seconds: float) -> None:
        """Count requests that took `seconds` each, and `n_bytes` in all."""
        with self._lock:
            self.stats.requests += n_requests
            self.stats.bytes += n_bytes
            self.stats.request_s += seconds * n_requests
            per_request = n_bytes / max(n_requests, 1)
            if per_request <= _SMALL_BYTES:
                known = self.latency_s or seconds
                self.latency_s = known + _WEIGHT * (seconds - known)

    def book_transfer(self, n_bytes: int, seconds: float) -> None:
        """Learn the bandwidth from a large transfer, whatever number of requests it took."""
        if n_bytes < _LARGE_BYTES:
            return
        with self._lock:
            net = max(seconds - self.latency_s, seconds / 16, 1e-6)
            self.bandwidth += _WEIGHT * (n_bytes / net - self.bandwidth)

    def book_joined(self, n_reads: int) -> None:
        with self._lock:
            self.stats.joined += n_reads
