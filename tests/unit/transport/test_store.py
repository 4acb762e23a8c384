"""The files of an upload: what they survive, and what they refuse."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.flow.items import ChunkKind, Totals
from stages.sink.manifest import DumpFacts, build_manifest, read_manifest
from stages.transport.errors import ProtocolError, RefusedError
from stages.transport.frames import checksum
from stages.transport.hasher import Hasher
from stages.transport.limits import Limits
from stages.transport.messages import ChunkFrame, Trailer, TrailerFrame
from stages.transport.store import UploadStore
from stages.transport.upload_state import StateHeader

HEAD, BITMAP, DESCRIPTORS, DATA = ChunkKind
DATA_START, MOST = 3_000, 1_000_000
HEADER = StateHeader(
    name="dump", token_sha256="0" * 64, peer="", identity="", created="2026-01-01T00:00:00+00:00"
)
LIMITS = Limits(max_bytes=MOST)


def chunk(seq: int, kind: ChunkKind, offset: int, data: bytes) -> ChunkFrame:
    return ChunkFrame(seq, kind, offset, data, checksum(data))


CHUNKS = [
    chunk(0, HEAD, 0, b"incomplete" * 100),
    chunk(1, BITMAP, 1_000, b"b" * 1_500),
    chunk(2, DATA, DATA_START, b"d" * 40_000),
    chunk(3, DESCRIPTORS, 2_500, b"p" * 500),
    chunk(4, DATA, DATA_START + 40_000, b"e" * 10_000),
    chunk(5, HEAD, 0, b"completed!" * 100),
]
CONTENT = bytes(CHUNKS[5].data) + b"b" * 1_500 + b"p" * 500 + b"d" * 40_000 + b"e" * 10_000


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def begun(folder: int, n_chunks: int = 0) -> UploadStore:
    """An upload with the first `n_chunks` chunks."""
    store = UploadStore.create(folder, HEADER)
    store.lay_out(DATA_START, MOST, LIMITS)
    for frame in CHUNKS[:n_chunks]:
        store.write(frame)
    return store


def reopened(folder: int) -> UploadStore:
    store = UploadStore.reopen(folder, "dump")
    store.lay_out(DATA_START, MOST, LIMITS)
    return store


def trailer(name: str = "dump", chunks: list[ChunkFrame] = CHUNKS) -> TrailerFrame:
    """What a sender of `chunks` would end with."""
    hasher = Hasher(DATA_START, MOST)
    for frame in chunks:
        hasher.add(frame.same(), frame.data)
    manifest = build_manifest(
        name=name, form="kdump", pieces=hasher.finish(), totals=Totals(), facts=DumpFacts()
    )
    end = Trailer(size=manifest.size, n_chunks=len(chunks), digest=manifest.digest.whole)
    return TrailerFrame(end, manifest.pack())


def test_whole_upload(folder: int, tmp_path: Path) -> None:
    """The dump appears under its name, private, with its manifest and nothing else."""
    store = begun(folder, 6)
    end = trailer()
    store.verify(end)
    assert not (tmp_path / "dump").exists()

    store.commit(end.manifest)

    assert (tmp_path / "dump").read_bytes() == CONTENT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dump", "dump.manifest.json"]
    assert stat.S_IMODE((tmp_path / "dump").stat().st_mode) == 0o600
    assert read_manifest(tmp_path / "dump.manifest.json").size == len(CONTENT)


def test_dump_without_data(folder: int, tmp_path: Path) -> None:
    """The file reaches to where the data would start, as the manifest says, in zeros."""
    chunks = [CHUNKS[0], CHUNKS[1]]
    store = begun(folder, 2)
    end = trailer(chunks=chunks)
    store.verify(end)
    store.commit(end.manifest)

    content = (tmp_path / "dump").read_bytes()
    assert len(content) == DATA_START == end.trailer.size
    assert content[2_500:] == bytes(500)


@pytest.mark.parametrize("n_chunks", range(7))
def test_restart_at_any_chunk(folder: int, tmp_path: Path, n_chunks: int) -> None:
    """A receiver that is killed and started again goes on, and its digests are right."""
    begun(folder, n_chunks).close()

    store = reopened(folder)
    assert store.position == n_chunks
    for frame in CHUNKS[n_chunks:]:
        store.write(frame)
    end = trailer()
    store.verify(end)
    store.commit(end.manifest)

    assert (tmp_path / "dump").read_bytes() == CONTENT


def test_lost_data_is_noticed(folder: int, tmp_path: Path) -> None:
    """After a power cut the books may say more than the disk: the rest is asked for again."""
    begun(folder, 5).close()
    with (tmp_path / "dump.partial").open("r+b") as file:
        file.seek(DATA_START + 100)
        file.write(b"?")

    assert UploadStore.reopen(folder, "dump").position == 2


def test_synced_data_is_not_read_again(folder: int, tmp_path: Path) -> None:
    """Below the durable mark the disk is trusted until the trailer, which then does not match."""
    store = begun(folder, 6)
    assert store.sync() == 6
    store.close()
    with (tmp_path / "dump.partial").open("r+b") as file:
        file.seek(DATA_START + 100)
        file.write(b"?")

    store = reopened(folder)

    assert (store.position, store.durable) == (6, 6)
    with pytest.raises(RefusedError, match="digests differ"):
        store.verify(trailer())


def test_torn_record_is_dropped(folder: int, tmp_path: Path) -> None:
    """A record that was half written ends the books there."""
    begun(folder, 4).close()
    path = tmp_path / "dump.partial.state"
    path.write_bytes(path.read_bytes()[:-5])

    assert UploadStore.reopen(folder, "dump").position == 3


def test_second_receiver_is_kept_out(folder: int) -> None:
    """Two processes never write one upload."""
    store = begun(folder)
    with pytest.raises(BlockingIOError):
        UploadStore.reopen(folder, "dump")
    store.close()


def test_comparison(folder: int) -> None:
    """A chunk that is what it was passes; other bytes, another place or another kind do not."""
    store = begun(folder, 3)
    store.compare(CHUNKS[2].same())
    others = [
        chunk(2, DATA, DATA_START, b"x" * 40_000),
        chunk(2, DATA, DATA_START + 1, b"d" * 40_000),
        chunk(2, BITMAP, DATA_START, b"d" * 40_000),
        chunk(2, DATA, DATA_START, b"d" * 39_999),
    ]
    for other in others:
        with pytest.raises(RefusedError, match="source or the settings changed"):
            store.compare(other.same())
    with pytest.raises(ProtocolError, match="chunk 3 offered where 3"):
        store.compare(CHUNKS[3].same())
    store.close()


def test_other_outline_is_refused(folder: int) -> None:
    """A resumed upload must be the same dump."""
    begun(folder, 2).close()
    store = UploadStore.reopen(folder, "dump")
    with pytest.raises(RefusedError, match="was begun as"):
        store.lay_out(DATA_START + 1, MOST, LIMITS)
    store.close()


@pytest.mark.parametrize(("data_start", "most"), [(0, 0), (-1, 10), (11, 10), (MOST + 1, 2 * MOST)])
def test_impossible_outline(folder: int, data_start: int, most: int) -> None:
    """An outline must make sense and fit the receiver."""
    store = UploadStore.create(folder, HEADER)
    with pytest.raises(RefusedError):
        store.lay_out(data_start, most, LIMITS)
    store.close()


def test_size_limit(folder: int) -> None:
    """Not one byte beyond the limit is written."""
    store = begun(folder, 2)
    too_long = chunk(2, DATA, DATA_START, bytes(MOST))
    with pytest.raises(RefusedError, match="takes 1000000 bytes"):
        store.write(too_long)
    assert store.position == 2
    store.close()


def test_number_of_chunks_is_limited(folder: int) -> None:
    """Books of many tiny chunks do not grow without bound."""
    store = begun(folder, 1)

    def write_bytes_one_by_one() -> None:
        for seq in range(1, 10_000):
            store.write(chunk(seq, DATA, DATA_START + seq - 1, b"x"))

    with pytest.raises(RefusedError, match="chunks"):
        write_bytes_one_by_one()

    assert LIMITS.max_chunks(0) <= store.position <= LIMITS.max_chunks(10_000)
    store.close()


def test_wrong_order_is_refused(folder: int) -> None:
    """A chunk that skips one is never written."""
    store = begun(folder, 1)
    with pytest.raises(ProtocolError, match="chunk 2 where 1 was due"):
        store.write(CHUNKS[2])
    store.close()


def test_trailers_that_do_not_fit(folder: int) -> None:
    """Another digest, another number of chunks, another name, no manifest: nothing is committed."""
    store = begun(folder, 6)
    good = trailer()
    changed = [*CHUNKS[:4], chunk(4, DATA, DATA_START + 40_000, b"E" * 10_000), CHUNKS[5]]
    short = Trailer(size=1, n_chunks=5, digest=good.trailer.digest)
    for wrong, why in [
        (trailer(chunks=changed), "digests differ"),
        (TrailerFrame(short, good.manifest), "of 5 chunks 6 came"),
        (trailer(name="other"), "of another dump"),
        (TrailerFrame(good.trailer, b"{}"), "manifest"),
        (TrailerFrame(good.trailer, b"\0" * 100), "manifest"),
    ]:
        with pytest.raises((RefusedError, ProtocolError), match=why):
            store.verify(wrong)
    store.verify(good)
    store.close()


def test_links_are_not_followed(folder: int, tmp_path: Path) -> None:
    """A link that waits under the partial name leads nowhere."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "dump.partial").symlink_to(victim)

    store = begun(folder, 3)
    store.close()

    assert victim.read_text() == "precious"
    assert not (tmp_path / "dump.partial").is_symlink()


def test_link_as_state_is_refused(folder: int, tmp_path: Path) -> None:
    """Nor does one under the name of the books."""
    (tmp_path / "dump.partial.state").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="File exists"):
        UploadStore.create(folder, HEADER)
    with pytest.raises(OSError) as caught:
        UploadStore.reopen(folder, "dump")
    assert caught.value.errno == errno.ELOOP


def test_full_disk_is_final_and_named(folder: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No room is told in words, and is not worth another try."""
    store = begun(folder, 1)

    def full(*_args: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(RefusedError, match="No space left on device") as caught:
        store.write(CHUNKS[1])
    assert not caught.value.retry
    store.close()
