"""What to read before it is asked for: hints of the page walk, strides, and how many of them.

Hints are lossy: a full queue drops them and counts. How much may be under way follows two things,
the measured line (latency x bandwidth) and what came of earlier prefetches: one that is used lets
one more out, one that is wasted takes a quarter of the room away.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Final

_PENALTY: Final = 0.75
_LEAST_ROOM: Final = 0.1
_RECOVERY: Final = 1 / 64
"""Room that comes back with each request: now and then a prefetch shows whether hints are good."""
_SAME_STEPS: Final = 2
"""Equal steps in a row that make a stride."""


class HintQueue:
    """Blocks to prefetch, oldest first, each once; bounded."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._keys: OrderedDict[int, bool] = OrderedDict()

    def add(self, keys: Iterable[int], *, preferred: bool) -> int:
        """Queue `keys`; returns how many were dropped."""
        n_dropped = 0
        for key in keys:
            if key in self._keys:
                continue
            if len(self._keys) >= self._most:
                n_dropped += 1
                continue
            self._keys[key] = preferred
        return n_dropped

    def take(self, n_keys: int) -> Iterator[tuple[int, bool]]:
        """Up to `n_keys`, with their kind."""
        for _ in range(min(n_keys, len(self._keys))):
            yield self._keys.popitem(last=False)

    def __len__(self) -> int:
        return len(self._keys)


class Room:
    """How many prefetched blocks may be under way or unused."""

    def __init__(self, first: int) -> None:
        self._blocks = float(first)

    def used(self, most: int) -> None:
        """A prefetched block was asked for; `most` is what line and memory allow now."""
        self._blocks = max(min(self._blocks + 1, most), _LEAST_ROOM)

    def wasted(self) -> None:
        """A prefetched block was evicted before anybody asked for it."""
        self._blocks = max(self._blocks * _PENALTY, _LEAST_ROOM)

    def blocks(self, most: int) -> int:
        """Blocks that may be under way now, up to `most`."""
        if self._blocks < 1:
            self._blocks += _RECOVERY
        return max(min(int(self._blocks), most), 0)


class StrideDetector:
    """Recognises single requests that advance by equal steps: frame tables, p2m lists."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._last: int | None = None
        self._step = 0
        self._n_same = 0

    def next(self, key: int, stop: int) -> list[int]:
        """Blocks that will be asked for after `key` if it goes on like this, all in [0, stop)."""
        step = 0 if self._last is None else key - self._last
        self._last = key
        if not step:
            return []
        self._n_same = self._n_same + 1 if step == self._step else 1
        self._step = step
        if self._n_same < _SAME_STEPS:
            return []
        ahead = (key + step * nth for nth in range(1, self._depth + 1))
        return [each for each in ahead if 0 <= each < stop]
