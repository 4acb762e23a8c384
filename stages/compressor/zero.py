"""Which pages are all zero, and which are copies of another page of the same batch."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.memory.addresses import BoolArray, ByteArray

# Odd multiplier that spreads sampled words over the key: 2**64 / golden ratio.
_SPREAD: Final = np.uint64(0x9E3779B97F4A7C15)
_SAMPLES: Final = 16
"""Words of a page that make its key. With 3, pages of the slab collide by the thousand: their
sampled words are zeros and list heads."""


def zero_rows(pages: ByteArray) -> BoolArray:
    """bool[n_pages]: which rows of uint8[n_pages, page_size] hold nothing but zeros.

    Three words a page rule out nearly every other page, so that only candidates are read whole:
    6-12 GB/s a core where all pages are zero, far more where few are.
    """
    words = pages.view(np.uint64)
    n_words = words.shape[1]
    some = words[:, 0] | words[:, n_words // 2] | words[:, n_words - 1]
    zero: BoolArray = some == 0
    n_candidates = int(np.count_nonzero(zero))
    if n_candidates == 0:
        return zero
    if n_candidates * 4 > 3 * len(zero):  # copying the candidates would cost more than the rest
        zero = np.bitwise_or.reduce(words, axis=1) == 0
        return zero
    candidates = np.flatnonzero(zero)
    zero[candidates] = np.bitwise_or.reduce(words[candidates], axis=1) == 0
    return zero


def first_copies(pages: ByteArray, rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """For each of `rows` (ascending), the first row with the same content, itself if none is.

    A few sampled words make a page's key; neighbours in the order of the keys are compared in full,
    so equal means equal. A batch without copies costs one sort of its keys.
    """
    words = pages.view(np.uint64)
    step = words.shape[1] // _SAMPLES
    keys = np.zeros(len(rows), dtype=np.uint64)
    for column in range(step // 2, words.shape[1], step):
        keys = keys * _SPREAD + words[rows, column]
    order = np.argsort(keys, kind="stable")
    pairs = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    if len(pairs) == 0:
        return rows
    same = np.zeros(len(rows), dtype=np.bool_)
    later, earlier = rows[order[pairs + 1]], rows[order[pairs]]
    same[pairs + 1] = (words[later] == words[earlier]).all(axis=1)
    # Each stretch of equal pages is led by its first, the lowest row since the sort is stable.
    leads = np.maximum.accumulate(np.where(same, 0, np.arange(len(rows))))
    out = np.empty_like(rows)
    out[order] = rows[order[leads]]
    return out
