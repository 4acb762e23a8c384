"""Manners on a shared network: one rate for all senders of a run, and a scattered start."""

from __future__ import annotations

import random
from collections.abc import Callable

import anyio

_BURST_S = 0.1
"""Seconds of the rate that may pass at once; short enough for a router's queue."""


class TokenBucket:
    """Holds the sum of all callers to `bytes_per_s`; callers are served in the order they come."""

    def __init__(self, bytes_per_s: int | None) -> None:
        """`bytes_per_s` None or 0 means no limit."""
        self._rate = bytes_per_s or 0
        self._booked_until = 0.0

    async def take(self, n_bytes: int) -> None:
        """Wait until `n_bytes` more may be sent; call it with pieces of well under a second."""
        if not self._rate:
            return
        now = anyio.current_time()
        start = max(self._booked_until, now - _BURST_S)
        self._booked_until = start + n_bytes / self._rate
        if self._booked_until > now:
            await anyio.sleep(self._booked_until - now)


async def start_jitter(
    most_s: float, draw: Callable[[float, float], float] = random.uniform
) -> None:
    """Wait up to `most_s`, so that machines that crashed together do not all connect together."""
    if most_s > 0:
        await anyio.sleep(draw(0.0, most_s))
