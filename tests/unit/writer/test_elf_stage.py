"""The ELF writer: what it writes opens, holds what was kept, and nothing else."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import PageCountError, StageError
from pipeline.flow.items import ChunkKind, HeadOrder
from pipeline.obs.counters import RunCounters
from stages.formats.elf import ELF64_LE, ElfForm, identify
from stages.reader.elf_image import ElfImage
from stages.reader.probe import open_image
from stages.writer.elf_layout import ElfLayout
from stages.writer.elf_segments import Load
from stages.writer.elf_stage import ElfWriter
from tests.support.images import read_all
from tests.support.vmcore_writer import PAGE, described, pack_note, prstatus
from tests.support.written import MISSING, Written, coded_batches, write

NOTES = pack_note("CORE", 1, prstatus())
QEMU_NOTES = NOTES + pack_note("QEMU", 0, bytes(8))
LOADS = [Load(0, 100 * PAGE, 0xFFFF_8880_0000_0000)]
Pages = dict[int, bytes | None]


def writer(pages: Pages, **more: Any) -> ElfWriter:
    """A writer for `pages`, which leaves zeros out and has room for doing so."""
    n_slots = more.pop("n_slots", 200)
    notes = more.get("notes", NOTES)
    form = more.pop("form", ELF64_LE)
    layout = ElfLayout(form, more.pop("e_machine", 62), PAGE, n_slots, len(notes))
    usual: dict[str, Any] = {
        "notes": notes,
        "loads": LOADS,
        "n_kept": len(pages),
        "n_spare": 50,
        "segment_bytes": 1 << 26,
        "leave_zeros_out": True,
        "needs_pair": False,
        "head_order": HeadOrder.BOTH,
        "missing_as_zero": True,
        "source_incomplete": False,
        "counters": RunCounters(),
    }
    return ElfWriter(layout=layout, **{**usual, **more})


async def written(pages: Pages, *, batch_pages: int = 4, **more: Any) -> Written:
    out = await write(writer(pages, **more), coded_batches(pages, batch_pages=batch_pages))
    out.check_cursors()
    return out


def opened(blob: bytes, folder: Path) -> ElfImage:
    path = folder / "dump"
    path.write_bytes(blob)
    image = open_image(str(path))
    assert isinstance(image, ElfImage)
    return image


def n_headers(blob: bytes) -> int:
    return int(struct.unpack_from("<H", blob, 56)[0])


SOME: Pages = {pfn: described(pfn) for pfn in (3, 4, 5, 6, 20, 21, 50, 99)}


class TestPages:
    async def test_are_found_again(self, tmp_path: Path) -> None:
        """Every page that was kept, and no other."""
        out = await written(SOME)

        image = opened(out.blob, tmp_path)
        assert [pfn for extent in image.saved for pfn in range(*extent)] == list(SOME)
        assert read_all(image, SOME) == SOME
        assert image.ram.n_pages == 100
        assert image.info.notes == NOTES
        assert image.info.incomplete is None

    @pytest.mark.parametrize("batch_pages", [1, 2, 3, 100])
    async def test_batches_do_not_show(self, batch_pages: int) -> None:
        """However they come, the file is the same."""
        one = await written(SOME)
        other = await written(SOME, batch_pages=batch_pages)

        assert one.blob == other.blob

    async def test_none_at_all(self, tmp_path: Path) -> None:
        """A dump without pages still describes the memory, and carries the notes."""
        image = opened((await written({})).blob, tmp_path)

        assert (image.ram.n_pages, image.saved.n_pages) == (100, 0)
        assert image.info.notes == NOTES

    async def test_books(self) -> None:
        """Pages in are pages out; the counters say so while it goes on."""
        pages: Pages = {**SOME, 7: None, 8: None, 51: MISSING}
        counters = RunCounters()
        out = await written(pages, counters=counters)

        totals = out.totals
        assert (totals.n_pages, totals.zero_pages, totals.missing_pages) == (11, 2, 1)
        assert totals.missing_extents == [(51, 52)]
        assert totals.raw_pages == counters.pages_raw == len(SOME)
        assert counters.pages_kept == 11
        assert totals.bytes_out == counters.bytes_out == len(SOME) * PAGE

    @pytest.mark.parametrize(("n_kept", "n_read"), [(8, 9), (9, 8), (7, 7)])
    async def test_books_that_do_not_balance(self, n_kept: int, n_read: int) -> None:
        """Pages that were planned, read or written and not the others: a defect, or a lie."""
        stage = writer(SOME, n_kept=n_kept)

        with pytest.raises((PageCountError, StageError, ExceptionGroup)) as caught:
            await write(stage, coded_batches(SOME), n_pages=n_read)

        assert "pages were planned" in repr(caught.value)


class TestZeros:
    async def test_are_left_out(self, tmp_path: Path) -> None:
        """At a level with bit 1, wherever they are."""
        pages: Pages = {**SOME, 7: None, 8: described(8), 22: None, 60: None}

        out = await written(pages)

        image = opened(out.blob, tmp_path)
        assert [pfn for extent in image.saved for pfn in range(*extent)] == sorted({*SOME, 8})

    @pytest.mark.parametrize("batch_pages", [1, 3, 100])
    async def test_are_written_at_other_levels(self, batch_pages: int, tmp_path: Path) -> None:
        """Without bit 1 they are pages like any other."""
        pages: Pages = {**SOME, 7: None, 8: described(8), 22: None, 60: None}

        out = await written(pages, leave_zeros_out=False, batch_pages=batch_pages)

        image = opened(out.blob, tmp_path)
        found = read_all(image, pages)
        assert found == {pfn: page or bytes(PAGE) for pfn, page in pages.items()}

    @pytest.mark.parametrize("n_spare", [0, 1, 2, 3, 8])
    async def test_are_written_when_room_gets_scarce(self, n_spare: int, tmp_path: Path) -> None:
        """Each gap costs a segment; those that there is no room for are not made."""
        pages: Pages = {pfn: None if pfn % 2 else described(pfn) for pfn in range(50)}

        stage_words: dict[str, Any] = {"n_spare": n_spare, "n_slots": 2 + n_spare}
        out = await written(pages, **stage_words)

        image = opened(out.blob, tmp_path)
        assert n_headers(out.blob) - 1 <= 2 + n_spare
        found = read_all(image, pages)
        there = [pfn for pfn, page in found.items() if page is not None]
        assert 25 <= len(there) <= 50
        assert all(found[pfn] == (pages[pfn] or bytes(PAGE)) for pfn in there)
        if n_spare == 0:
            assert len(there) == 50

    async def test_next_to_a_gap_cost_nothing(self, tmp_path: Path) -> None:
        """Zeros at the ends of what is kept make no further segment."""
        pages: Pages = {10: None, 11: described(11), 12: None, 30: None, 31: described(31)}

        out = await written(pages, n_spare=0, n_slots=8, batch_pages=100)

        image = opened(out.blob, tmp_path)
        assert [pfn for extent in image.saved for pfn in range(*extent)] == [11, 31]


class TestMissing:
    async def test_as_zero(self, tmp_path: Path) -> None:
        """Unreadable pages are zeros, and the head says that something is missing."""
        pages: Pages = {**SOME, 7: MISSING}

        image = opened((await written(pages, leave_zeros_out=False)).blob, tmp_path)

        assert read_all(image, [7]) == {7: bytes(PAGE)}
        assert image.info.incomplete == "marked incomplete by its writer"

    @pytest.mark.parametrize("leave_zeros_out", [True, False])
    async def test_left_out(self, leave_zeros_out: bool, tmp_path: Path) -> None:
        """Or they are not there at all."""
        pages: Pages = {**SOME, 7: MISSING, 98: MISSING}

        out = await written(pages, missing_as_zero=False, leave_zeros_out=leave_zeros_out)

        image = opened(out.blob, tmp_path)
        assert [pfn for extent in image.saved for pfn in range(*extent)] == list(SOME)
        assert image.info.incomplete is not None

    @pytest.mark.parametrize("leave_zeros_out", [True, False])
    @pytest.mark.parametrize("n_spare", [0, 1, 2, 8, 30])
    async def test_left_out_while_there_is_room(
        self, n_spare: int, leave_zeros_out: bool, tmp_path: Path
    ) -> None:
        """Bad sectors all over the source cost the dump no more than what they hold."""
        pages: Pages = {pfn: MISSING if pfn % 2 else described(pfn) for pfn in range(50)}

        words: dict[str, Any] = {"n_spare": n_spare, "n_slots": 2 + n_spare}
        words |= {"missing_as_zero": False, "leave_zeros_out": leave_zeros_out}
        out = await written(pages, batch_pages=7, **words)

        image = opened(out.blob, tmp_path)
        found = read_all(image, pages)
        assert all(found[pfn] == described(pfn) for pfn in range(0, 50, 2))
        lost = [pfn for pfn in range(1, 50, 2) if found[pfn] is None]
        assert len(lost) >= min(n_spare, 25)
        assert all(found[pfn] == bytes(PAGE) for pfn in {*range(1, 50, 2)} - {*lost})
        assert out.totals.missing_pages == 25
        assert image.info.incomplete is not None


class TestHeadOrder:
    async def test_both(self, tmp_path: Path) -> None:
        """First marked incomplete, in the end not."""
        out = await written(SOME)

        heads = out.of(ChunkKind.HEAD)
        assert [chunk.kind for chunk in (out.chunks[0], out.chunks[-1])] == [ChunkKind.HEAD] * 2
        assert [struct.unpack_from("<I", head.data, 48)[0] for head in heads] == [1, 0]
        assert opened(out.blob, tmp_path).info.incomplete is None

    async def test_first(self, tmp_path: Path) -> None:
        """A stream gets one head; room that was not needed is PT_NULL."""
        out = await written(SOME, head_order=HeadOrder.FIRST)

        assert [chunk.kind for chunk in out.chunks].count(ChunkKind.HEAD) == 1
        assert n_headers(out.blob) == 201
        image = opened(out.blob, tmp_path)
        assert read_all(image, SOME) == SOME
        assert image.info.incomplete is None

    async def test_last(self, tmp_path: Path) -> None:
        """Parts in any order get it when everything else is there."""
        out = await written(SOME, head_order=HeadOrder.LAST)

        assert out.chunks[-1].kind is ChunkKind.HEAD
        assert out.kinds().count("HEAD") == 1
        assert read_all(opened(out.blob, tmp_path), SOME) == SOME

    async def test_what_is_there_when_the_writer_stops(self, tmp_path: Path) -> None:
        """Cut between any two chunks the file opens, says so, and no page in it is wrong."""
        out = await written(SOME, batch_pages=2, segment_bytes=2 * PAGE)
        found = []
        first = out.kinds().index("DESCRIPTORS") + 1  # sinks keep nothing that is cut before
        for n_chunks in range(first, len(out.chunks)):
            image = opened(out.after(n_chunks), tmp_path)
            assert image.info.incomplete is not None
            there = {pfn: page for pfn, page in read_all(image, SOME).items() if page is not None}
            assert there == {pfn: SOME[pfn] for pfn in there}
            found.append(len(there))

        assert found == sorted(found)
        assert found[-1] == len(SOME)


class TestForms:
    @pytest.mark.parametrize(("ei_class", "ei_data"), [(1, 1), (1, 2), (2, 1), (2, 2)])
    async def test_word_sizes_and_byte_orders(
        self, ei_class: int, ei_data: int, tmp_path: Path
    ) -> None:
        """The dump has the form of its source."""
        form: ElfForm = identify(b"\x7fELF" + bytes((ei_class, ei_data)).ljust(12, b"\0"))
        loads = [Load(0, 100 * PAGE, 0xC000_0000)]

        out = await written(SOME, form=form, e_machine=22, loads=loads, notes=b"")

        image = opened(out.blob, tmp_path)
        assert read_all(image, SOME) == SOME
        assert image.info.elf == (form, 22)

    async def test_more_headers_than_16_bits_count(self, tmp_path: Path) -> None:
        """The number stands in section header 0 then, and the rest moves behind it."""
        out = await written(SOME, n_slots=70_000)

        assert n_headers(out.blob) == 0xFFFF
        (e_shoff,) = struct.unpack_from("<Q", out.blob, 40)
        assert struct.unpack_from("<I", out.blob, e_shoff + 44) == (70_001,)
        image = opened(out.blob, tmp_path)
        assert read_all(image, SOME) == SOME
        assert image.info.notes == NOTES

    async def test_no_page_is_aligned(self) -> None:
        """makedumpfile crashes on what it can map: whatever the notes' size, pages are not."""
        for size in (0, PAGE - 400, PAGE, 3 * PAGE):
            layout = ElfLayout(ELF64_LE, 62, PAGE, 10, size)
            assert layout.pages_start % PAGE != 0
            assert layout.pages_start % 8 == 0

    async def test_addresses_that_wrap(self, tmp_path: Path) -> None:
        """A source may claim anything of its virtual addresses."""
        loads = [Load(0, 100 * PAGE, (1 << 64) - PAGE)]

        image = opened((await written(SOME, loads=loads)).blob, tmp_path)

        assert read_all(image, SOME) == SOME


