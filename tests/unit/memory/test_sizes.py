"""Sizes and counts as people write them."""

from __future__ import annotations

import pytest

from pipeline.memory.sizes import show_count


@pytest.mark.parametrize(
    ("n", "said"), [(0, "0 pages"), (1, "1 page"), (2, "2 pages"), (11, "11 pages")]
)
def test_one_is_no_plural(n: int, said: str) -> None:
    """The noun agrees with its number."""
    assert show_count(n, "page") == said
