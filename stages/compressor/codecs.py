"""The codecs a page of a dump can be compressed with, in the order their names are listed."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from pipeline.errors import UnsupportedError
from stages.formats.kdump import PageFlag


class Codec(Struct, frozen=True):
    """A codec's name on the command line, and its mark in a dump."""

    name: str
    flag: PageFlag


CODECS: Final = (
    Codec("none", PageFlag.RAW),
    Codec("zlib", PageFlag.ZLIB),
    Codec("lzo", PageFlag.LZO),
    Codec("snappy", PageFlag.SNAPPY),
    Codec("zstd", PageFlag.ZSTD),
)
CODEC_NAMES: Final = tuple(codec.name for codec in CODECS)
_BY_NAME: Final = {codec.name: codec for codec in CODECS}
_BY_FLAG: Final = {int(codec.flag): codec for codec in CODECS}


def codec_named(name: str) -> Codec:
    """The codec called `name`.

    Raises:
        UnsupportedError: there is none.
    """
    codec = _BY_NAME.get(name)
    if codec is None:
        raise UnsupportedError(f"compression {name!r} is not one of {', '.join(CODEC_NAMES)}")
    return codec


def codec_of_flags(flags: int) -> Codec | None:
    """The codec of a page whose descriptor has `flags`; None when they are not exactly one's."""
    return _BY_FLAG.get(flags)
