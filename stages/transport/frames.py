"""Frames of the dump protocol: bytes to frames and back, without I/O.

docs/protocol.md has the whole story. All words are big-endian; a frame is::

    0    magic        2   b"DS"
    2    type         1   FrameType
    3    zero         1
    4    fields_len   4   bytes of fields
    8    data_len     4   bytes of data
    12   data_crc     4   CRC-32 of the data
    16   head_crc     4   CRC-32 of bytes 0 to 15 and of the fields
    20   fields           a packed struct, or JSON
         data             of CHUNK and TRAILER only

Nothing is allocated or believed before its length is checked against what its type may have, and no
field before its checksum.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, NamedTuple
from zlib import crc32

import msgspec
from msgspec import Struct

from pipeline.flow.items import ChunkKind
from stages.transport.errors import ProtocolError
from stages.transport.messages import (
    MAX_CHUNK,
    MAX_SIZE,
    Ack,
    ChunkFrame,
    Discard,
    Done,
    Frame,
    Hello,
    Ping,
    Problem,
    Same,
    Sync,
    Trailer,
    TrailerFrame,
    Welcome,
)

MAGIC: Final = b"DS"
MAX_MANIFEST: Final = 4 << 20

_PREFIX: Final = struct.Struct(">2sBBIIII")
PREFIX_SIZE: Final = _PREFIX.size
_CHUNK: Final = struct.Struct(">QQB7x")
_SAME: Final = struct.Struct(">QQB3xII4x")
_ACK: Final = struct.Struct(">QQB7x")


class FrameType(IntEnum):
    """Who may send which is in `TO_RECEIVER` and `TO_SENDER`."""

    HELLO = 1
    WELCOME = 2
    CHUNK = 3
    SAME = 4
    ACK = 5
    PING = 6
    SYNC = 7
    TRAILER = 8
    DONE = 9
    ERROR = 10
    DISCARD = 11


class _Bound(NamedTuple):
    """Largest lengths that a frame of one type may have."""

    fields: int
    data: int = 0


_BOUNDS: Final = {
    FrameType.HELLO: _Bound(4096),
    FrameType.WELCOME: _Bound(4096),
    FrameType.CHUNK: _Bound(_CHUNK.size, MAX_CHUNK),
    FrameType.SAME: _Bound(_SAME.size),
    FrameType.ACK: _Bound(_ACK.size),
    FrameType.PING: _Bound(0),
    FrameType.SYNC: _Bound(0),
    FrameType.TRAILER: _Bound(1024, MAX_MANIFEST),
    FrameType.DONE: _Bound(1024),
    FrameType.ERROR: _Bound(4096),
    FrameType.DISCARD: _Bound(0),
}
TO_RECEIVER: Final = frozenset(
    {
        FrameType.HELLO,
        FrameType.CHUNK,
        FrameType.SAME,
        FrameType.PING,
        FrameType.SYNC,
        FrameType.TRAILER,
        FrameType.DISCARD,
    }
)
TO_SENDER: Final = frozenset({FrameType.WELCOME, FrameType.ACK, FrameType.DONE, FrameType.ERROR})

_JSON: Final[dict[FrameType, type[Struct]]] = {
    FrameType.HELLO: Hello,
    FrameType.WELCOME: Welcome,
    FrameType.TRAILER: Trailer,
    FrameType.DONE: Done,
    FrameType.ERROR: Problem,
}
_EMPTY: Final[dict[FrameType, Ping | Sync | Discard]] = {
    FrameType.PING: Ping(),
    FrameType.SYNC: Sync(),
    FrameType.DISCARD: Discard(),
}


def checksum(data: bytes | memoryview) -> int:
    """CRC-32 of `data`; 27 GB/s, where zlib's takes 5."""
    from isal import isal_zlib

    return int(isal_zlib.crc32(data))


def pack(frame: Frame) -> bytes:
    """A frame as bytes, but for a chunk's data: that follows as it is, uncopied."""
    match frame:
        case ChunkFrame(seq, kind, offset, data, crc):
            fields = _CHUNK.pack(seq, offset, kind)
            return _head(FrameType.CHUNK, fields, len(data), crc)
        case Same(seq, kind, offset, length, crc):
            return _head(FrameType.SAME, _SAME.pack(seq, offset, kind, length, crc))
        case Ack(written, durable, busy):
            return _head(FrameType.ACK, _ACK.pack(written, durable, busy))
        case TrailerFrame(trailer, manifest):
            fields = msgspec.json.encode(trailer)
            head = _head(FrameType.TRAILER, fields, len(manifest), checksum(manifest))
            return head + manifest
        case Ping() | Sync() | Discard():
            kind_of = next(kind for kind, empty in _EMPTY.items() if empty == frame)
            return _head(kind_of, b"")
        case _:
            kind_of = next(kind for kind, form in _JSON.items() if isinstance(frame, form))
            return _head(kind_of, msgspec.json.encode(frame))


