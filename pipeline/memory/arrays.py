"""Sorted distinct values, without what `numpy.unique` brings along.

`numpy.unique` asks `numpy.ma` whether its argument is masked, and so imports it: 10 ms of a start
in which every one counts, and 1 MiB.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Scalar = TypeVar("Scalar", bound=np.generic)


def distinct(values: NDArray[Scalar]) -> NDArray[Scalar]:
    """The values in `values`, ascending, each once."""
    ordered = np.sort(values, axis=None)
    return ordered[_starts(ordered)]


def distinct_inverse(values: NDArray[Scalar]) -> tuple[NDArray[Scalar], NDArray[np.intp]]:
    """`distinct`, and for each value its index there: `found[inverse]` is `values` again."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = _starts(ordered)
    inverse = np.empty(len(values), dtype=np.intp)
    inverse[order] = np.cumsum(starts) - 1
    return ordered[starts], inverse


def _starts(ordered: NDArray[Scalar]) -> NDArray[np.bool_]:
    starts = np.ones(len(ordered), dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=starts[1:])
    return starts
