"""What a cache counts."""

from __future__ import annotations

from msgspec import Struct


class CacheStats(Struct):
    """Hits and misses are in pages asked for; prefetches are in blocks."""

    hits: int = 0
    """Found, or already on their way."""
    misses: int = 0
    reads: int = 0
    """Calls of the image; a call may be several requests to the source, see `LinkStats`."""
    bytes_read: int = 0
    evicted: int = 0
    prefetched: int = 0
    used: int = 0
    """Prefetched, and asked for later."""
    wasted: int = 0
    """Prefetched, and evicted or left over unused."""
    dropped: int = 0
    """Hints that were not followed: the queue was full."""

    @property
    def hit_ratio(self) -> float:
        return self.hits / max(self.hits + self.misses, 1)