def _head(kind: FrameType, fields: bytes, data_len: int = 0, data_crc: int = 0) -> bytes:
    start = _PREFIX.pack(MAGIC, kind, 0, len(fields), data_len, data_crc, 0)[:16]
    return start + crc32(fields, crc32(start)).to_bytes(4, "big") + fields


class FrameParser:
    """Cuts what comes in from the other end into frames.

    Holds one frame at most: its buffer is as long as the frame says, after that was found to be
    within its type's bounds.
    """

    def __init__(self, accepts: frozenset[FrameType]) -> None:
        self._accepts = accepts
        self._buffer = bytearray(PREFIX_SIZE)
        self._filled = 0
        self._prefix: tuple[FrameType, int, int, int, bytes] | None = None

    @property
    def between_frames(self) -> bool:
        """True when the other end may close without cutting a frame."""
        return self._prefix is None and self._filled == 0

    def feed(self, data: bytes | memoryview) -> Iterator[Frame]:
        """The frames that `data` completes, parsed as they are asked for.

        The iterator must be exhausted before the next call.

        Raises:
            ProtocolError: while iterating: what came is no frame, or one that this end does not
                take.
        """
        rest = memoryview(data)
        while rest:
            taken = rest[: len(self._buffer) - self._filled]
            self._buffer[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            rest = rest[len(taken) :]
            while self._filled == len(self._buffer):
                frame = self._advance()
                if frame is not None:
                    yield frame
                    break

    def _advance(self) -> Frame | None:
        """The buffer is full: a prefix calls for the rest, a rest makes a frame."""
        buffer, self._filled = self._buffer, 0
        if self._prefix is None:
            self._prefix = _check_prefix(bytes(buffer), self._accepts)
            self._buffer = bytearray(self._prefix[1] + self._prefix[2])
            return None
        prefix, self._prefix = self._prefix, None
        self._buffer = bytearray(PREFIX_SIZE)
        return _parse_body(*prefix, buffer)


def _check_prefix(
    raw: bytes, accepts: frozenset[FrameType]
) -> tuple[FrameType, int, int, int, bytes]:
    magic, number, zero, fields_len, data_len, data_crc, _ = _PREFIX.unpack(raw)
    if magic != MAGIC:
        raise ProtocolError(f"not a dump protocol frame: magic is {magic!r}, wanted {MAGIC!r}")
    if number not in accepts or zero:
        raise ProtocolError(f"frame type {number} with {zero} is not for this end")
    kind = FrameType(number)
    most = _BOUNDS[kind]
    if fields_len > most.fields or data_len > most.data:
        raise ProtocolError(
            f"{kind.name} of {fields_len} and {data_len} bytes, wanted at most "
            f"{most.fields} and {most.data}"
        )
    return kind, fields_len, data_len, data_crc, raw


def _parse_body(
    kind: FrameType, fields_len: int, data_len: int, data_crc: int, raw: bytes, body: bytearray
) -> Frame:
    view = memoryview(body)
    fields, data = view[:fields_len], view[fields_len:]
    if crc32(fields, crc32(raw[:16])) != int.from_bytes(raw[16:], "big"):
        raise ProtocolError(f"{kind.name}: head checksum is wrong", corrupt=True)
    if checksum(data) != data_crc:
        raise ProtocolError(f"{kind.name}: checksum of {data_len} bytes is wrong", corrupt=True)
    if kind in _JSON:
        return _parse_json(kind, fields, data)
    if fields_len != _BOUNDS[kind].fields:
        raise ProtocolError(f"{kind.name} has {fields_len} bytes of fields")
    if kind in _EMPTY:
        return _EMPTY[kind]
    return _parse_packed(kind, fields, data, data_crc)


def _parse_json(kind: FrameType, fields: memoryview, data: memoryview) -> Frame:
    try:
        parsed = msgspec.json.decode(fields, type=_JSON[kind])
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as error:
        raise ProtocolError(f"{kind.name}: {error}") from error
    if isinstance(parsed, Trailer):
        return TrailerFrame(parsed, bytes(data))
    assert isinstance(parsed, (Hello, Welcome, Done, Problem))
    return parsed


def _parse_packed(kind: FrameType, fields: memoryview, data: memoryview, data_crc: int) -> Frame:
    if kind is FrameType.ACK:
        written, durable, busy = _ACK.unpack(fields)
        if durable > written:
            raise ProtocolError(f"ACK: {durable} chunks durable of {written} written")
        return Ack(written, durable, bool(busy))
    if kind is FrameType.CHUNK:
        seq, offset, number = _CHUNK.unpack(fields)
        length, crc = len(data), data_crc
    else:
        seq, offset, number, length, crc = _SAME.unpack(fields)
    if number > max(ChunkKind) or not 1 <= length <= MAX_CHUNK or offset + length > MAX_SIZE:
        raise ProtocolError(
            f"{kind.name} {seq}: kind {number}, {length} bytes at {offset} is out of bounds"
        )
    if kind is FrameType.CHUNK:
        return ChunkFrame(seq, ChunkKind(number), offset, data, crc)
    return Same(seq, ChunkKind(number), offset, length, crc)
