"""Which pages are all zero, and which are copies of another page of the same batch."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.memory.addresses import BoolArray, ByteArray

# Odd multipliers that spread the three sampled words over the key (golden ratio and two primes).
_SPREAD: Final = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64
)


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
        return np.bitwise_or.reduce(words, axis=1) == 0
    candidates = np.flatnonzero(zero)
    zero[candidates] = np.bitwise_or.reduce(words[candidates], axis=1) == 0
    return zero


def first_copies(pages: ByteArray, rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """For each of `rows` (ascending), the first row with the same content, itself if none is.

    Three sampled words make the key; pages with equal keys are compared in full, so equal means
    equal. A batch without copies costs one sort of its keys.
    """
    words = pages.view(np.uint64)
    n_words = words.shape[1]
    keys = np.zeros(len(rows), dtype=np.uint64)
    for column, spread in zip((0, n_words // 3, n_words - 1), _SPREAD, strict=True):
        keys += words[rows, column] * spread
    order = np.argsort(keys, kind="stable")
    same_key = keys[order][1:] == keys[order][:-1]
    out = rows.copy()
    if not same_key.any():
        return out
    for at in np.flatnonzero(same_key).tolist():
        earlier, later = order[at], order[at + 1]
        head = out[earlier]
        if np.array_equal(words[head], words[rows[later]]):
            out[later] = head
    return out
