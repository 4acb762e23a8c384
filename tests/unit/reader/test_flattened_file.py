"""Flattened streams read in place, as if they had been rearranged."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.reader.file_io import PlainFile
from stages.reader.flattened_file import FlattenedFile
from stages.reader.kdump_image import KdumpImage
from stages.reader.probe import open_image
from tests.support.images import read_all
from tests.support.kdump_writer import KdumpWriter, flatten
from tests.support.vmcore_writer import VmcoreWriter, described


def flattened_file(stream: bytes, path: Path) -> FlattenedFile:
    path.write_bytes(stream)
    return FlattenedFile(PlainFile(str(path)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    records=st.lists(
        st.tuples(st.integers(0, 300), st.binary(min_size=1, max_size=80)), min_size=1, max_size=12
    ),
    off=st.integers(0, 400),
    n_bytes=st.integers(0, 200),
)
def test_records_against_a_byte_array(
    records: list[tuple[int, bytes]], off: int, n_bytes: int, tmp_path: Path
) -> None:
    """Records in any order, overlapping as they like: the last one wins, gaps are zero."""
    whole = bytearray()
    for start, data in records:
        whole.extend(bytes(max(start + len(data) - len(whole), 0)))
        whole[start : start + len(data)] = data
    # Not through `flatten` of a blob: it would leave records of zeros out.
    stream = bytearray(flatten(b"")[:4096])
    for start, data in records:
        stream += start.to_bytes(8, "big") + len(data).to_bytes(8, "big") + data
    file = flattened_file(bytes(stream + flatten(b"")[4096:]), tmp_path / "stream")

    view = memoryview(bytearray(n_bytes))
    got = file.read_into(view, off)

    assert file.incomplete is None
    assert file.size == len(whole)
    assert file.read(off, n_bytes) == whole[off : off + n_bytes]
    assert bytes(view[:got]) == whole[off : off + n_bytes]
    file.close()


@pytest.mark.parametrize("record_bytes", [500, 4096, 1 << 20])
def test_flattened_kdump(record_bytes: int, tmp_path: Path) -> None:
    """A dump reads the same flattened as plain."""
    writer = KdumpWriter(max_mapnr=5000)
    for pfn in range(100, 400):
        writer.page(pfn, described(pfn), codec="lzo")
    path = tmp_path / "stream"
    path.write_bytes(flatten(writer.pack(), record_bytes=record_bytes))
    image = open_image(str(path))

    assert isinstance(image, KdumpImage)
    assert image.info.incomplete is None
    assert read_all(image, range(100, 400)) == {pfn: described(pfn) for pfn in range(100, 400)}
    image.close()


def test_flattened_elf(tmp_path: Path) -> None:
    """An ELF dump too; its pages lie across records."""
    writer = VmcoreWriter().load(paddr=0x5000, data=described(5, 40))
    path = tmp_path / "stream"
    path.write_bytes(flatten(writer.pack(), record_bytes=10_000))
    image = open_image(str(path))

    assert image.info.form == "elf"
    assert read_all(image, range(5, 45)) == {pfn: described(pfn) for pfn in range(5, 45)}
    assert read_all(image, range(5, 45, 3)) == {pfn: described(pfn) for pfn in range(5, 45, 3)}
    image.read_ahead(0, 100)
    image.close()


def test_gap_of_a_whole_stream_is_zero(tmp_path: Path) -> None:
    """What no record covers was not worth writing: it reads as zero."""
    data = described(0) + bytes(3 * 4096) + described(4)
    writer = VmcoreWriter(data_align=4096).load(paddr=0, data=data)
    path = tmp_path / "stream"
    path.write_bytes(flatten(writer.pack(), record_bytes=4096))
    image = open_image(str(path))

    found = read_all(image, range(5))
    image.close()

    assert b"".join(page or b"?" for page in found.values()) == data


def test_gap_of_a_cut_stream_is_missing(tmp_path: Path) -> None:
    """In a stream without its end, nobody knows what would have come: not zero, missing."""
    writer = VmcoreWriter(data_align=4096).load(paddr=0, data=described(0, 8))
    stream = flatten(writer.pack(), record_bytes=4096)
    records = [stream[at : at + 4112] for at in range(4096, len(stream) - 16, 4112)]
    # Written from the last to the first: keep the last pages, the headers, and nothing between.
    kept = stream[:4096] + b"".join(records[:3]) + records[-1]
    path = tmp_path / "stream"
    path.write_bytes(kept)
    image = open_image(str(path))

    assert "was cut at" in (image.info.incomplete or "")
    assert read_all(image, range(8)) == {
        pfn: described(pfn) if pfn >= 5 else None for pfn in range(8)
    }
    assert image.saved.n_pages == 8
    image.close()


def test_cut_kdump_stream_loses_what_did_not_come(tmp_path: Path) -> None:
    """Descriptors that never came are empty: their pages are known to be lost."""
    writer = KdumpWriter(max_mapnr=64)
    for pfn in range(8):
        writer.page(pfn, described(pfn))
    blob = writer.pack()
    half = writer.descriptors_start + 4 * 24
    stream = flatten(blob[:half], record_bytes=1 << 20)[:-16]
    data_start = writer.data_start
    data = blob[data_start : data_start + 3 * 4096]
    stream += data_start.to_bytes(8, "big") + len(data).to_bytes(8, "big") + data
    path = tmp_path / "stream"
    path.write_bytes(stream)
    image = open_image(str(path))

    assert image.saved.n_pages == 4
    assert read_all(image, range(8)) == {
        pfn: described(pfn) if pfn < 3 else None for pfn in range(8)
    }
    image.close()


def test_zero_page_that_did_not_come(tmp_path: Path) -> None:
    """Pages that name the page of zeros are missing when the stream was cut before it."""
    writer = KdumpWriter(max_mapnr=64, dump_level=1, zero_page=True).zero(3).page(4, described(4))
    blob, start = writer.pack(), writer.data_start
    stream = flatten(blob[:start], record_bytes=1 << 20)[:-16]
    data = blob[start + 4096 :]
    stream += (start + 4096).to_bytes(8, "big") + len(data).to_bytes(8, "big") + data
    path = tmp_path / "stream"
    path.write_bytes(stream)
    image = open_image(str(path))

    assert read_all(image, [3, 4]) == {3: None, 4: described(4)}
    image.close()


def test_broken_record_ends_the_stream(tmp_path: Path) -> None:
    """An end record that is half an end record is none."""
    stream = flatten(b"abc")[:-16] + (-1).to_bytes(8, "big", signed=True) + bytes(8)
    file = flattened_file(stream, tmp_path / "stream")

    assert "broken record at 0x1013" in (file.incomplete or "")
    assert file.read(0, 10) == b"abc"
    file.close()


def test_bytes_behind_the_end_are_not_read(tmp_path: Path) -> None:
    """What follows the end record belongs to somebody else."""
    file = flattened_file(flatten(b"abc") + b"more" * 100, tmp_path / "stream")

    assert (file.size, file.incomplete) == (3, None)
    file.close()
