"""kdump-compressed images, written by a writer that shares nothing with the reader."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import UnsupportedError
from pipeline.flow.items import PageState
from pipeline.memory.extents import Extent
from stages.reader.kdump_image import KdumpImage
from stages.reader.probe import open_image
from tests.support.images import read_all, states_of
from tests.support.kdump_writer import FLAGS, KdumpWriter, utsname
from tests.support.vmcore_writer import PAGE, described, pack_note, prstatus

CODECS = list(FLAGS)


@contextmanager
def opened(writer: KdumpWriter, path: Path, *, cut_at: int | None = None) -> Iterator[KdumpImage]:
    image = open_image(str(writer.write(path, cut_at=cut_at)))
    assert isinstance(image, KdumpImage)
    try:
        yield image
    finally:
        image.close()


def noise(pfn: int) -> bytes:
    return np.random.default_rng(pfn).integers(0, 256, PAGE, np.uint8).tobytes()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    pages=st.dictionaries(
        st.integers(0, 99_999),
        st.tuples(st.sampled_from(CODECS), st.booleans()),
        min_size=1,
        max_size=40,
    ),
    wanted=st.sets(st.integers(0, 99_999), max_size=10),
)
def test_pages_against_a_dictionary(
    pages: dict[int, tuple[str, bool]],
    wanted: set[int],
    tmp_path: Path,
) -> None:
    """Pages of any codec, anywhere in several bitmap blocks: each comes back, no other does."""
    writer = KdumpWriter(max_mapnr=100_000)
    content = {pfn: described(pfn) if plain else noise(pfn) for pfn, (_, plain) in pages.items()}
    for pfn, (codec, _) in pages.items():
        writer.page(pfn, content[pfn], codec=codec)

    with opened(writer, tmp_path / "dump") as image:
        found = read_all(image, set(pages) | wanted)
        assert image.n_dumped == len(pages) == image.saved.n_pages == image.ram.n_pages
        assert list(image.iter_problems()) == []

    assert found == {pfn: content.get(pfn) for pfn in set(pages) | wanted}


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec(codec: str, tmp_path: Path) -> None:
    """A batch of one codec, read as a run, backwards by halves, and one by one."""
    writer = KdumpWriter(max_mapnr=4096, status=FLAGS[codec])
    for pfn in range(1000, 1600):
        writer.page(pfn, described(pfn), codec=codec)
    with opened(writer, tmp_path / "dump") as image:
        run = read_all(image, range(1000, 1600))
        again = read_all(image, range(1300, 1600)) | read_all(image, range(1000, 1300))
        single = read_all(image, [1234])

    assert run == again == {pfn: described(pfn) for pfn in range(1000, 1600)}
    assert single == {1234: described(1234)}


def test_bitmaps(tmp_path: Path) -> None:
    """The first bitmap says what existed, the second what is here."""
    writer = KdumpWriter(max_mapnr=70_000).page(5, described(5)).page(65_536, described(65_536))
    writer.excluded(3, 9).excluded(32_760, 32_780)
    with opened(writer, tmp_path / "dump") as image:
        assert list(image.ram) == [Extent(3, 9), Extent(32_760, 32_780), Extent(65_536, 65_537)]
        assert list(image.saved) == [Extent(5, 6), Extent(65_536, 65_537)]
        assert image.saved_bitmap().count() == 2
        assert states_of(image, [4, 5]) == {4: PageState.MISSING, 5: PageState.DATA}
        assert image.max_mapnr == 70_000
        assert image.read_errors.n_pages == 0


def test_extents_across_bitmap_blocks(tmp_path: Path) -> None:
    """A run of pages over a block's border is one extent, and every page of it is found."""
    writer = KdumpWriter(max_mapnr=70_000)
    for pfn in range(32_700, 32_800):
        writer.page(pfn, described(pfn), codec="snappy")
    with opened(writer, tmp_path / "dump") as image:
        assert list(image.saved) == [Extent(32_700, 32_800)]
        assert read_all(image, range(32_700, 32_800)) == {
            pfn: described(pfn) for pfn in range(32_700, 32_800)
        }


def test_shared_zero_page(tmp_path: Path) -> None:
    """At level 1 all zero pages name one page of zeros: known to be zero, not read."""
    writer = KdumpWriter(max_mapnr=64, dump_level=1, zero_page=True)
    writer.page(3, described(3), codec="zstd").zero(4).zero(9)
    with opened(writer, tmp_path / "dump") as image:
        assert states_of(image, [3, 4, 9]) == {
            3: PageState.DATA, 4: PageState.ZERO, 9: PageState.ZERO,
        }  # fmt: skip
        assert read_all(image, [3, 4]) == {3: described(3), 4: bytes(PAGE)}


