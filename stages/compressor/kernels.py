"""Batch kernels: many pages in, their encodings packed one after another out.

Each codec answers `encode(pages, rows, out)`: the pages of uint8[n_pages, page_size] that `rows`
names are encoded in that order into `out`, without gaps; a page that would not become strictly
smaller is stored raw, as makedumpfile does. The loop over pages runs in C (`map` over a ctypes
function, or the library's own batch call): measured on 128 MiB of mixed pages, lzo takes 5.3 us a
page this way, of which Python's part is 0.3 us.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UnsupportedError
from pipeline.memory.addresses import ByteArray

Lengths = NDArray[np.int64]


class BatchEncoder(Protocol):
    """One codec at one level; owned by one worker, not shared between threads."""

    name: str

    def encode(
        self, pages: ByteArray, rows: NDArray[np.intp], out: ByteArray
    ) -> tuple[Lengths, NDArray[np.bool_]]:
        """Encode `pages[rows]` into `out`, packed in that order.

        Args:
            pages: uint8[n_pages, page_size], C-contiguous.
            rows: intp[n_rows], any order.
            out: uint8[at least n_rows * page_size], not overlapping `pages`.

        Returns:
            int64[n_rows] sizes, and bool[n_rows]: True where compressed, False where raw.
        """


def _address(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)


def pack_rows(pages: ByteArray, rows: NDArray[np.intp], out: ByteArray) -> None:
    """Copy `pages[rows]` to the start of `out`; one copy for each run of consecutive rows."""
    page_size = pages.shape[1]
    target = out[: len(rows) * page_size].reshape(len(rows), page_size)
    if len(rows) == len(pages):
        target[:] = pages
    else:
        np.take(pages, rows, axis=0, out=target)


class RawEncoder:
    """No compression."""

    name = "none"

    def encode(
        self, pages: ByteArray, rows: NDArray[np.intp], out: ByteArray
    ) -> tuple[Lengths, NDArray[np.bool_]]:
        pack_rows(pages, rows, out)
        return np.full(len(rows), pages.shape[1], dtype=np.int64), np.zeros(len(rows), np.bool_)


class _Scratch:
    """Room for every page's worst case, side by side, and the pieces put together afterwards."""

    def __init__(self, stride: int) -> None:
        self.stride = stride
        self.buffer = np.empty(0, dtype=np.uint8)
        self.lengths = np.empty(0, dtype=np.uint64)
        self._move = ctypes.PyDLL(None).memmove
        self._move.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
        self._move.restype = None

    def grow(self, n_rows: int) -> None:
        if len(self.lengths) < n_rows:
            self.buffer = np.empty(n_rows * self.stride, dtype=np.uint8)
            self.lengths = np.empty(n_rows, dtype=np.uint64)

    def pack(
        self, pages: ByteArray, rows: NDArray[np.intp], failed: NDArray[np.bool_], out: ByteArray
    ) -> tuple[Lengths, NDArray[np.bool_]]:
        """Gather compressed pieces, and raw pages where that was not smaller, into `out`."""
        page_size = pages.shape[1]
        lengths = self.lengths[: len(rows)].astype(np.int64)
        coded = (lengths < page_size) & ~failed
        sizes = np.where(coded, lengths, page_size)
        ends = np.cumsum(sizes)
        if int(ends[-1]) > len(out):
            raise ValueError(f"{int(ends[-1])} encoded bytes do not fit in {len(out)}")
        pieces = np.arange(len(rows)) * self.stride + _address(self.buffer)
        sources = np.where(coded, pieces, rows * page_size + _address(pages))
        targets = ends - sizes + _address(out)
        _exhaust(map(self._move, targets.tolist(), sources.tolist(), sizes.tolist()))
        return sizes, coded


def _exhaust(calls: Iterable[object]) -> None:
    for _ in calls:
        pass


