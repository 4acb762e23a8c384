"""Batch kernels: many pages in, their encodings packed one after another out.

Each codec answers `encode(pages, rows, out)`: the pages of uint8[n_pages, page_size] that `rows`
names are encoded in that order into `out`, without gaps; a page that would not become strictly
smaller is stored raw, as makedumpfile does. The loop over pages runs in C (`map` over a ctypes
function, or the library's own batch call).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
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


def _address(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)


def pack_rows(pages: ByteArray, rows: NDArray[np.intp], out: ByteArray) -> None:
    """Copy `pages[rows]` to the start of `out`, which may be the memory of `pages` itself."""
    page_size = pages.shape[1]
    target = out[: len(rows) * page_size].reshape(len(rows), page_size)
    if _address(out) == _address(pages):
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


class RawEncoder:
    """No compression; pages that are read to where they are to be are not copied at all."""

    name = "none"
    in_place = True

    def encode(
        self, pages: ByteArray, rows: NDArray[np.intp], out: ByteArray
    ) -> tuple[Lengths, NDArray[np.bool_]]:
        pack_rows(pages, rows, out)
        return np.full(len(rows), pages.shape[1], dtype=np.int64), np.zeros(len(rows), np.bool_)


class LzoEncoder:
    """LZO1X-1(12) from the system's liblzo2: one C call a page, results packed afterwards.

    Arguments are converted once for each place of the buffers, not for each call: 0.13 us a call
    instead of 0.33, where LZO itself takes 2 to 5.
    """

    name = "lzo"
    in_place = False
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
        self._page_size = page_size
        # Worst case of LZO1X-1: in + in / 16 + 64 + 3.
        self._stride = page_size + page_size // 16 + 64 + 16
        self._scratch = np.empty(0, dtype=np.uint8)
        self._lengths = np.empty(0, dtype=np.uint64)
        self._work = np.zeros(self._WORK_BYTES, dtype=np.uint8)
        self._work_arg, self._size_arg = _pointer(_address(self._work)), _pointer(page_size)
        self._out_args: list[object] = []
        self._length_args: list[object] = []
        self._page_args: dict[int, list[object]] = {}

    def _grow(self, n_rows: int) -> None:
        if len(self._lengths) < n_rows:
            self._scratch = np.empty(n_rows * self._stride, dtype=np.uint8)
            self._lengths = np.empty(n_rows, dtype=np.uint64)
            self._out_args = _pointers(self._scratch, n_rows, self._stride)
            self._length_args = _pointers(self._lengths, n_rows, self._lengths.itemsize)

    def _pages_at(self, pages: ByteArray) -> list[object]:
        """A pointer for each row; batches come in few buffers, again and again."""
        first = _address(pages)
        known = self._page_args.get(first, [])
        if len(known) < len(pages):
            if len(self._page_args) >= _MOST_BUFFERS:
                self._page_args.clear()
            known = self._page_args[first] = _pointers(pages, len(pages), self._page_size)
        return known

    def encode(
        self, pages: ByteArray, rows: NDArray[np.intp], out: ByteArray
    ) -> tuple[Lengths, NDArray[np.bool_]]:
        n_rows = len(rows)
        self._grow(n_rows)
        codes = map(
            self._compress,
            map(self._pages_at(pages).__getitem__, rows.tolist()),
            repeat(self._size_arg),
            self._out_args,
            self._length_args,
            repeat(self._work_arg),
        )
        failed = np.fromiter(codes, dtype=np.int32, count=n_rows) != 0
        lengths = np.where(failed, self._page_size, self._lengths[:n_rows].astype(np.int64))
        scratch = self._scratch.data
        starts = range(0, n_rows * self._stride, self._stride)
        stops = np.minimum(lengths, self._page_size) + np.arange(n_rows) * self._stride
        pieces = [scratch[at:end] for at, end in zip(starts, stops.tolist(), strict=True)]
        return _join(pieces, lengths, _RowViews(pages, rows), out)


_MOST_BUFFERS: Final = 64
_pointer: Final = ctypes.c_void_p.from_param


def _pointers(array: NDArray[Any], n_items: int, stride: int) -> list[object]:
    first = _address(array)
    return list(map(_pointer, range(first, first + n_items * stride, stride)))


def load_lzo2(loader: Callable[[str], Any]) -> Any | None:
    """The system's LZO library, or None; it is GPL, so it is used where it is, never shipped."""
    try:
        return loader("liblzo2.so.2")
    except OSError:
        return None


class PieceEncoder:
    """Any codec that offers one call a page returning bytes (snappy, zlib, LZO's fallback)."""

    in_place = False

    def __init__(self, name: str, compress: Callable[[memoryview], Any]) -> None:
        self.name = name
        self._compress = compress

    def encode(
        self, pages: ByteArray, rows: NDArray[np.intp], out: ByteArray
    ) -> tuple[Lengths, NDArray[np.bool_]]:
        views = _RowViews(pages, rows)
        pieces = list(map(self._compress, views))
        return join_pieces(pieces, views, out)


class _RowViews:
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
    pieces: list[Any], views: _RowViews, out: ByteArray
) -> tuple[Lengths, NDArray[np.bool_]]:
    """Pack encoded `pieces` into `out`, the raw page where one is not strictly smaller."""
    lengths = np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces))
    return _join(pieces, lengths, views, out)


def _join(
    pieces: list[Any], lengths: Lengths, views: _RowViews, out: ByteArray
) -> tuple[Lengths, NDArray[np.bool_]]:
    coded = lengths < views.page_size
    for at in np.flatnonzero(~coded).tolist():
        pieces[at] = views[at]
    sizes = np.where(coded, lengths, views.page_size)
    joined = b"".join(pieces)
    out[: len(joined)] = np.frombuffer(joined, dtype=np.uint8)
    return sizes, coded


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
        return join_pieces(list(coded), _RowViews(pages, rows), out)


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
