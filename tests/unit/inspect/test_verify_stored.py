"""Verifying a dump where it is kept: what is proven, what is read, what is found."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.config.settings import Settings
from pipeline.config.targets import NetSettings
from pipeline.errors import UsageError
from pipeline.flow.items import Totals
from stages.inspect.verify_stored import StoredFindings, verify_stored
from stages.sink.digest import Piece
from stages.sink.manifest import DumpFacts, build_manifest
from stages.sink.retry import TransientError
from stages.sink.stored import Looks, StoredFile, find_stored
from tests.support.chunk_stream import content

MIB = 1 << 20
NET = NetSettings(retry_first_s=0.001, retry_most_s=0.001)
DUMP = content(0, 40 * MIB + 77)
PIECES = [
    Piece(at, len(DUMP[at : at + MIB]), hashlib.sha256(DUMP[at : at + MIB]).digest())
    for at in range(0, len(DUMP), MIB)
]


def manifest(stored: Mapping[str, str] | None = None) -> bytes:
    made = build_manifest(
        name="vmcore",
        form="kdump",
        pieces=PIECES,
        totals=Totals(),
        facts=DumpFacts(),
        stored=stored,
    )
    return made.pack()


@dataclass
class Shelf:
    """A store in memory that fails once before each good answer."""

    data: bytes | None = DUMP
    manifest: bytes | None = field(default_factory=manifest)
    marks: dict[str, str] = field(default_factory=dict)
    target: str = "shelf://dump"
    closed: bool = False
    asked: set[object] = field(default_factory=set)

    def _fail_once(self, *question: object) -> None:
        if question not in self.asked:
            self.asked.add(question)
            raise TransientError("busy")

    async def look(self) -> Looks | None:
        self._fail_once("look")
        return None if self.data is None else Looks(len(self.data), self.marks)

    async def read(self, offset: int, length: int) -> bytes:
        self._fail_once(offset)
        return (self.data or b"")[offset : offset + length]

    async def read_manifest(self) -> bytes | None:
        self._fail_once("manifest")
        return self.manifest

    async def close(self) -> None:
        self.closed = True


async def verify(shelf: Shelf, *, full: bool = False) -> StoredFindings:
    found = await verify_stored(shelf, NET, full=full)
    assert shelf.closed
    return found


async def test_checksums_of_the_store_are_enough() -> None:
    """Where the store's own checksum is the one recorded, nothing is downloaded."""
    marks = {"sha256": "abc=-41", "etag": "0-41"}

    found = await verify(Shelf(manifest=manifest(marks), marks=marks))

    assert found.ok
    assert found.n_read == 0
    assert list(found.lines()) == [
        "shelf://dump: ok, the store's own sha256 of every part; 40.0 MiB, 0 B of it read"
    ]


async def test_other_checksum_is_a_problem() -> None:
    """An object that was replaced by another of the same size is found without reading it."""
    found = await verify(Shelf(manifest=manifest({"etag": "a-41"}), marks={"etag": "b-41"}))

    assert found.problems == ["the store's etag is b-41, a-41 was sent"]
    assert list(found.lines())[-1].startswith("shelf://dump: NOT OK")


async def test_etag_of_another_kind_says_nothing() -> None:
    """Some servers make the ETag of something else: then pieces are read instead."""
    found = await verify(Shelf(manifest=manifest({"etag": "a-41"}), marks={"etag": "b"}))

    assert found.ok
    assert found.n_read > 0


async def test_samples_are_read_where_nothing_is_proven() -> None:
    """Without checksums the head, the end and a few pieces are read, and the note says so."""
    found = await verify(Shelf())

    assert found.ok
    assert 2 * MIB <= found.n_read <= 12 * MIB
    assert found.notes == ["the store keeps no checksums; --full reads every byte"]


@pytest.mark.parametrize("at", [0, len(DUMP) - 1])
async def test_damage_at_the_ends_is_found_by_samples(at: int) -> None:
    """The head and the end are always among the samples."""
    damaged = bytearray(DUMP)
    damaged[at] ^= 1

    found = await verify(Shelf(bytes(damaged)))

    assert len(found.problems) == 1
    assert "are not what was sent" in found.problems[0]


async def test_any_damage_is_found_by_reading_all() -> None:
    """With `full`, one flipped bit in the middle is found, and where."""
    damaged = bytearray(DUMP)
    damaged[21 * MIB + 5] ^= 1

    found = await verify(Shelf(bytes(damaged)), full=True)

    assert found.problems == [f"{MIB} bytes at offset {21 * MIB:#x} are not what was sent"]
    assert found.n_read == len(DUMP)


async def test_cut_dump_is_found_at_once() -> None:
    """The size is compared before anything else."""
    found = await verify(Shelf(DUMP[:-1]))

    assert found.problems == [f"{len(DUMP) - 1} bytes are stored, {len(DUMP)} were sent"]


@pytest.mark.parametrize(
    ("shelf", "said"),
    [
        (Shelf(data=None), "there is no such dump"),
        (Shelf(manifest=None), "no manifest next to it"),
        (Shelf(manifest=b"{}"), "manifest: JSON"),
    ],
)
async def test_what_is_missing_is_said(shelf: Shelf, said: str) -> None:
    """No dump, no manifest, a broken manifest: one sentence, no traceback."""
    found = await verify(shelf)

    assert said in found.problems[0]


async def test_file_is_verified_too(tmp_path: Path) -> None:
    """A dump that was copied to a disk together with its manifest is checked the same way."""
    path = tmp_path / "vmcore"
    path.write_bytes(DUMP)
    assert not (await verify_stored(StoredFile(path), NET, full=False)).ok
    path.with_name("vmcore.manifest.json").write_bytes(manifest())

    dump = find_stored(str(path), Settings())

    assert (await verify_stored(dump, NET, full=True)).ok


def test_unknown_place_is_a_usage_error() -> None:
    """A scheme whose dumps can't be read where they are is refused with those that can."""
    with pytest.raises(UsageError, match=r"tcp:// can't be verified .* s3://"):
        find_stored("tcp://host/vmcore", Settings())
