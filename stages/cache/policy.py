"""Which block has to go when the cache is full.

Three policies, so that `dumpstream trace replay` can compare them on recorded traces; the cache
itself runs `S3Fifo` (docs/adr/0016 has the hit ratios). All are bounded by the capacity, and all
work in time that does not grow with it.

References:
    Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023
    Megiddo and Modha, "ARC: a self-tuning, low overhead replacement cache", FAST 2003
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Final, Protocol


class Policy(Protocol):
    """Knows the keys of what is kept, at most `capacity`; keeps no content itself."""

    def touch(self, keys: Iterable[int]) -> None:
        """These, which are kept, were asked for again."""

    def admit(self, key: int, *, preferred: bool = False) -> int | None:
        """Take in `key`, which is not kept; the key that has to go for it, if one has to.

        Args:
            key: of a block.
            preferred: of a kind that is read again and again: a page table.
        """

    def __len__(self) -> int: ...


class Lru:
    """Least recently used: what a scan pushes everything out of."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._keys: OrderedDict[int, None] = OrderedDict()

    def touch(self, keys: Iterable[int]) -> None:
        for key in keys:
            self._keys.move_to_end(key)

    def admit(self, key: int, *, preferred: bool = False) -> int | None:
        victim = None
        if len(self._keys) >= self._capacity:
            victim, _ = self._keys.popitem(last=False)
        self._keys[key] = None
        return victim

    def __len__(self) -> int:
        return len(self._keys)


class S3Fifo:
    """Two queues: new keys wait in a small one, and move to the main one when asked for again.

    What passes once through the small queue is remembered (`ghost`), and goes to the main one if
    it comes back. A hit only counts up to three; nothing is moved. Preferred keys start in the
    main queue::

        new ──▶ small (a tenth) ──asked again──▶ main ──▶ out, unless asked since: round again
                    └──▶ out, remembered in ghost ──comes back──▶ main
    """

    _MOST: Final = 3

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._small_size = max(capacity // 10, 1)
        self._small: deque[int] = deque()
        self._main: deque[int] = deque()
        self._uses: dict[int, int] = {}
        self._ghost: OrderedDict[int, None] = OrderedDict()

    def touch(self, keys: Iterable[int]) -> None:
        uses = self._uses
        for key in keys:
            if (n_uses := uses[key]) < self._MOST:
                uses[key] = n_uses + 1

    def admit(self, key: int, *, preferred: bool = False) -> int | None:
        victim = self._evict() if len(self._uses) >= self._capacity else None
        if preferred or key in self._ghost:
            self._ghost.pop(key, None)
            self._main.append(key)
        else:
            self._small.append(key)
        self._uses[key] = 0
        return victim

    def _evict(self) -> int:
        """Each turn removes a key, or takes a use from one: bounded by three rounds."""
        while True:
            if len(self._small) >= self._small_size or not self._main:
                key = self._small.popleft()
                if self._uses[key]:
                    self._uses[key] = 0
                    self._main.append(key)
                    continue
                self._remember(key)
            else:
                key = self._main.popleft()
                if self._uses[key]:
                    self._uses[key] -= 1
                    self._main.append(key)
                    continue
            del self._uses[key]
            return key

    def _remember(self, key: int) -> None:
        self._ghost[key] = None
        if len(self._ghost) > self._capacity:
            self._ghost.popitem(last=False)

    def __len__(self) -> int:
        return len(self._uses)


class Arc:
    """Adaptive replacement: recent and frequent keys, whose shares follow the hits on ghosts."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._target = 0.0
        self._recent: OrderedDict[int, None] = OrderedDict()
        self._frequent: OrderedDict[int, None] = OrderedDict()
        self._recent_ghost: OrderedDict[int, None] = OrderedDict()
        self._frequent_ghost: OrderedDict[int, None] = OrderedDict()

    def touch(self, keys: Iterable[int]) -> None:
        for key in keys:
            if key in self._recent:
                del self._recent[key]
                self._frequent[key] = None
            else:
                self._frequent.move_to_end(key)

    def admit(self, key: int, *, preferred: bool = False) -> int | None:
        into = self._frequent if preferred else self._recent
        from_frequent = False
        if key in self._recent_ghost:
            step = max(len(self._frequent_ghost) / len(self._recent_ghost), 1.0)
            self._target = min(self._target + step, self._capacity)
            del self._recent_ghost[key]
            into = self._frequent
        elif key in self._frequent_ghost:
            step = max(len(self._recent_ghost) / len(self._frequent_ghost), 1.0)
            self._target = max(self._target - step, 0.0)
            del self._frequent_ghost[key]
            into, from_frequent = self._frequent, True
        victim = self._evict(from_frequent) if len(self) >= self._capacity else None
        into[key] = None
        return victim

    def _evict(self, from_frequent: bool) -> int:
        n_recent = len(self._recent)
        over = n_recent > self._target or (from_frequent and n_recent == int(self._target))
        take_recent = n_recent and (over or not self._frequent)
        kept, ghost = (
            (self._recent, self._recent_ghost)
            if take_recent
            else (self._frequent, self._frequent_ghost)
        )
        victim, _ = kept.popitem(last=False)
        ghost[victim] = None
        if len(ghost) > self._capacity:
            ghost.popitem(last=False)
        return victim

    def __len__(self) -> int:
        return len(self._recent) + len(self._frequent)


POLICIES: Final[dict[str, type[Lru | S3Fifo | Arc]]] = {"s3fifo": S3Fifo, "arc": Arc, "lru": Lru}
