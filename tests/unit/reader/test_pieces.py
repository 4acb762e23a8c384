"""Overlapping ranges made disjoint, against a dictionary of bytes."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.reader.pieces import make_disjoint

ranges = st.lists(
    st.tuples(st.integers(0, 60), st.integers(1, 20), st.integers(0, 500)), max_size=12
)


@settings(deadline=None)
@given(ranges)
def test_first_range_wins_every_byte(given_ranges: list[tuple[int, int, int]]) -> None:
    """Each byte lies where the first range that has it says; pieces are disjoint and ascend."""
    where: dict[int, int] = {}
    for start, length, off in given_ranges:
        for at in range(length):
            where.setdefault(start + at, off + at)
    columns = np.array(given_ranges, dtype=np.int64).reshape(-1, 3)

    pieces = make_disjoint(columns[:, 0], columns[:, 0] + columns[:, 1], columns[:, 2])

    found = {
        byte: off + byte - start
        for start, stop, off in zip(*(column.tolist() for column in pieces), strict=True)
        for byte in range(start, stop)
    }
    assert found == where
    assert (pieces.starts < pieces.stops).all()
    assert (pieces.starts[1:] >= pieces.stops[:-1]).all()


def test_neighbours_that_continue_each_other_are_joined() -> None:
    """Two loads that are one in memory and in the file are read as one."""
    pieces = make_disjoint(np.array([100, 0]), np.array([200, 100]), np.array([1100, 1000]))

    assert [column.tolist() for column in pieces] == [[0], [200], [1000]]


@settings(deadline=None)
@given(ranges, st.integers(0, 90), st.integers(1, 30))
def test_overlapping_finds_the_pieces_of_a_window(
    given_ranges: list[tuple[int, int, int]], start: int, length: int
) -> None:
    """The slice holds exactly the pieces with a byte inside the window."""
    columns = np.array(given_ranges, dtype=np.int64).reshape(-1, 3)
    pieces = make_disjoint(columns[:, 0], columns[:, 0] + columns[:, 1], columns[:, 2])
    stop = start + length

    chosen = pieces.overlapping(start, stop)

    wanted = [
        at
        for at, (low, high) in enumerate(zip(pieces.starts, pieces.stops, strict=True))
        if low < stop and high > start
    ]
    assert list(range(*chosen.indices(len(pieces.starts)))) == wanted