class TestImagesOfQemu:
    """Their notes make readers take tails for zeros."""

    async def test_gap_at_the_end_only(self, tmp_path: Path) -> None:
        """Nothing goes on where the only tail ends, so a pair of segments says that it is one."""
        pages: Pages = {pfn: described(pfn) for pfn in range(99)}

        out = await written(pages, notes=QEMU_NOTES, needs_pair=True)

        image = opened(out.blob, tmp_path)
        assert image.info.made_by == "qemu"
        assert image.saved.n_pages == 99
        assert read_all(image, [99]) == {99: None}

    async def test_no_gap(self, tmp_path: Path) -> None:
        """Without a tail there is nothing to say."""
        pages: Pages = {pfn: described(pfn) for pfn in range(100)}

        out = await written(pages, notes=QEMU_NOTES, needs_pair=True)

        assert n_headers(out.blob) == 2
        assert opened(out.blob, tmp_path).saved.n_pages == 100

    async def test_gap_inside(self) -> None:
        """A gap that something follows says it by itself."""
        out = await written(SOME, notes=QEMU_NOTES, needs_pair=True)

        assert n_headers(out.blob) == 1 + 1 + 4  # a gap at the start, four runs


PAGES = st.dictionaries(
    st.integers(0, 99),
    st.sampled_from(["data", "zero", "missing"]),
    max_size=60,
)


