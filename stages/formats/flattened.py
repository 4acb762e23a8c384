"""The flattened stream: a dump written as (offset, size, data) records, for targets without seek.

References:
    makedumpfile's IMPLEMENTATION, "The flattened format"

All words are big-endian and signed, 8 bytes each::

    0      signature, type 1, version 1, zeros up to 4096
    4096   offset | size | data        a record; in any order, later ones win where they overlap
    ...    -1 | -1                     the end; a stream without it was cut

The dump is as long as its last byte written, and what no record covers reads as zero.
"""

from __future__ import annotations

import struct
from typing import Final

from pipeline.errors import FormatError, TruncatedError
from stages.formats.elf import Buffer

SIGNATURE: Final = b"makedumpfile\0\0\0\0"
HEADER_SIZE: Final = 4096
TYPE_FLAT_HEADER: Final = 1
VERSION_FLAT_HEADER: Final = 1
_HEADER: Final = struct.Struct(">16sqq")
RECORD: Final = struct.Struct(">qq")
"""offset in the dump, size in bytes."""
HEADER: Final = _HEADER.pack(SIGNATURE, TYPE_FLAT_HEADER, VERSION_FLAT_HEADER).ljust(
    HEADER_SIZE, b"\0"
)
END_RECORD: Final = RECORD.pack(-1, -1)


def record_header(offset: int, size: int) -> bytes:
    """What stands before `size` bytes that belong at `offset` of the dump."""
    return RECORD.pack(offset, size)


def check_header(head: Buffer, file_size: int) -> None:
    """Refuse a stream of another type or version.

    Raises:
        TruncatedError: shorter than the 4096 bytes of the header.
        FormatError: type or version is not 1.
    """
    if file_size < HEADER_SIZE:
        raise TruncatedError("flattened", 0, "header", HEADER_SIZE, file_size)
    _, stream_type, version = _HEADER.unpack_from(head)
    if stream_type != TYPE_FLAT_HEADER:
        raise FormatError("flattened", 16, "type", stream_type, str(TYPE_FLAT_HEADER))
    if version != VERSION_FLAT_HEADER:
        raise FormatError("flattened", 24, "version", version, str(VERSION_FLAT_HEADER))
