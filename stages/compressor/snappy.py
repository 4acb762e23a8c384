"""Snappy by cramjam, each page into room of its own: no buffer is made for a result."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.memory.addresses import ByteArray
from stages.compressor.pack import Lengths, RowViews, join_sized


class SnappyEncoder:
    """2.7 us a page of a kernel, 3.1 where cramjam makes a buffer for each result."""

    name = "snappy"
    in_place = False

    def __init__(self, page_size: int) -> None:
        import cramjam

        self._compress = cramjam.snappy.compress_raw_into
        # Worst case of snappy: 32 + n + n / 6.
        self._stride = 32 + page_size + page_size // 6 + 1
        self._rooms: list[memoryview] = []

    def encode(
        self, pages: ByteArray, rows: NDArray[np.intp], out: ByteArray
    ) -> tuple[Lengths, NDArray[np.bool_]]:
        n_rows, stride = len(rows), self._stride
        if len(self._rooms) < n_rows:
            scratch = np.empty(n_rows * stride, dtype=np.uint8).data
            self._rooms = [scratch[at : at + stride] for at in range(0, n_rows * stride, stride)]
        views = RowViews(pages, rows)
        sizes = list(map(self._compress, views, self._rooms))
        pieces = [room[:size] for room, size in zip(self._rooms, sizes, strict=False)]
        return join_sized(pieces, np.array(sizes, dtype=np.int64), views, out)