class LzoEncoder:
    """LZO1X-1(12) from the system's liblzo2: one C call a page, results packed afterwards."""

    name = "lzo"
    _WORK_BYTES: Final = 16384 * 8
    """LZO1X_1_MEM_COMPRESS: 16384 dictionary entries of a pointer each."""

    def __init__(self, page_size: int) -> None:
        library = load_lzo2(ctypes.PyDLL)
        if library is None:
            raise UnsupportedError("liblzo2.so.2 is not installed")
        # The dictionary of plain LZO1X-1, 16384 entries, is cleared for every page; a quarter of
        # it is enough for 4 KiB: 5 % faster, 0.3 % larger, the same format.
        self._compress = getattr(library, "lzo1x_1_12_compress", library.lzo1x_1_compress)
        self._compress.restype = ctypes.c_int
        self._compress.argtypes = [
            ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p,
        ]  # fmt: skip
        self._work = np.zeros(self._WORK_BYTES, dtype=np.uint8)
        # Worst case of LZO1X-1: in + in / 16 + 64 + 3.
        self._scratch = _Scratch(page_size + page_size // 16 + 64 + 16)

    def encode(
        self, pages: ByteArray, rows: NDArray[np.intp], out: ByteArray
    ) -> tuple[Lengths, NDArray[np.bool_]]:
        scratch, n_rows, page_size = self._scratch, len(rows), pages.shape[1]
        scratch.grow(n_rows)
        sources = (rows * page_size + _address(pages)).tolist()
        first, lengths = _address(scratch.buffer), _address(scratch.lengths)
        codes = map(
            self._compress,
            sources,
            repeat(page_size),
            range(first, first + n_rows * scratch.stride, scratch.stride),
            range(lengths, lengths + 8 * n_rows, 8),
            repeat(_address(self._work)),
        )
        failed = np.fromiter(codes, dtype=np.int32, count=n_rows) != 0
        return scratch.pack(pages, rows, failed, out)


def load_lzo2(loader: Callable[[str], Any]) -> Any | None:
    """The system's LZO library, or None; it is GPL, so it is used where it is, never shipped."""
    try:
        return loader("liblzo2.so.2")
    except OSError:
        return None


class PieceEncoder:
    """Any codec that offers one call a page returning bytes (snappy, zlib, LZO's fallback)."""

    def __init__(self, name: str, compress: Callable[[memoryview], Any]) -> None:
        self.name = name
        self._compress = compress

    def encode(
        self, pages: ByteArray, rows: NDArray[np.intp], out: ByteArray
    ) -> tuple[Lengths, NDArray[np.bool_]]:
        views = _row_views(pages, rows)
        return join_pieces(list(map(self._compress, views)), views, pages.shape[1], out)


def _row_views(pages: ByteArray, rows: NDArray[np.intp]) -> list[memoryview]:
    flat = pages.reshape(-1).data
    page_size = pages.shape[1]
    return [flat[at : at + page_size] for at in (rows * page_size).tolist()]


def join_pieces(
    pieces: list[Any], views: list[memoryview], page_size: int, out: ByteArray
) -> tuple[Lengths, NDArray[np.bool_]]:
    """Pack encoded `pieces` into `out`, the raw page where one is not strictly smaller."""
    lengths = np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces))
    coded = lengths < page_size
    for at in np.flatnonzero(~coded).tolist():
        pieces[at] = views[at]
    sizes = np.where(coded, lengths, page_size)
    joined = b"".join(pieces)
    out[: len(joined)] = np.frombuffer(joined, dtype=np.uint8)
    return sizes, coded


class ZstdEncoder:
    """zstd through python-zstandard's batch call: zero copy in, the GIL released throughout."""

    name = "zstd"

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
        pieces = list(coded)
        return join_pieces(pieces, _row_views(pages, rows), page_size, out)


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
        return PieceEncoder("zlib", _zlib_page(level))
    if codec == "snappy":
        import cramjam

        return PieceEncoder("snappy", cramjam.snappy.compress_raw)
    if codec == "lzo":
        if load_lzo2(ctypes.PyDLL) is not None:
            return LzoEncoder(page_size)
        import lzallright

        return PieceEncoder("lzo", lzallright.LZOCompressor().compress)
    raise UnsupportedError(f"compression {codec!r} is not one of none, zlib, lzo, snappy, zstd")


def _zlib_page(level: int) -> Callable[[memoryview], bytes]:
    """ISA-L at its level 1 for level 1 (2.9 x zlib's speed, 2 % larger), zlib above."""
    if level <= 1:
        try:
            from isal import isal_zlib
        except ImportError:  # no wheel for this machine: same format, slower
            pass
        else:
            return lambda page: isal_zlib.compress(page, 1)
    import zlib

    return lambda page: zlib.compress(page, level)
