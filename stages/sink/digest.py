"""Digests of a dump that arrives in any order, which a stranger can recompute from the file.

The file is cut into pieces; each piece has its SHA-256. The digest of the whole is the SHA-256 of
a text with one line a piece, ascending offsets, no gaps, from 0 to the file's size: offset and
length in decimal and the piece's 64 hexadecimal digits, parted by a space, ended by a line feed.
So a shell can recompute it from the dump and the pieces (offset, length) that the manifest lists::

    while read -r at n; do
        echo $at $n $(tail -c +$((at + 1)) DUMP | head -c $n | sha256sum | cut -c -64)
    done < pieces | sha256sum

Pieces need not be equal: what makes them is how the sender sent (parts of an upload, or the
cursors of `PieceDigests`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

from pipeline.errors import SinkError, UnsupportedError
from pipeline.flow.items import Chunk, ChunkKind

if TYPE_CHECKING:
    from hashlib import _Hash

SCHEME: Final = "sha256-list-v1"
DEFAULT_PIECE_BYTES: Final = 8 << 20
MAX_PIECES: Final = 10_000
_STEP: Final = 256 << 10
"""Bytes copied at a time for a CRC; stays in a core's cache."""


class Piece(NamedTuple):
    """A half-open run of the file's bytes and the SHA-256 over them."""

    offset: int
    length: int
    sha256: bytes

    @property
    def end(self) -> int:
        return self.offset + self.length

    def line(self) -> str:
        return f"{self.offset} {self.length} {self.sha256.hex()}\n"


def whole_digest(pieces: Iterable[Piece]) -> str:
    """Hexadecimal digest of the file that `pieces` make up; they must be ascending.

    Raises:
        ValueError: the pieces overlap or leave a gap.
    """
    digest = hashlib.sha256()
    at = 0
    for piece in pieces:
        if piece.offset != at or piece.length < 1:
            raise ValueError(f"piece at {piece.offset} of {piece.length} bytes, wanted one at {at}")
        digest.update(piece.line().encode())
        at = piece.end
    return digest.hexdigest()


def piece_bytes_for(most_bytes: int) -> int:
    """Piece size that keeps a manifest under `MAX_PIECES`: the default, or whole MiB above it."""
    least = -(-most_bytes // (MAX_PIECES - 4))
    return max(DEFAULT_PIECE_BYTES, -(-least // (1 << 20)) << 20)


class PieceDigests:
    """Hashes chunks as they pass, for senders that do not buffer; holds no data.

    Each append-only cursor (head, bitmaps with descriptors, data) has a hash in progress, and its
    pieces start where the cursor starts. A head that comes twice counts as it came last. Gaps
    below the data (alignment) are zeros, as they are in the file.
    """

    def __init__(self, data_start: int, piece_bytes: int) -> None:
        self._data_start = data_start
        self._low = _Cursor(piece_bytes, None)
        self._data = _Cursor(piece_bytes, data_start)
        self._head = b""

    def add(self, chunk: Chunk) -> None:
        """Hash one chunk; takes 1 ms a MiB, so a thread is the place.

        Raises:
            SinkError: the chunk is not where its cursor stands.
        """
        if chunk.kind is ChunkKind.HEAD:
            self._head = bytes(chunk.data)
        else:
            is_data = chunk.kind is ChunkKind.DATA
            cursor = self._data if is_data else self._low
            if is_data and chunk.offset != cursor.end:
                raise SinkError(f"data at {chunk.offset} where {cursor.end} was due")
            cursor.add(chunk.offset, memoryview(chunk.data))

    def finish(self) -> list[Piece]:
        """All pieces in ascending order.

        Raises:
            SinkError: the cursors overlap.
        """
        low_start = self._data_start if self._low.start is None else self._low.start
        if len(self._head) > low_start or self._low.end > self._data_start:
            raise SinkError(
                f"head of {len(self._head)} bytes and bitmaps from {low_start} to {self._low.end} "
                f"do not fit below the data at {self._data_start}"
            )
        head = _Cursor(DEFAULT_PIECE_BYTES, 0)
        head.add(0, memoryview(self._head))
        head.pad_to(low_start)
        if self._low.start is not None:
            self._low.pad_to(self._data_start)
        return [*head.finish(), *self._low.finish(), *self._data.finish()]


class _Cursor:
    """One run of bytes that only grows, cut into pieces."""

    def __init__(self, piece_bytes: int, start: int | None) -> None:
        self.start = start
        self.end = start or 0
        self._piece_bytes = piece_bytes
        self._pieces: list[Piece] = []
        self._hash: _Hash = hashlib.sha256()
        self._n_hashed = 0

    def add(self, offset: int, data: memoryview) -> None:
        if self.start is None:
            self.start = self.end = offset
        if offset < self.end:
            raise SinkError(f"chunk at {offset} where the output had reached {self.end}")
        self.pad_to(offset)
        self._take(data)

    def pad_to(self, offset: int) -> None:
        while self.end < offset:
            self._take(memoryview(bytes(min(offset - self.end, _STEP))))

    def _take(self, data: memoryview) -> None:
        while data:
            part = data[: self._piece_bytes - self._n_hashed]
            self._hash.update(part)
            self._n_hashed += len(part)
            self.end += len(part)
            data = data[len(part) :]
            if self._n_hashed == self._piece_bytes:
                self._close()

    def _close(self) -> None:
        start = self.end - self._n_hashed
        self._pieces.append(Piece(start, self._n_hashed, self._hash.digest()))
        self._hash, self._n_hashed = hashlib.sha256(), 0

    def finish(self) -> list[Piece]:
        if self._n_hashed:
            self._close()
        return self._pieces


def crc32c(data: bytes | memoryview, crc: int = 0) -> int:
    """CRC-32C of `data`, continued from `crc`; 10 GB/s and more.

    Raises:
        UnsupportedError: the package that computes it is not installed.
    """
    try:
        from google_crc32c import extend
    except ImportError as error:
        raise UnsupportedError(
            "CRC32C checksums need the package google-crc32c (dumpstream[s3])"
        ) from error
    view = memoryview(data)
    for at in range(0, len(view), _STEP):
        crc = extend(crc, bytes(view[at : at + _STEP]))  # the package takes bytes only
    return int(crc)
