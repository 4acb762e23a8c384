"""The kdump writer: everything is where the layout says, and the books balance."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import PageCountError, TornStreamError
from pipeline.flow.channel import Channel
from pipeline.flow.items import ChunkKind, EndOfDump, HeadOrder
from pipeline.memory.bitmap import PageBitmap
from pipeline.memory.extents import ExtentSet
from pipeline.obs.counters import RunCounters
from stages.formats.kdump import PAGE_DESC, KdumpHead, KdumpLayout, MainHeader, PageFlag, Status
from stages.reader.kdump_image import KdumpImage
from stages.reader.probe import open_image
from stages.writer.stage import KdumpWriter
from tests.support.captured_log import captured_log
from tests.support.images import read_all
from tests.support.kdump_writer import utsname
from tests.support.vmcore_writer import PAGE, described, pack_note, prstatus
from tests.support.written import MISSING, Written, coded_batches, write

Pages = dict[int, bytes | None]
MAX_MAPNR = 70_000
NOTES = pack_note("CORE", 1, prstatus())
SOME: Pages = {pfn: described(pfn) for pfn in (3, 4, 40, 41, 32767, 32768, 69_999)}


def writer(pages: Pages, **more: Any) -> KdumpWriter:
    max_mapnr = more.pop("max_mapnr", MAX_MAPNR)
    layout = KdumpLayout(PAGE, max_mapnr, len(NOTES), more.pop("n_dumped", len(pages)))
    head = KdumpHead(
        utsname=utsname(),
        timestamp=7,
        status=PageFlag.ZLIB,
        block_size=PAGE,
        max_mapnr=max_mapnr,
        nr_cpus=1,
        phys_base=0,
        dump_level=31,
        notes=NOTES,
    )
    usual: dict[str, Any] = {
        "ram": PageBitmap.from_extents(ExtentSet.from_pairs([(0, max_mapnr)]), max_mapnr),
        "kept": PageBitmap.from_extents(
            ExtentSet.from_pairs((pfn, pfn + 1) for pfn in pages), max_mapnr
        ),
        "page_flag": PageFlag.ZLIB,
        "zero_page": True,
        "head_order": HeadOrder.BOTH,
        "missing_as_zero": True,
        "descriptor_bytes": 1 << 20,
        "counters": RunCounters(),
    }
    return KdumpWriter(head=head, layout=layout, **{**usual, **more})


async def written(
    pages: Pages,
    *,
    batch_pages: int = 4,
    coded: dict[int, bytes] | None = None,
    **more: Any,
) -> Written:
    batches = coded_batches(pages, batch_pages=batch_pages, coded=coded)
    out = await write(writer(pages, **more), batches)
    out.check_cursors()
    return out


def opened(blob: bytes, folder: Path) -> KdumpImage:
    path = folder / "dump"
    path.write_bytes(blob)
    image = open_image(str(path))
    assert isinstance(image, KdumpImage)
    return image


def descriptors(out: Written) -> np.ndarray:
    return np.frombuffer(b"".join(one.data for one in out.of(ChunkKind.DESCRIPTORS)), PAGE_DESC)


class TestPages:
    async def test_are_found_again(self, tmp_path: Path) -> None:
        """Every page that was kept, raw and compressed ones."""
        coded = {4: zlib.compress(described(4)), 32768: zlib.compress(described(32768))}

        image = opened((await written(SOME, coded=coded)).blob, tmp_path)

        assert read_all(image, SOME) == SOME
        assert image.saved.n_pages == len(SOME)
        assert image.ram.n_pages == MAX_MAPNR
        assert image.info.notes == NOTES
        assert image.info.incomplete is None

    @pytest.mark.parametrize("batch_pages", [1, 2, 3, 100])
    async def test_batches_do_not_show(self, batch_pages: int) -> None:
        """However they come, the file is the same."""
        assert (await written(SOME)).blob == (await written(SOME, batch_pages=batch_pages)).blob

    async def test_zero_pages_share_one_descriptor_target(self) -> None:
        """They name the page of zeros with which the data begins, and cost no data."""
        out = await written({**SOME, 5: None, 6: None, 50: None})

        table = descriptors(out)
        zero = table[table["offset"] == out.outline.data_start]
        assert len(zero) == 3
        assert (zero["size"] == PAGE).all()
        assert (zero["flags"] == 0).all()
        assert out.totals.bytes_out == len(SOME) * PAGE
        assert out.blob[out.outline.data_start :][:PAGE] == bytes(PAGE)

    async def test_flags_say_what_is_compressed(self) -> None:
        """The codec's flag where it made a page smaller, 0 elsewhere."""
        table = descriptors(await written(SOME, coded={4: b"x" * 10}))

        assert table["flags"].tolist() == [0, PageFlag.ZLIB, 0, 0, 0, 0, 0]
        assert table["size"].tolist() == [PAGE, 10, *[PAGE] * 5]

    async def test_none_at_all(self, tmp_path: Path) -> None:
        """A dump without pages opens, and holds the notes."""
        image = opened((await written({}, zero_page=False)).blob, tmp_path)

        assert image.saved.n_pages == 0
        assert image.info.notes == NOTES


