"""Distinct values, against Python's own sets."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.memory.arrays import distinct, distinct_inverse


@given(st.lists(st.integers(0, 2**64 - 1), max_size=50))
def test_distinct_is_the_sorted_set(values: list[int]) -> None:
    """Each value once, ascending; also for none at all."""
    assert distinct(np.array(values, dtype=np.uint64)).tolist() == sorted(set(values))


@given(st.lists(st.integers(0, 9), max_size=50))
def test_inverse_gives_the_values_back(values: list[int]) -> None:
    """Indexing the distinct values by the inverse is the argument again."""
    found, inverse = distinct_inverse(np.array(values, dtype=np.uint64))

    assert found.tolist() == sorted(set(values))
    assert found[inverse].tolist() == values


def test_a_dump_does_not_import_masked_arrays() -> None:
    """The modules that every dump needs come without numpy.ma."""
    code = (
        "import sys, numpy as np; from pipeline.memory.arrays import distinct;"
        "distinct(np.arange(3)); sys.exit('numpy.ma' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