def test_first_page_that_is_not_zero(tmp_path: Path) -> None:
    """The level promises a page of zeros; where it isn't one, nothing is taken for zero."""
    writer = KdumpWriter(max_mapnr=64, dump_level=1).page(3, described(3))
    with opened(writer, tmp_path / "dump") as image:
        assert read_all(image, [3]) == {3: described(3)}


def test_lost_pages_of_an_incomplete_dump(tmp_path: Path) -> None:
    """Empty descriptors in a dump marked incomplete: those pages are not there to be kept."""
    writer = KdumpWriter(max_mapnr=64, status=0x8 | 2)
    writer.page(3, described(3), codec="lzo").lost(4).page(5, described(5)).lost(6)
    with opened(writer, tmp_path / "dump") as image:
        assert list(image.saved) == [Extent(3, 4), Extent(5, 6)]
        assert list(image.ram) == [Extent(3, 7)]
        assert read_all(image, range(3, 7)) == {3: described(3), 4: None, 5: described(5), 6: None}
        assert "marked incomplete" in (image.info.incomplete or "")
        assert list(image.iter_problems()) == []


def test_lost_page_of_a_dump_that_claims_to_be_whole(tmp_path: Path) -> None:
    """An empty descriptor where none should be is met when the page is, and noted."""
    writer = KdumpWriter(max_mapnr=64).page(3, described(3)).lost(4)
    with opened(writer, tmp_path / "dump") as image:
        assert image.saved.n_pages == 2
        assert read_all(image, [3, 4]) == {3: described(3), 4: None}
        assert image.read_errors.reasons == {"lost: its descriptor is empty": 1}


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5, 6])
def test_header_versions(version: int, tmp_path: Path) -> None:
    """Fields that a version does not have are not believed, pages are the same in all."""
    notes = pack_note("CORE", 1, prstatus())
    info = b"OSRELEASE=6.1\nPAGESIZE=4096\n"
    start = len(notes) + 12 + 12
    notes += pack_note("VMCOREINFO", 0, info)
    writer = KdumpWriter(
        max_mapnr=64,
        version=version,
        dump_level=31,
        phys_base=0x1000000,
        notes=notes,
        vmcoreinfo=(start, len(info)),
        eraseinfo=b"erase x size 4\n",
    )
    with opened(writer.page(7, described(7), codec="zlib"), tmp_path / "dump") as image:
        assert read_all(image, [7]) == {7: described(7)}
        assert image.info.phys_base == 0x1000000
        assert image.info.dump_level == 31
        assert image.info.vmcoreinfo == (info if version >= 3 else None)
        assert image.info.notes == (notes if version >= 4 else b"")
        assert image.info.vmcoreinfo_off == (start if version >= 4 else None)
        assert image.info.eraseinfo == (b"erase x size 4\n" if version >= 5 else b"")


def test_info(tmp_path: Path) -> None:
    """What the headers carry comes out, unknown things as None."""
    writer = KdumpWriter(max_mapnr=64, timestamp=1_700_000_000, nr_cpus=3, phys_base=-(1 << 24))
    with opened(writer.page(0, described(0)), tmp_path / "dump") as image:
        info = image.info
    assert (info.form, info.machine, info.page_size) == ("kdump", "x86_64", PAGE)
    assert (info.timestamp, info.nr_cpus, info.phys_base) == (1_700_000_000, 3, -(1 << 24))
    assert info.utsname == utsname()
    assert info.incomplete is None

    bare = KdumpWriter(max_mapnr=64, utsname=bytes(390)).page(0, described(0))
    with opened(bare, tmp_path / "bare") as image:
        assert (image.info.utsname, image.info.timestamp) == (None, None)
        assert image.info.machine == "unknown"

    by_notes = KdumpWriter(
        max_mapnr=64, utsname=bytes(390), notes=pack_note("CORE", 1, bytes(392))
    ).page(0, described(0))
    with opened(by_notes, tmp_path / "notes") as image:
        assert image.info.machine == "aarch64"


def test_page_size_of_64k(tmp_path: Path) -> None:
    """Blocks are pages of the dumped machine, whatever their size."""
    size = 65536
    writer = KdumpWriter(max_mapnr=64, page_size=size, utsname=utsname("aarch64"))
    writer.page(3, described(3, 1, size), codec="zstd").page(4, described(4, 1, size))
    with opened(writer, tmp_path / "dump") as image:
        assert read_all(image, [3, 4]) == {pfn: described(pfn, 1, size) for pfn in (3, 4)}


def test_single_bitmap(tmp_path: Path) -> None:
    """Old full dumps have one bitmap for both uses."""
    writer = KdumpWriter(max_mapnr=64, single_bitmap=True, version=1)
    writer.page(3, described(3), codec="zlib").page(5, described(5), codec="zlib")
    with opened(writer, tmp_path / "dump") as image:
        assert image.ram == image.saved
        assert read_all(image, [3, 5]) == {3: described(3), 5: described(5)}


