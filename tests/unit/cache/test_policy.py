"""Replacement policies: what all of them promise, and what tells them apart."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.cache.policy import POLICIES, Policy


def play(policy: Policy, keys: list[int]) -> tuple[set[int], int]:
    """What is kept after `keys`, and how many of them were found."""
    kept: set[int] = set()
    hits = 0
    for key in keys:
        if key in kept:
            hits += 1
            policy.touch([key])
            continue
        victim = policy.admit(key)
        if victim is not None:
            kept.remove(victim)
        kept.add(key)
    return kept, hits


@pytest.mark.parametrize("name", POLICIES)
class TestAll:
    @given(capacity=st.integers(1, 20), keys=st.lists(st.integers(0, 60), max_size=300))
    @settings(max_examples=60, deadline=None)
    def test_bounded_and_exact(self, name: str, capacity: int, keys: list[int]) -> None:
        """Victims are keys that are kept, and never more than the capacity are."""
        policy = POLICIES[name](capacity)

        kept, _ = play(policy, keys)

        assert len(policy) == len(kept) == min(capacity, len(set(keys)))

    def test_what_fits_stays(self, name: str) -> None:
        """As many keys as there is room for are all found again."""
        _, hits = play(POLICIES[name](10), list(range(10)) * 5)

        assert hits == 40


class TestScans:
    @staticmethod
    def hits_with_scan(name: str) -> int:
        """Ten keys used again and again, with a scan of a hundred between."""
        keys: list[int] = []
        for turn in range(20):
            keys += list(range(10)) * 2
            keys += range(1000 + turn * 100, 1100 + turn * 100)
        return play(POLICIES[name](40), keys)[1]

    def test_a_scan_pushes_out_only_lru(self) -> None:
        """Least recently used loses what is in use; the others keep it."""
        lru, arc, s3fifo = (self.hits_with_scan(name) for name in ("lru", "arc", "s3fifo"))

        assert lru == 200
        assert min(arc, s3fifo) > 350

    def test_preferred_keys_outlive_a_scan(self) -> None:
        """Tables that were asked for once are still there after data that was."""
        policy = POLICIES["s3fifo"](40)
        kept = set(range(20))
        for key in range(20):
            assert policy.admit(key, preferred=True) is None

        for key in range(100, 130):
            victim = policy.admit(key)
            kept.discard(-1 if victim is None else victim)

        assert kept == set(range(20))
