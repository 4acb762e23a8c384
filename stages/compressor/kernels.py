"""Batch kernels: many pages in, their encodings packed one after another out.

Each codec answers `encode(pages, rows, out)`: the pages of uint8[n_pages, page_size] that `rows`
names are encoded in that order into `out`, without gaps; a page that would not become strictly
smaller is stored raw, as makedumpfile does. The loop over pages runs in C (`map` over a ctypes
function, or the library's own batch call).
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UnsupportedError
from pipeline.memory.addresses import ByteArray
from stages.compressor.lzo import LzoEncoder, load_lzo2
from stages.compressor.pack import Lengths, RowViews, join_pieces, pack_rows


class BatchEncoder(Protocol):
    """One codec at one level; owned by one worker, not shared between threads."""

    name: str
    in_place: bool
    """`out` may be the memory of `pages`, which is then changed; rows are ascending."""

    def encode(
        self, pages: ByteArray, rows: NDArray[np.intp], out: ByteArray
    ) -> tuple[Lengths, NDArray[np.bool_]]:
        """Encode `pages[rows]` into `out`, packed in that order.

        Args:
            pages: uint8[n_pages, page_size], C-contiguous.
            rows: intp[n_rows], any order.
            out: uint8[at least n_rows * page_size], not overlapping `pages` unless `in_place`.

        Returns:
            int64[n_rows] sizes, and bool[n_rows]: True where compressed, False where raw.
        """


class RawEncoder:
    """No compression; pages that are read to where they are to be are not copied at all."""

    name = "none"
    in_place = True

    def encode(
        self, pages: ByteArray, rows: NDArray[np.intp], out: ByteArray
    ) -> tuple[Lengths, NDArray[np.bool_]]:
        pack_rows(pages, rows, out)
        return np.full(len(rows), pages.shape[1], dtype=np.int64), np.zeros(len(rows), np.bool_)


class PieceEncoder:
    """Any codec that offers one call a page returning bytes (zlib, LZO's fallback)."""

    in_place = False

    def __init__(self, name: str, compress: Callable[[memoryview], Any]) -> None:
        self.name = name
        self._compress = compress

    def encode(
        self, pages: ByteArray, rows: NDArray[np.intp], out: ByteArray
    ) -> tuple[Lengths, NDArray[np.bool_]]:
        views = RowViews(pages, rows)
        pieces = list(map(self._compress, views))
        return join_pieces(pieces, views, out)


class ZlibEncoder:
    """zlib at level 1 by the better of two fast libraries, which a sample of each batch tells.

    Beside zlib itself ISA-L takes 0.4 of the time, cramjam (miniz) 0.55, and either is up to 10 %
    larger on contents on which the other is not: ISA-L 1 % on a kernel's own pages and 9 % on some
    anonymous memory, cramjam 5 % and 1 %. Neighbours in memory are alike.
    """

    name = "zlib"
    in_place = False
    _SAMPLES: Final = 16

    def __init__(self) -> None:
        import cramjam
        from isal import isal_zlib

        fast, slow = isal_zlib.compress, cramjam.zlib.compress
        self._coders: tuple[Callable[[memoryview], Any], ...] = (
            lambda page: fast(page, 1),
            lambda page: slow(page, 1),
        )

    def encode(
        self, pages: ByteArray, rows: NDArray[np.intp], out: ByteArray
    ) -> tuple[Lengths, NDArray[np.bool_]]:
        views = RowViews(pages, rows)
        step = max(len(rows) // self._SAMPLES, 1)
        sample = [views[nth] for nth in range(step // 2, len(rows), step)]
        sizes = [sum(map(len, map(coder, sample))) for coder in self._coders]
        coder = self._coders[sizes.index(min(sizes))]
        return join_pieces(list(map(coder, views)), views, out)


def _zlib_encoder(level: int) -> BatchEncoder:
    if level <= 1:
        with contextlib.suppress(ImportError):  # no wheel for this machine: same format, slower
            return ZlibEncoder()
    import zlib

    return PieceEncoder("zlib", lambda page: zlib.compress(page, level))


class ZstdEncoder:
    """zstd through python-zstandard's batch call: zero copy in, the GIL released throughout."""

    name = "zstd"
    in_place = False

    def __init__(self, level: int) -> None:
        import zstandard

        self._segments = zstandard.BufferWithSegments
        self._compressor = zstandard.ZstdCompressor(level=level, write_content_size=True)

    def encode(
        self, pages: ByteArray, rows: NDArray[np.intp], out: ByteArray
    ) -> tuple[Lengths, NDArray[np.bool_]]:
        page_size = pages.shape[1]
        table = np.empty((len(rows), 2), dtype=np.uint64)
        table[:, 0] = rows * page_size
        table[:, 1] = page_size
        # The class checks for the exact buffer it was given: bytes-like, C-contiguous.
        batch = self._segments(pages.reshape(-1).data, table.tobytes())
        coded: Any = self._compressor.multi_compress_to_buffer(batch, threads=1)
        return join_pieces(list(coded), RowViews(pages, rows), out)


def make_encoder(codec: str, level: int, page_size: int) -> BatchEncoder:
    """The encoder for one worker; imports what the codec needs.

    Raises:
        UnsupportedError: unknown codec, or its library is not there.
    """
    if codec == "none":
        return RawEncoder()
    if codec == "zstd":
        return ZstdEncoder(level)
    if codec == "zlib":
        return _zlib_encoder(level)
    if codec == "snappy":
        from stages.compressor.snappy import SnappyEncoder

        return SnappyEncoder(page_size)
    if codec == "lzo":
        if load_lzo2(ctypes.PyDLL) is not None:
            return LzoEncoder(page_size)
        import lzallright

        return PieceEncoder("lzo", lzallright.LZOCompressor().compress)
    raise UnsupportedError(f"compression {codec!r} is not one of none, zlib, lzo, snappy, zstd")
