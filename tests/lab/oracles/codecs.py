"""Decoders for the pages of a kdump-compressed file, chosen by the flags of a page descriptor."""

from __future__ import annotations

import ctypes
import threading
import zlib
from enum import IntFlag
from functools import cache
from typing import TYPE_CHECKING, cast

import cramjam
import zstandard

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE_SIZE = 4096


class PageFlags(IntFlag):
    """DUMP_DH_COMPRESSED_* of diskdump_mod.h: how a page is stored; none of them: as it is."""

    ZLIB = 0x1
    LZO = 0x2
    SNAPPY = 0x4
    INCOMPLETE = 0x8
    ZSTD = 0x20


CODEC_FLAGS = PageFlags.ZLIB | PageFlags.LZO | PageFlags.SNAPPY | PageFlags.ZSTD
_local = threading.local()  # a zstd decompressor serves one thread


@cache
def _lzo() -> ctypes.CDLL:
    return ctypes.CDLL("liblzo2.so.2")


def _decode_lzo(data: bytes, page_size: int) -> bytes:
    page = ctypes.create_string_buffer(page_size)
    length = ctypes.c_size_t(page_size)
    status = _lzo().lzo1x_decompress_safe(
        data, ctypes.c_size_t(len(data)), page, ctypes.byref(length), None
    )
    if status != 0:
        raise ValueError(f"liblzo2 says {status}")
    return page.raw[: length.value]


def _decode_snappy(data: bytes, page_size: int) -> bytes:
    del page_size  # it is in the data
    return bytes(cramjam.snappy.decompress_raw(data))


def _decode_zstd(data: bytes, page_size: int) -> bytes:
    if not hasattr(_local, "zstd"):
        _local.zstd = zstandard.ZstdDecompressor()
    return cast("bytes", _local.zstd.decompress(data, max_output_size=page_size))


_DECODERS: dict[int, Callable[[bytes, int], bytes]] = {
    0: lambda data, _: data,
    PageFlags.ZLIB: lambda data, _: zlib.decompress(data),
    PageFlags.LZO: _decode_lzo,
    PageFlags.SNAPPY: _decode_snappy,
    PageFlags.ZSTD: _decode_zstd,
}


def decode(flags: int, data: bytes, page_size: int = PAGE_SIZE) -> bytes:
    """A page's contents.

    Raises:
        ValueError: the flags name no codec or several, or the data is no whole page.
    """
    decoder = _DECODERS.get(flags & CODEC_FLAGS)
    if decoder is None:
        raise ValueError(f"page flags {flags:#x} name no codec")
    page = decoder(data, page_size)
    if len(page) != page_size:
        raise ValueError(f"{len(data)} bytes with flags {flags:#x} are {len(page)} bytes of page")
    return page