WITH_MISSING: Pages = {**SOME, 5: MISSING, 6: MISSING, 7: MISSING, 60: MISSING}


class TestMissingPages:
    async def test_as_zero(self, tmp_path: Path) -> None:
        """They name the page of zeros; the head says that something is missing."""
        image = opened((await written(WITH_MISSING)).blob, tmp_path)

        assert read_all(image, [5, 60]) == {5: bytes(PAGE), 60: bytes(PAGE)}
        assert image.info.incomplete is not None

    async def test_skipped(self, tmp_path: Path) -> None:
        """Their descriptors are empty: lost, and not readable as anything."""
        out = await written(WITH_MISSING, missing_as_zero=False, zero_page=False)

        image = opened(out.blob, tmp_path)
        assert read_all(image, [5, 60]) == {5: None, 60: None}
        assert image.saved.n_pages == len(SOME)
        assert descriptors(out)["offset"].tolist().count(0) == 4

    @pytest.mark.parametrize("batch_pages", [1, 2, 100])
    async def test_extents(self, batch_pages: int) -> None:
        """Runs are told as runs, also where they cross batches."""
        out = await written(WITH_MISSING, batch_pages=batch_pages)

        assert out.totals.missing_pages == 4
        assert out.totals.missing_extents == [(5, 8), (60, 61)]

    async def test_many_extents(self) -> None:
        """Of an image in ruins the first few are enough."""
        pages: Pages = dict.fromkeys(range(0, 400, 2), MISSING)

        with captured_log() as log:
            out = await written(pages)

        assert out.totals.missing_pages == 200
        assert len(out.totals.missing_extents) == 64
        assert log.getvalue().count("pages_unreadable") == 65
        assert log.getvalue().count("not listed") == 1

    async def test_stream_is_told_in_the_end(self) -> None:
        """Where the head comes first it comes again, marked."""
        out = await written(WITH_MISSING, head_order=HeadOrder.FIRST)

        statuses = [MainHeader.parse(bytes(one.data)).status for one in out.of(ChunkKind.HEAD)]
        assert [status & Status.INCOMPLETE for status in statuses] == [0, Status.INCOMPLETE]
        assert out.chunks[-1].kind is ChunkKind.HEAD


class TestHeadOrder:
    @pytest.mark.parametrize(
        ("order", "places"),
        [(HeadOrder.FIRST, [0]), (HeadOrder.BOTH, [0, -1]), (HeadOrder.LAST, [-1])],
    )
    async def test_when_it_comes(self, order: HeadOrder, places: list[int]) -> None:
        """As the sink wants it; the last one is complete."""
        out = await written(SOME, head_order=order)

        assert out.kinds().count("HEAD") == len(places)
        heads = [out.chunks[place] for place in places]
        assert all(head.kind is ChunkKind.HEAD for head in heads)
        statuses = [MainHeader.parse(bytes(head.data)).status for head in heads]
        assert statuses[-1] == PageFlag.ZLIB
        if order is HeadOrder.BOTH:
            assert statuses[0] == PageFlag.ZLIB | Status.INCOMPLETE

    async def test_files_get_descriptors_with_their_pages(self) -> None:
        """A page that was written can be found, whatever happens next."""
        out = await written(SOME, batch_pages=2)

        kinds = [kind for kind in out.kinds() if kind not in ("HEAD", "BITMAP")]
        assert kinds == ["DATA", *["DATA", "DESCRIPTORS"] * 4]

    @pytest.mark.parametrize("order", [HeadOrder.FIRST, HeadOrder.LAST])
    @pytest.mark.parametrize(("least", "n_chunks"), [(1, 4), (48, 4), (49, 2), (1 << 20, 1)])
    async def test_others_get_them_gathered(
        self, order: HeadOrder, least: int, n_chunks: int
    ) -> None:
        """In pieces of so many bytes at least, but for the last."""
        out = await written(SOME, batch_pages=2, head_order=order, descriptor_bytes=least)

        chunks = out.of(ChunkKind.DESCRIPTORS)
        assert len(chunks) == n_chunks
        assert all(chunk.n_bytes >= least for chunk in chunks[:-1])

    @pytest.mark.parametrize("order", list(HeadOrder))
    async def test_descriptors_never_come_before_their_pages(self, order: HeadOrder) -> None:
        """Cut between any two chunks, no descriptor names bytes that are not there yet."""
        out = await written(SOME, batch_pages=1, head_order=order, descriptor_bytes=48)
        data_end = 0
        for chunk in out.chunks:
            if chunk.kind is ChunkKind.DATA:
                data_end = chunk.offset + chunk.n_bytes
            elif chunk.kind is ChunkKind.DESCRIPTORS:
                table = np.frombuffer(chunk.data, PAGE_DESC)
                assert (table["offset"] + table["size"]).max() <= data_end

    async def test_what_is_there_when_the_writer_stops(self, tmp_path: Path) -> None:
        """With its bitmaps a file opens wherever it is cut, says so, and no page is wrong."""
        out = await written(SOME, batch_pages=2)
        n_front = len([1 for kind in out.kinds() if kind in ("HEAD", "BITMAP")]) - 1
        counts = []
        for n_chunks in range(n_front, len(out.chunks)):
            image = opened(out.after(n_chunks), tmp_path)
            assert image.info.incomplete is not None
            there = {pfn: page for pfn, page in read_all(image, SOME).items() if page is not None}
            assert there == {pfn: SOME[pfn] for pfn in there}
            counts.append(len(there))

        assert counts[0] == 0
        assert counts[-1] == len(SOME)
        assert counts == sorted(counts)


