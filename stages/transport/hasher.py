"""The receiver's own digests of a dump: fed from memory as chunks arrive, and from the file for
what arrived before its last restart.
"""

from __future__ import annotations

from pipeline.errors import SinkError
from pipeline.flow.items import Chunk, ChunkKind
from stages.sink.digest import Piece, PieceDigests, piece_bytes_for
from stages.transport.errors import ProtocolError
from stages.transport.messages import Same


class Hasher:
    """Digests of chunks 0 to `position`; `Cursors` has checked that they are where they may be."""

    def __init__(self, data_start: int, most_bytes: int) -> None:
        self.position = 0
        self._digests = PieceDigests(data_start, piece_bytes_for(most_bytes))
        self._head = bytearray()

    def add(self, chunk: Same, data: bytes | memoryview) -> None:
        """Hash chunk number `position`; takes 1 ms a MiB."""
        if chunk.kind is ChunkKind.HEAD:
            # A large head comes in several chunks, and counts as a whole.
            del self._head[chunk.offset :]
            self._head += data
            data, offset = bytes(self._head), 0
        else:
            offset = chunk.offset
        try:
            self._digests.add(Chunk(chunk.kind, offset, data))
        except SinkError as error:
            raise ProtocolError(str(error)) from error
        self.position += 1

    def finish(self) -> list[Piece]:
        """Pieces in ascending order."""
        try:
            return self._digests.finish()
        except SinkError as error:
            raise ProtocolError(str(error)) from error
