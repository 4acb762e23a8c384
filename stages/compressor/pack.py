"""Putting a batch's encoded pages one after another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.memory.addresses import ByteArray

Lengths = NDArray[np.int64]


def address_of(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)


def pack_rows(pages: ByteArray, rows: NDArray[np.intp], out: ByteArray) -> None:
    """Copy `pages[rows]` to the start of `out`, which may be the memory of `pages` itself."""
    page_size = pages.shape[1]
    target = out[: len(rows) * page_size].reshape(len(rows), page_size)
    if address_of(out) == address_of(pages):
        _close_gaps(pages, rows)
    elif len(rows) == len(pages):
        target[:] = pages
    else:
        np.take(pages, rows, axis=0, out=target)


def _close_gaps(pages: ByteArray, rows: NDArray[np.intp]) -> None:
    """Move `rows`, ascending, to the first ones; one move for each run of consecutive rows."""
    heads = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
    targets = [*heads.tolist(), len(rows)]
    for source, target, end in zip(rows[heads].tolist(), targets, targets[1:], strict=False):
        if source != target:
            # Overlapping or not: numpy looks.
            pages[target:end] = pages[source : source + end - target]


class RowViews:
    """Memory of one row after the other; the raw bytes of pages that do not get smaller."""

    def __init__(self, pages: ByteArray, rows: NDArray[np.intp]) -> None:
        self._flat = pages.reshape(-1).data
        self._rows = rows
        self.page_size = pages.shape[1]

    def __iter__(self) -> Iterator[memoryview]:
        flat, page_size = self._flat, self.page_size
        for at in (self._rows * page_size).tolist():
            yield flat[at : at + page_size]

    def __getitem__(self, nth: int) -> memoryview:
        at = int(self._rows[nth]) * self.page_size
        return self._flat[at : at + self.page_size]


def join_pieces(
    pieces: list[Any], views: RowViews, out: ByteArray
) -> tuple[Lengths, NDArray[np.bool_]]:
    """Pack encoded `pieces` into `out`, the raw page where one is not strictly smaller."""
    lengths = np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces))
    return join_sized(pieces, lengths, views, out)


def join_sized(
    pieces: list[Any], lengths: Lengths, views: RowViews, out: ByteArray
) -> tuple[Lengths, NDArray[np.bool_]]:
    coded = lengths < views.page_size
    for at in np.flatnonzero(~coded).tolist():
        pieces[at] = views[at]
    sizes = np.where(coded, lengths, views.page_size)
    joined = b"".join(pieces)
    out[: len(joined)] = np.frombuffer(joined, dtype=np.uint8)
    return sizes, coded