class TestBooks:
    async def test_balance(self) -> None:
        """Everything that came is counted as one thing, in the totals and for progress."""
        counters = RunCounters()
        pages: Pages = {**SOME, 5: None, 6: MISSING}
        out = await written(pages, coded={4: b"x" * 10, 40: b"y" * 20}, counters=counters)

        totals = out.totals
        assert (totals.n_pages, totals.zero_pages, totals.missing_pages) == (9, 1, 1)
        assert (totals.coded_pages, totals.raw_pages) == (2, 5)
        assert totals.bytes_out == 5 * PAGE + 30
        assert (counters.pages_kept, counters.pages_zero, counters.pages_missing) == (9, 1, 1)
        assert (counters.pages_coded, counters.pages_raw) == (2, 5)
        assert counters.bytes_out == totals.bytes_out

    @pytest.mark.parametrize(("n_dumped", "n_read"), [(8, 7), (6, 7), (7, 8), (7, 6)])
    async def test_that_do_not_balance(self, n_dumped: int, n_read: int) -> None:
        """Pages planned, read and written must be as many."""
        stage = writer(SOME, n_dumped=n_dumped)

        with pytest.raises(ExceptionGroup) as caught:
            await write(stage, coded_batches(SOME), n_pages=n_read)

        assert caught.group_contains(PageCountError, match="pages were planned")

    @pytest.mark.parametrize("order", [[1, 0], [0, 0], [0, 2]])
    async def test_batches_out_of_order(self, order: list[int]) -> None:
        """The writer is the last to notice that a batch is lost, repeated or too early."""
        batches = coded_batches(SOME, batch_pages=2)
        batches.batches = [batches.batches[at] for at in order]

        with pytest.raises(ExceptionGroup) as caught:
            await write(writer(SOME), batches)

        assert caught.group_contains(PageCountError, match="was due")

    async def test_torn_stream(self) -> None:
        """A channel that closes without the end is no end."""
        before: Channel[Any] = Channel("before", 1 << 30)
        after: Channel[Any] = Channel("after", 1 << 30)
        before.close_sender()

        with pytest.raises(TornStreamError):
            await writer(SOME).run(before, after)

        sent = [await after.receive() for _ in range(after.stats.n_items)]
        assert not any(isinstance(item, EndOfDump) for item in sent)


async def test_outline_is_a_promise() -> None:
    """Data begins where it says, and nothing is larger than it says."""
    out = await written(SOME)

    assert out.outline.data_start == writer(SOME).layout.data_start
    assert out.outline.most_bytes == out.outline.data_start + (len(SOME) + 1) * PAGE
    assert len(out.blob) == out.outline.most_bytes


@settings(max_examples=40)
@given(
    kinds=st.dictionaries(
        st.integers(0, 999), st.sampled_from(["data", "coded", "zero", "missing"]), max_size=50
    ),
    batch_pages=st.sampled_from([1, 5, 100]),
    order=st.sampled_from(list(HeadOrder)),
    missing_as_zero=st.booleans(),
    max_mapnr=st.sampled_from([1000, 32_768, 32_769, 300_000]),
)
async def test_whatever_is_kept(
    tmp_path_factory: pytest.TempPathFactory,
    kinds: dict[int, str],
    batch_pages: int,
    order: HeadOrder,
    missing_as_zero: bool,
    max_mapnr: int,
) -> None:
    """Pages come out as they went in, and only those."""
    made: dict[str, bytes | None] = {"zero": None, "missing": MISSING}
    pages: Pages = {pfn: made.get(kind, described(pfn)) for pfn, kind in kinds.items()}
    coded = {pfn: zlib.compress(described(pfn)) for pfn, kind in kinds.items() if kind == "coded"}

    out = await written(
        pages,
        coded=coded,
        batch_pages=batch_pages,
        head_order=order,
        missing_as_zero=missing_as_zero,
        max_mapnr=max_mapnr,
    )

    image = opened(out.blob, tmp_path_factory.mktemp("kdump"))
    lost = None if not missing_as_zero else bytes(PAGE)
    wanted = {"zero": bytes(PAGE), "missing": lost}
    for pfn, page in read_all(image, range(1000)).items():
        kind = kinds.get(pfn)
        assert page == (None if kind is None else wanted.get(kind, described(pfn)))
    image.close()
