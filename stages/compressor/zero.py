"""Which pages are all zero, and which are copies of another page of the same batch."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from itertools import repeat
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.memory.addresses import BoolArray, ByteArray

_SAMPLES: Final = np.array([3, 67, 129, 190, 261, 331, 397, 466])
"""Words of a 4 KiB page that make its key. No two at the same place of a slab object of whatever
size: at even distances a third of all pages that are no copies have another one's key, zeros and
list heads; with these one in forty."""
_SAMPLED_WORDS: Final = 512
# Odd weights that spread the sampled words over the key: multiples of 2**64 / golden ratio.
_WEIGHTS: Final = np.arange(1, 2 * len(_SAMPLES), 2, dtype=np.uint64) * np.uint64(
    0x9E3779B97F4A7C15
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
        every: BoolArray = np.bitwise_or.reduce(words, axis=1) == 0
        return every
    candidates = np.flatnonzero(zero)
    zero[candidates] = np.bitwise_or.reduce(words[candidates], axis=1) == 0
    return zero


def first_copies(pages: ByteArray, rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """For each of `rows` (ascending), the first row with the same content, itself if none is.

    A few sampled words make a page's key; neighbours in the order of the keys are compared in full,
    so equal means equal. A batch without copies costs one sort of its keys.
    """
    words = pages.view(np.uint64)
    scale = words.shape[1] // _SAMPLED_WORDS
    keys = (words[:, _SAMPLES * scale + _SAMPLES % scale] @ _WEIGHTS)[rows]
    order = np.argsort(keys, kind="stable")
    pairs = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    if len(pairs) == 0:
        return rows
    same = np.zeros(len(rows), dtype=np.bool_)
    same[pairs + 1] = _equal_rows(pages, rows[order[pairs + 1]], rows[order[pairs]])
    # Each stretch of equal pages is led by its first, the lowest row since the sort is stable.
    leads = np.maximum.accumulate(np.where(same, 0, np.arange(len(rows))))
    out = np.empty_like(rows)
    out[order] = rows[order[leads]]
    return out


def _equal_rows(pages: ByteArray, some: NDArray[np.intp], others: NDArray[np.intp]) -> BoolArray:
    """bool[n]: whether each page equals its counterpart; memcmp, which needs no copy of either."""
    base, page_size = int(pages.ctypes.data), pages.shape[1]
    first = (some * page_size + base).tolist()
    second = (others * page_size + base).tolist()
    differences = map(_memcmp, first, second, repeat(page_size))
    equal: BoolArray = np.fromiter(differences, dtype=np.int32, count=len(some)) == 0
    return equal


def _find_memcmp() -> Callable[[int, int, int], int]:
    memcmp = ctypes.PyDLL(None).memcmp
    memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    memcmp.restype = ctypes.c_int
    return memcmp


_memcmp: Final = _find_memcmp()