@settings(max_examples=60)
@given(
    kinds=PAGES,
    batch_pages=st.sampled_from([1, 3, 7, 100]),
    leave_zeros_out=st.booleans(),
    missing_as_zero=st.booleans(),
    n_spare=st.sampled_from([0, 2, 40]),
    order=st.sampled_from(list(HeadOrder)),
)
async def test_whatever_is_kept(
    tmp_path_factory: pytest.TempPathFactory,
    kinds: dict[int, str],
    batch_pages: int,
    leave_zeros_out: bool,
    missing_as_zero: bool,
    n_spare: int,
    order: HeadOrder,
) -> None:
    """Pages with content are there as they are; zeros read as zeros or are left out; no others."""
    made: dict[str, bytes | None] = {"zero": None, "missing": MISSING}
    pages: Pages = {pfn: made.get(kind, described(pfn)) for pfn, kind in kinds.items()}
    text = Load(30 * PAGE, 50 * PAGE, 0xFFFF_FFFF_8000_0000)

    out = await written(
        pages,
        batch_pages=batch_pages,
        leave_zeros_out=leave_zeros_out,
        missing_as_zero=missing_as_zero,
        n_spare=n_spare,
        loads=[text, *LOADS],
        segment_bytes=8 * PAGE,
        head_order=order,
    )

    image = opened(out.blob, tmp_path_factory.mktemp("elf"))
    for pfn, page in read_all(image, range(100)).items():
        match kinds.get(pfn):
            case "data":
                assert page == described(pfn)
            case "zero":
                assert page == bytes(PAGE) or (page is None and leave_zeros_out)
            case "missing":
                left_out = leave_zeros_out or not missing_as_zero
                assert page == bytes(PAGE) if not left_out else page in (None, bytes(PAGE))
            case _:
                assert page is None
    image.close()
