"""Digests: the same whatever the order of arrival, and what a stranger computes from the file."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import anyio
import pytest

from pipeline.errors import SinkError
from pipeline.flow.channel import Channel
from pipeline.flow.items import Chunk, ChunkKind, EndOfDump, Outline
from stages.sink.digest import Piece, PieceDigests, crc32c, piece_bytes_for, whole_digest
from tests.support.chunk_stream import ChunkStream


async def digests_of(stream: ChunkStream, piece_bytes: int) -> list[Piece]:
    channel: Channel[Outline | Chunk | EndOfDump] = Channel("chunks", 1 << 30)
    await stream.run(channel)
    digests = PieceDigests(stream.data_start, piece_bytes)
    while not isinstance(item := await channel.receive(), EndOfDump):
        if isinstance(item, Chunk):
            digests.add(item)
    return digests.finish()


@pytest.mark.parametrize("data_bytes", [0, 1, 99_999, 300_000])
@pytest.mark.parametrize("piece_bytes", [1000, 65_536, 1 << 20])
async def test_pieces_are_those_of_the_file(data_bytes: int, piece_bytes: int) -> None:
    """Every piece has the SHA-256 of its bytes of the finished file, and they cover all of it."""
    stream = ChunkStream(data_bytes, chunk_bytes=50_000, n_slots=100)

    pieces = await digests_of(stream, piece_bytes)

    file = stream.expected()
    assert [piece.sha256 for piece in pieces] == [
        hashlib.sha256(file[piece.offset : piece.end]).digest() for piece in pieces
    ]
    assert pieces[-1].end == len(file)
    assert whole_digest(pieces)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not installed")
async def test_a_shell_computes_the_same(tmp_path: Path) -> None:
    """The recipe in the module's documentation gives the whole digest, without any of our code."""
    stream = ChunkStream(200_000, chunk_bytes=50_000, n_slots=100)
    pieces = await digests_of(stream, 65_536)
    (tmp_path / "DUMP").write_bytes(stream.expected())
    (tmp_path / "pieces").write_text("".join(f"{one.offset} {one.length}\n" for one in pieces))
    recipe = """
    while read -r at n; do
        echo $at $n $(tail -c +$((at + 1)) DUMP | head -c $n | sha256sum | cut -c -64)
    done < pieces | sha256sum
    """

    said = await anyio.run_process(["sh", "-c", recipe], cwd=tmp_path)

    assert said.stdout.decode().split()[0] == whole_digest(pieces)


@pytest.mark.parametrize("offsets", [[(0, 5), (6, 5)], [(0, 5), (4, 5)], [(1, 5)], [(0, 0)]])
def test_pieces_with_gaps_have_no_whole(offsets: list[tuple[int, int]]) -> None:
    """A whole digest over pieces that are no partition would say nothing."""
    with pytest.raises(ValueError, match="wanted one at"):
        whole_digest([Piece(at, size, b"x" * 32) for at, size in offsets])


def test_data_out_of_order_is_refused() -> None:
    """The two cursors are append-only; anything else is a defect of the writer."""
    digests = PieceDigests(100, 10)

    with pytest.raises(SinkError, match="100 was due"):
        digests.add(Chunk(ChunkKind.DATA, 101, b"x"))


def test_manifest_stays_small_for_large_dumps() -> None:
    """Pieces grow with the dump: 10,000 of them at most."""
    assert piece_bytes_for(1) == 8 << 20
    assert -(-(12 << 40) // piece_bytes_for(12 << 40)) <= 9_996


def test_crc32c_is_the_castagnoli_one() -> None:
    """The check value of RFC 3720's CRC, in one go and continued over a step's border."""
    assert crc32c(b"123456789") == 0xE3069283
    data = bytes(range(256)) * 3000
    assert crc32c(memoryview(bytearray(data))) == crc32c(data[300_000:], crc32c(data[:300_000]))
