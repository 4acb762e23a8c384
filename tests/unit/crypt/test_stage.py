"""The encrypting stage: what leaves is a file that age opens, in the form that every sink takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyrage
import pytest

from pipeline.errors import SinkError, StageError
from pipeline.flow.items import Chunk, ChunkKind
from stages.crypt.blocks import BlockAssembler
from stages.crypt.keys import Identity, new_identity
from stages.crypt.payload import BLOCK, DumpKey
from tests.support.chunk_stream import ChunkStream
from tests.unit.crypt.collect import encrypted

SEED = bytes(range(32))


def opened(sealed: bytes, identity: Identity) -> bytes:
    """What age's own implementation says is in `sealed`."""
    oracle = pyrage.x25519.Identity.from_str(identity.spelt())
    return bytes(pyrage.decrypt(sealed, [oracle]))


SHAPES = {
    "several blocks of everything": {"data_bytes": 900_000, "low_bytes": 300_000},
    "all in one block": {"data_bytes": 3_000, "low_bytes": 5_000, "head_bytes": 4_096},
    "no data": {"data_bytes": 0, "low_bytes": 100_000},
    "no data, low ends at a block": {
        "data_bytes": 0,
        "low_bytes": 2 * BLOCK - 8192,
        "head_bytes": 8192,
    },
    "data starts at a block": {
        "data_bytes": 200_000,
        "low_bytes": 2 * BLOCK - 8192,
        "head_bytes": 8192,
    },
    "low starts at a block": {"data_bytes": 10, "low_bytes": 10, "head_bytes": BLOCK},
    "ends at a block": {"data_bytes": 3 * BLOCK, "low_bytes": BLOCK - 4096, "head_bytes": 4096},
    "large head": {"data_bytes": 100_000, "low_bytes": 1, "head_bytes": 5 * BLOCK + 1},
    "small chunks": {"data_bytes": 150_000, "low_bytes": 70_000, "chunk_bytes": 777},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
async def test_age_opens_what_leaves(shape: dict[str, Any]) -> None:
    """However head, bitmaps and data lie on the blocks, the file is age's, and holds the dump."""
    identity = new_identity()
    stream = ChunkStream(**shape)

    sink = await encrypted(stream, DumpKey([identity.recipient], SEED))

    assert opened(sink.file(), identity) == stream.expected()


async def test_every_recipient_opens_it() -> None:
    """Two recipients, and either key alone is enough."""
    identities = [new_identity(), new_identity()]
    stream = ChunkStream(100_000)

    sink = await encrypted(stream, DumpKey([one.recipient for one in identities], SEED))

    for identity in identities:
        assert opened(sink.file(), identity) == stream.expected()


async def test_stranger_cannot_open_it() -> None:
    """Another key is refused by age itself."""
    sink = await encrypted(ChunkStream(10_000), DumpKey([new_identity().recipient], SEED))

    with pytest.raises(pyrage.DecryptError):
        opened(sink.file(), new_identity())


async def test_same_key_gives_the_same_bytes() -> None:
    """A second run with the seed of the first sends the same chunks: an upload can be resumed."""
    key = DumpKey([new_identity().recipient], SEED, b"image 1")

    first = await encrypted(ChunkStream(500_000), key)
    second = await encrypted(ChunkStream(500_000), key)

    assert first.chunks == second.chunks


@pytest.mark.parametrize(
    "other",
    [
        lambda key: DumpKey(key.recipients, bytes(32), key.context),
        lambda key: DumpKey(key.recipients, key.seed, b"image 2"),
    ],
    ids=["seed", "context"],
)
async def test_other_seed_or_context_gives_other_bytes(
    other: Callable[[DumpKey], DumpKey],
) -> None:
    """No key stream is ever used for two dumps."""
    key = DumpKey([new_identity().recipient], SEED, b"image 1")

    first = (await encrypted(ChunkStream(100_000), key)).file()
    second = (await encrypted(ChunkStream(100_000), other(key))).file()

    start = len(key.prefix())
    same = sum(a == b for a, b in zip(first[start:], second[start:], strict=True))
    assert same < len(first) / 64  # one in 256 by chance


async def test_failing_source_sends_no_end() -> None:
    """A torn stream stays torn: no last block is sealed."""
    with pytest.raises(StageError, match="Input/output error"):
        await encrypted(
            ChunkStream(500_000, fail_at=300_000), DumpKey([new_identity().recipient], SEED)
        )


class TestBlockAssembler:
    def test_second_head_is_refused(self) -> None:
        """Two heads would be sealed with one nonce."""
        blocks = BlockAssembler(10_000)
        blocks.add(Chunk(ChunkKind.HEAD, 0, b"first"))
        with pytest.raises(SinkError, match="once"):
            blocks.add(Chunk(ChunkKind.HEAD, 0, b"second"))

    @pytest.mark.parametrize("kind", [ChunkKind.BITMAP, ChunkKind.DATA])
    def test_bytes_are_never_sealed_twice(self, kind: ChunkKind) -> None:
        """A chunk behind its cursor is refused, whatever it holds."""
        blocks = BlockAssembler(100_000)
        offset = 100_000 if kind is ChunkKind.DATA else 5_000
        blocks.add(Chunk(kind, offset, bytes(1000)))
        with pytest.raises(SinkError, match="was due"):
            blocks.add(Chunk(kind, offset + 500, bytes(1000)))

    def test_head_must_fit_below_the_bitmaps(self) -> None:
        """A head that would overwrite the bitmaps is a defect of the writer."""
        blocks = BlockAssembler(10_000)
        blocks.add(Chunk(ChunkKind.BITMAP, 4_096, bytes(100)))
        blocks.add(Chunk(ChunkKind.HEAD, 0, bytes(5_000)))
        with pytest.raises(SinkError, match="fits below 4096"):
            blocks.finish()

    def test_memory_is_a_few_blocks(self) -> None:
        """While 64 MiB of data pass, at most the boundary blocks are held."""
        blocks = BlockAssembler(10 * BLOCK + 5)
        blocks.add(Chunk(ChunkKind.BITMAP, 4_096, bytes(100_000)))
        at = 10 * BLOCK + 5
        for _ in range(64):
            blocks.add(Chunk(ChunkKind.DATA, at, bytes(1 << 20)))
            at += 1 << 20
            assert len(blocks._open) <= 5
