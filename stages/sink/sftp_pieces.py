"""Chunks cut into pieces of one write each, in a fixed amount of memory.

A piece is a copy: it lives until the server has answered for it, so that it can be sent again,
while the chunk's own memory goes back to the compressor at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import anyio

from pipeline.flow.items import Chunk, ChunkKind


@dataclass(slots=True, eq=False)
class Piece:
    """Bytes for one place of the file; `n_bytes` of `memory` are in use."""

    memory: memoryview
    offset: int = 0
    n_bytes: int = 0

    @property
    def data(self) -> memoryview:
        return self.memory[: self.n_bytes]

    @property
    def end(self) -> int:
        return self.offset + self.n_bytes


class PiecePool:
    """At most `n_pieces` pieces; memory is taken when one is first needed, and kept."""

    def __init__(self, n_pieces: int, piece_bytes: int) -> None:
        self.n_pieces = n_pieces
        self.piece_bytes = piece_bytes
        self._n_made = 0
        self._free: list[Piece] = []
        self._freed = anyio.Event()

    async def take(self, offset: int) -> Piece:
        """An empty piece that starts at `offset`; waits until one is free."""
        while not self._free and self._n_made == self.n_pieces:
            self._freed = anyio.Event()
            await self._freed.wait()
        if self._free:
            piece = self._free.pop()
        else:
            self._n_made += 1
            piece = Piece(memoryview(bytearray(self.piece_bytes)))
        piece.offset, piece.n_bytes = offset, 0
        return piece

    def give_back(self, piece: Piece) -> None:
        """The server has answered for `piece`."""
        self._free.append(piece)
        self._freed.set()


class Gatherer:
    """Fills pieces from chunks; small chunks that follow each other share one.

    Two pieces can be open at once, one a cursor of the dump.
    """

    def __init__(self, pool: PiecePool, submit: Callable[[Piece], None]) -> None:
        self._pool = pool
        self._submit = submit
        self._open: dict[bool, Piece] = {}

    async def add(self, chunk: Chunk) -> None:
        """Copy `chunk` into pieces; its memory is not looked at after that."""
        is_data = chunk.kind is ChunkKind.DATA
        at, data = chunk.offset, memoryview(chunk.data)
        while data:
            piece = await self._piece(is_data, at)
            n_bytes = min(len(data), self._pool.piece_bytes - piece.n_bytes)
            piece.memory[piece.n_bytes : piece.n_bytes + n_bytes] = data[:n_bytes]
            piece.n_bytes += n_bytes
            at, data = at + n_bytes, data[n_bytes:]
            if piece.n_bytes == self._pool.piece_bytes:
                self._submit(self._open.pop(is_data))

    async def _piece(self, is_data: bool, at: int) -> Piece:
        piece = self._open.get(is_data)
        if piece is not None and piece.end != at:
            self._submit(self._open.pop(is_data))
            piece = None
        if piece is None:
            piece = self._open[is_data] = await self._pool.take(at)
        return piece

    def flush(self) -> None:
        """Submit what is open."""
        for is_data in list(self._open):
            self._submit(self._open.pop(is_data))
