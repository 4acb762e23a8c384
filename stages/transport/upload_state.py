"""The books of one upload, beside its partial file: what was written where, so that the receiver
can go on after its own restart.

``NAME.partial.state``, words big-endian::

    0      magic, CRC-32 of the JSON, its length     20
    20     JSON: StateHeader, zeros up to 8192
    8192   chunks that are durable, CRC-32 of that   12, zeros up to 8224
    8224   32 bytes for each chunk, number 0 first:
               offset 8 | length 4 | crc 4 | kind 1 | zeros 11 | CRC-32 of the 28 before 4

Records follow their data to the kernel, so they are right after the death of the process. After a
power cut those beyond the durable mark may lie: whoever reopens an upload reads that data again.
"""

from __future__ import annotations

import os
import struct
from typing import Annotated, Final
from zlib import crc32

import msgspec
from msgspec import Meta, Struct

from pipeline.errors import FormatError
from pipeline.flow.items import ChunkKind
from stages.transport.messages import MAX_CHUNK, MAX_SIZE, Same

MAGIC: Final = b"dsUpload"
VERSION: Final = 1
_HEAD: Final = struct.Struct(">8sIII")
_MARK: Final = struct.Struct(">QI")
_RECORD: Final = struct.Struct(">QIIB11xI")
_MARK_AT: Final = 8192
_RECORDS_AT: Final = 8224

_Count = Annotated[int, Meta(ge=0, le=MAX_SIZE)]


class StateHeader(Struct, frozen=True, kw_only=True):
    """Whose upload it is.

    Attributes:
        token_sha256: hexadecimal; the token itself is not kept.
        peer: subject of the certificate that it was begun with, empty without TLS.
        data_start, most_bytes: the outline; both 0 until it is known.
    """

    name: str
    token_sha256: str
    peer: str
    identity: str
    created: str
    data_start: _Count = 0
    most_bytes: _Count = 0


class UploadState:
    """The open state file. All calls block, for as long as a small write takes."""

    def __init__(self, fd: int, header: StateHeader, n_chunks: int, durable: int) -> None:
        self.fd = fd
        self.header = header
        self.n_chunks = n_chunks
        self.durable = durable

    @classmethod
    def create(cls, fd: int, header: StateHeader) -> UploadState:
        """Fill an empty file."""
        state = cls(fd, header, 0, 0)
        state.write_header(header)
        state.mark_durable(0)
        return state

    @classmethod
    def load(cls, fd: int) -> UploadState:
        """Read a file that another process wrote.

        Raises:
            FormatError: it is damaged.
        """
        raw = os.pread(fd, _MARK_AT, 0)
        if len(raw) < _MARK_AT:
            raise FormatError("upload state", 0, "size", len(raw), f"{_RECORDS_AT} bytes or more")
        magic, version, crc, length = _HEAD.unpack_from(raw)
        text = raw[_HEAD.size : _HEAD.size + length]
        if magic != MAGIC or version != VERSION or crc32(text) != crc or len(text) != length:
            raise FormatError("upload state", 0, "head", raw[:20].hex(), "a whole head")
        try:
            header = msgspec.json.decode(text, type=StateHeader)
        except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as error:
            raise FormatError("upload state", 20, "JSON", str(error), "a header") from error
        state = cls(fd, header, 0, 0)
        state.n_chunks = state._count_whole()
        state.durable = min(state._read_mark(), state.n_chunks)
        return state

    def _read_mark(self) -> int:
        raw = os.pread(self.fd, _MARK.size, _MARK_AT)
        if len(raw) < _MARK.size or crc32(raw[:8]) != int.from_bytes(raw[8:], "big"):
            return 0  # torn: believe nothing, read everything again
        return int.from_bytes(raw[:8], "big")

    def _count_whole(self) -> int:
        """Records up to the first that is torn."""
        n_there = max(os.fstat(self.fd).st_size - _RECORDS_AT, 0) // _RECORD.size
        return next((seq for seq in range(n_there) if self._read(seq) is None), n_there)

    def write_header(self, header: StateHeader) -> None:
        text = msgspec.json.encode(header)
        head = _HEAD.pack(MAGIC, VERSION, crc32(text), len(text))
        os.pwrite(self.fd, (head + text).ljust(_MARK_AT, b"\0"), 0)
        self.header = header

    def append(self, chunk: Same) -> None:
        """Enter the chunk whose data was written just now."""
        fields = _RECORD.pack(chunk.offset, chunk.length, chunk.crc, chunk.kind, 0)[:-4]
        record = fields + crc32(fields).to_bytes(4, "big")
        os.pwrite(self.fd, record, _RECORDS_AT + self.n_chunks * _RECORD.size)
        self.n_chunks += 1

    def chunk(self, seq: int) -> Same:
        """Chunk `seq`, which must be below `n_chunks`.

        Raises:
            FormatError: the file was damaged meanwhile.
        """
        found = self._read(seq)
        if found is None:
            at = _RECORDS_AT + seq * _RECORD.size
            raise FormatError("upload state", at, "record", "damaged", "a record with its checksum")
        return found

    def _read(self, seq: int) -> Same | None:
        raw = os.pread(self.fd, _RECORD.size, _RECORDS_AT + seq * _RECORD.size)
        if len(raw) < _RECORD.size or crc32(raw[:-4]) != int.from_bytes(raw[-4:], "big"):
            return None
        offset, length, crc, kind, _ = _RECORD.unpack(raw)
        if kind > max(ChunkKind) or not 1 <= length <= MAX_CHUNK or offset + length > MAX_SIZE:
            return None
        return Same(seq, ChunkKind(kind), offset, length, crc)

    def truncate(self, n_chunks: int) -> None:
        """Forget chunks from number `n_chunks` on."""
        os.ftruncate(self.fd, _RECORDS_AT + n_chunks * _RECORD.size)
        self.n_chunks = n_chunks
        self.durable = min(self.durable, n_chunks)

    def mark_durable(self, n_chunks: int) -> None:
        """The data of chunks below `n_chunks` is on disk; blocks until the books are too."""
        value = n_chunks.to_bytes(8, "big")
        os.pwrite(self.fd, _MARK.pack(n_chunks, crc32(value)).ljust(32, b"\0"), _MARK_AT)
        os.fsync(self.fd)
        self.durable = n_chunks