def test_old_version_without_64_bit_max_mapnr(tmp_path: Path) -> None:
    """A version 6 header with an empty max_mapnr_64 has it in the main header."""
    writer = KdumpWriter(max_mapnr=64, lies={"max_mapnr_64": 0}).page(9, described(9))
    with opened(writer, tmp_path / "dump") as image:
        assert image.max_mapnr == 64
        assert read_all(image, [9]) == {9: described(9)}


@pytest.mark.parametrize("version", [5, 6])
@pytest.mark.parametrize("span", [(0, 20), (20, 40_000), (40_000, 70_000), (70_000, 70_000)])
def test_parts_of_a_split_dump(span: tuple[int, int], version: int, tmp_path: Path) -> None:
    """A part has descriptors for its own pages only; those of the others are missing."""
    pfns = [5, 19, 20, 21, 39_999, 40_000, 69_999]
    writer = KdumpWriter(max_mapnr=70_000, span=span, version=version)
    for pfn in pfns:
        writer.page(pfn, described(pfn), codec="lzo")
    mine = [pfn for pfn in pfns if span[0] <= pfn < span[1]]
    with opened(writer, tmp_path / "part") as image:
        assert image.n_dumped == image.saved.n_pages == len(mine)
        assert image.ram.n_pages == len(pfns)
        assert "one part of a split dump" in (image.info.incomplete or "")
        found = read_all(image, pfns)

    assert found == {pfn: described(pfn) if pfn in mine else None for pfn in pfns}


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ({"flags": 0x3}, "bad descriptor: flags"),
        ({"flags": 0x40}, "bad descriptor: flags"),
        ({"flags": 0}, "bad descriptor: size"),
        ({"size": PAGE + 1}, "bad descriptor: size"),
        ({"size": 0}, "bad descriptor: size"),
        ({"size": 2**32 - 1}, "bad descriptor: size"),
        ({"offset": -5}, "bad descriptor: offset"),
        ({"offset": 2**63 - 1}, "past the end of the file"),
        ({"offset": 1 << 40}, "past the end of the file"),
    ],
)
def test_bad_descriptors(damage: dict[str, int], reason: str, tmp_path: Path) -> None:
    """A descriptor that can't be right loses its own page, with the reason, and no other."""
    writer = KdumpWriter(max_mapnr=64).page(3, described(3), codec="zlib")
    writer.page(4, described(4), codec="zlib", **damage).page(5, described(5), codec="zlib")
    with opened(writer, tmp_path / "dump") as image:
        assert read_all(image, [3, 4, 5]) == {3: described(3), 4: None, 5: described(5)}
        assert image.read_errors.reasons == {reason: 1}
        assert [problem.pfn for problem in image.iter_problems()] == [4]
        text = str(next(image.iter_problems()))
        assert text.startswith("pfn 0x4: ")


@pytest.mark.parametrize("codec", ["zlib", "lzo", "snappy", "zstd"])
def test_corrupt_pages(codec: str, tmp_path: Path) -> None:
    """Bytes that are not the codec's, or another page's size, lose that page alone."""
    writer = KdumpWriter(max_mapnr=64).page(3, described(3), codec=codec)
    writer.page(4, b"\xff" * 300, flags=FLAGS[codec])
    writer.page(5, described(5)[:2048], codec=codec)
    writer.page(6, described(6), codec=codec)
    with opened(writer, tmp_path / "dump") as image:
        found = read_all(image, range(3, 7))
        assert image.read_errors.n_pages == 2

    assert found == {3: described(3), 4: None, 5: None, 6: described(6)}


@pytest.mark.parametrize(
    ("bits", "order", "words"), [(32, "<", "32-bit little"), (64, ">", "64-bit big")]
)
def test_other_machines_are_recognised(bits: int, order: str, words: str, tmp_path: Path) -> None:
    """Dumps of machines that are not supported are refused as what they are."""
    path = KdumpWriter(max_mapnr=64, bits=bits, order=order).write(tmp_path / "dump")

    with pytest.raises(UnsupportedError, match=f"{words}-endian machines"):
        open_image(str(path))


@pytest.mark.parametrize("version", [0, 7, -1])
def test_unknown_versions_are_refused(version: int, tmp_path: Path) -> None:
    """A header version that nobody has defined is not guessed at."""
    writer = KdumpWriter(max_mapnr=64, lies={"header_version": version}).page(1, described(1))

    with pytest.raises(UnsupportedError, match="header version"):
        open_image(str(writer.write(tmp_path / "dump")))


def test_read_ahead_changes_nothing(tmp_path: Path) -> None:
    """Hints over any range leave the image as it was."""
    writer = KdumpWriter(max_mapnr=64).page(3, described(3)).page(60, described(60))
    with opened(writer, tmp_path / "dump") as image:
        for start, stop in ((0, 64), (0, 3), (3, 4), (61, 64), (0, 1000)):
            image.read_ahead(start, stop)

        assert read_all(image, [3]) == {3: described(3)}
