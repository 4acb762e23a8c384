"""The journal: what was written is read back, torn ends are dropped, damage is refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pipeline.errors import FormatError, SinkError
from stages.sink.journal import Journal, identify_source
from stages.sink.part_store import Seal, SentPart
from stages.sink.parts import Grid, Part
from stages.sink.upload_journal import note_part, note_upload, read_former


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(os.urandom(2 << 20))
    return path


def new_journal(image: Path) -> Journal:
    return Journal.create(
        image.parent / "journals",
        target="s3://dumps/host/vmcore",
        source=identify_source(str(image)),
        settings={"dump.level": 31, "compressor.codec": "zstd"},
    )


def test_records_come_back(image: Path) -> None:
    """Header and records are read as they were written, and appending goes on."""
    journal = new_journal(image)
    journal.append("part", number=1)
    journal.append("part", number=2)
    journal.keep()

    again = Journal.open(journal.path)
    again.append("part", number=3)
    again.keep()

    assert again.header == journal.header
    records = Journal.open(journal.path).records
    assert [record["number"] for record in records] == [1, 2, 3]


def test_journal_appears_with_its_first_record(image: Path) -> None:
    """A run that fails before it sent anything leaves nothing behind."""
    journal = new_journal(image)

    assert not journal.on_disk
    journal.keep()
    assert not (image.parent / "journals").exists()


def test_journal_is_private(image: Path) -> None:
    """Nobody else reads upload ids and paths."""
    journal = new_journal(image)
    journal.append("part", number=1)

    assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(journal.path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("n_lost", range(1, 40))
def test_torn_last_line_is_dropped(image: Path, n_lost: int) -> None:
    """Wherever a power cut tears the last record, the ones before it stand."""
    journal = new_journal(image)
    journal.append("part", number=1)
    journal.append("part", number=2, sha256="0" * 64)
    journal.keep()
    data = journal.path.read_bytes()
    journal.path.write_bytes(data[:-n_lost])

    again = Journal.open(journal.path)
    again.append("part", number=3)
    again.keep()

    records = Journal.open(journal.path).records
    assert [record["number"] for record in records] == [1, 3]


def test_damaged_last_line_is_dropped(image: Path) -> None:
    """Zeros that a file system left in the last block do not cost the records before."""
    journal = new_journal(image)
    journal.append("part", number=1)
    journal.append("part", number=2)
    journal.keep()
    data = bytearray(journal.path.read_bytes())
    data[-12:-6] = bytes(6)
    journal.path.write_bytes(data)

    assert [record["number"] for record in Journal.open(journal.path).records] == [1]


def test_damage_in_the_middle_is_refused(image: Path) -> None:
    """A wrong record with good ones after it is no torn end."""
    journal = new_journal(image)
    journal.append("part", number=1)
    journal.append("part", number=2)
    journal.keep()
    text = journal.path.read_text().replace('"number":1', '"number":7')
    journal.path.write_text(text)

    with pytest.raises(FormatError, match="checksum"):
        Journal.open(journal.path)


@pytest.mark.parametrize("data", [b"", b"\n", b"hello\n", bytes(5000), b"\x7fELF" * 100 + b"\n"])
def test_other_files_are_refused(tmp_path: Path, data: bytes) -> None:
    """What is no journal says so in one line, whatever it is."""
    path = tmp_path / "file.journal"
    path.write_bytes(data)

    with pytest.raises(FormatError, match="journal"):
        Journal.open(path)


def test_other_source_is_refused(image: Path) -> None:
    """A journal goes on with the image that it was begun with, and no other."""
    journal = new_journal(image)
    journal.require_source(identify_source(str(image)))
    with image.open("r+b") as file:
        file.write(b"another kernel")

    with pytest.raises(SinkError, match="not the same image"):
        journal.require_source(identify_source(str(image)))


def test_removed_journal_is_gone(image: Path) -> None:
    """After a commit there is nothing to resume."""
    journal = new_journal(image)
    journal.append("part", number=1)

    journal.remove()

    assert not journal.path.exists()


def test_unwritable_folder_is_one_line(image: Path) -> None:
    """A journal that cannot be written names its file."""
    (image.parent / "journals").write_text("a file where a folder should be")

    with pytest.raises(SinkError, match="journals"):
        new_journal(image).append("part", number=1)


GRID = Grid(1000, 500, 700)


def sent_part(number: int, digest: bytes = b"a" * 32) -> SentPart:
    return SentPart(GRID.part(number), Seal(digest, "check"), f'"tag{number}"')


def test_upload_comes_back(image: Path) -> None:
    """Id, grid and parts of the last upload are found again."""
    journal = new_journal(image)
    note_upload(journal, "old", GRID)
    note_part(journal, sent_part(9))
    note_upload(journal, "new", GRID)
    note_part(journal, sent_part(2))
    note_part(journal, sent_part(3))
    journal.keep()

    former = read_former(Journal.open(journal.path))

    assert former is not None
    assert (former.upload_id, former.grid) == ("new", GRID)
    assert former.parts == {2: sent_part(2), 3: sent_part(3)}
    assert former.still_stored({2: '"tag2"', 3: '"other"'}).parts == {2: sent_part(2)}


def test_part_with_other_contents_is_refused(image: Path) -> None:
    """A part that would differ from what was sent means a changed source: no mixed dump."""
    journal = new_journal(image)
    note_upload(journal, "id", GRID)
    note_part(journal, sent_part(2))
    former = read_former(journal)
    assert former is None  # a journal's own new records are not a former run's
    journal.keep()
    former = read_former(Journal.open(journal.path))
    assert former is not None

    assert former.find(GRID.part(1), Seal(b"b" * 32, "")) is None
    assert former.find(GRID.part(2), Seal(b"a" * 32, "")) == sent_part(2)
    with pytest.raises(SinkError, match="part 2 is not what was sent before"):
        former.find(GRID.part(2), Seal(b"b" * 32, ""))
    with pytest.raises(SinkError, match="layout"):
        former.require_grid(Grid(1001, 500, 700))
    with pytest.raises(SinkError, match="part 2"):
        former.find(Part(2, 500, 499), Seal(b"a" * 32, ""))
