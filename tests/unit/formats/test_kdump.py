"""kdump-compressed headers: the C layouts, round trips, and the head of a dump as it is written."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from pipeline.errors import FormatError
from stages.formats import kdump
from stages.formats.kdump import KdumpHead, KdumpLayout, MainHeader, SubHeader
from tests.support.kdump_writer import KdumpWriter, utsname

s32 = st.integers(-(2**31), 2**31 - 1)
u32 = st.integers(0, 2**32 - 1)
s64 = st.integers(-(2**63), 2**63 - 1)
u64 = st.integers(0, 2**64 - 1)

MAIN_OFFSETS = {
    "header_version": (8, "i"),
    "tv_sec": (408, "q"),
    "tv_usec": (416, "q"),
    "status": (424, "I"),
    "block_size": (428, "i"),
    "sub_hdr_size": (432, "i"),
    "bitmap_blocks": (436, "I"),
    "max_mapnr": (440, "I"),
    "total_ram_blocks": (444, "I"),
    "device_blocks": (448, "I"),
    "written_blocks": (452, "I"),
    "current_cpu": (456, "I"),
    "nr_cpus": (460, "i"),
}
SUB_OFFSETS = {
    "phys_base": (0, "q"),
    "dump_level": (8, "i"),
    "split": (12, "i"),
    "start_pfn": (16, "Q"),
    "end_pfn": (24, "Q"),
    "offset_vmcoreinfo": (32, "q"),
    "size_vmcoreinfo": (40, "Q"),
    "offset_note": (48, "q"),
    "size_note": (56, "Q"),
    "offset_eraseinfo": (64, "q"),
    "size_eraseinfo": (72, "Q"),
    "start_pfn_64": (80, "Q"),
    "end_pfn_64": (88, "Q"),
    "max_mapnr_64": (96, "Q"),
}
SUB_SINCE = {  # the header version that brought a field
    "phys_base": 0, "dump_level": 1, "split": 2, "start_pfn": 2, "end_pfn": 2,
    "offset_vmcoreinfo": 3, "size_vmcoreinfo": 3, "offset_note": 4, "size_note": 4,
    "offset_eraseinfo": 5, "size_eraseinfo": 5,
    "start_pfn_64": 6, "end_pfn_64": 6, "max_mapnr_64": 6,
}  # fmt: skip


def main_header(**changes: int) -> MainHeader:
    plain = MainHeader(kdump.SIGNATURE, 6, bytes(390), 0, 0, 0, 4096, 1, 2, 100)
    return plain._replace(**changes)  # type: ignore[arg-type]  # numeric fields only


@pytest.mark.parametrize("name", MAIN_OFFSETS)
def test_main_header_offsets(name: str) -> None:
    """Every field of the main header lies where the C structure has it."""
    offset, code = MAIN_OFFSETS[name]
    packed = MainHeader._make(
        [kdump.SIGNATURE, 1, b"u" * 390, *range(2, len(MainHeader._fields) - 1)]
    ).pack()

    assert len(packed) == 464
    assert packed[:8] == b"KDUMP   "
    assert packed[12:402] == b"u" * 390
    value = struct.unpack_from("<" + code, packed, offset)[0]
    assert value == getattr(MainHeader.parse(packed), name) != 0


@pytest.mark.parametrize("name", SUB_OFFSETS)
def test_sub_header_offsets(name: str) -> None:
    """Every field of the sub header lies where the C structure has it."""
    offset, code = SUB_OFFSETS[name]
    packed = SubHeader._make(range(1, 15)).pack()

    assert len(packed) == 104
    assert struct.unpack_from("<" + code, packed, offset)[0] == SubHeader._fields.index(name) + 1


@pytest.mark.parametrize("version", range(7))
def test_fields_newer_than_the_version_are_zero(version: int) -> None:
    """Bytes behind the fields of the stated version mean nothing."""
    packed = SubHeader._make(range(1, 15)).pack()

    found = SubHeader.parse(packed, version)

    for at, name in enumerate(SubHeader._fields, start=1):
        assert getattr(found, name) == (at if SUB_SINCE[name] <= version else 0)


@settings(deadline=None)
@given(st.tuples(s64, s32, s32, u64, u64, s64, u64, s64, u64, s64, u64, u64, u64, u64))
def test_sub_header_round_trip(fields: tuple[int, ...]) -> None:
    """A sub header survives packing, negative phys_base included."""
    header = SubHeader._make(fields)

    assert SubHeader.parse(header.pack(), 6) == header


@settings(deadline=None)
@given(st.binary(min_size=390, max_size=390), st.tuples(s64, s64, u32, s32, s32, u32, u32))
def test_main_header_round_trip(names: bytes, fields: tuple[int, ...]) -> None:
    """A main header survives packing."""
    header = MainHeader(kdump.SIGNATURE, 6, names, *fields)

    assert MainHeader.parse(header.pack()) == header


def test_page_descriptor_layout() -> None:
    """A descriptor is 24 bytes: offset, size, flags, page_flags."""
    fields = kdump.PAGE_DESC.fields
    assert fields is not None

    assert kdump.PAGE_DESC.itemsize == 24
    assert {name: fields[name][1] for name in fields} == {
        "offset": 0, "size": 8, "flags": 12, "page_flags": 16,
    }  # fmt: skip


@settings(deadline=None)
@given(
    block_size=st.sampled_from([4096, 16384, 65536]),
    max_mapnr=st.integers(1, 2**36),
    notes_size=st.integers(0, 100_000),
    erase_size=st.integers(0, 10_000),
    n_dumped=st.integers(0, 10**9),
)
def test_layout_has_no_gaps_and_no_overlaps(
    block_size: int, max_mapnr: int, notes_size: int, erase_size: int, n_dumped: int
) -> None:
    """Areas follow one another as the format says, each as large as its content needs."""
    layout = KdumpLayout(block_size, max_mapnr, notes_size, n_dumped, erase_size)

    assert layout.sub_header_start == block_size
    assert layout.notes_start == block_size + 104
    end = layout.eraseinfo_start + erase_size
    assert layout.bitmap1_start - block_size < end <= layout.bitmap1_start
    assert layout.bitmap1_start == (1 + layout.sub_hdr_size) * block_size
    assert layout.bitmap_bytes % block_size == 0
    assert 0 <= 8 * layout.bitmap_bytes - max_mapnr < 8 * block_size
    assert layout.bitmap2_start == layout.bitmap1_start + layout.bitmap_bytes
    assert layout.descriptors_start == layout.bitmap2_start + layout.bitmap_bytes
    assert layout.bitmap_blocks * block_size == 2 * layout.bitmap_bytes
    assert layout.data_start == layout.descriptors_start + 24 * n_dumped


def head(**changes: object) -> KdumpHead:
    plain = KdumpHead(
        utsname=utsname(),
        timestamp=1_700_000_000,
        status=0x20,
        block_size=4096,
        max_mapnr=100_000,
        nr_cpus=2,
        phys_base=-(1 << 24),
        dump_level=31,
        notes=b"n" * 5000,
        vmcoreinfo=(3000, 2000),
        eraseinfo=b"erase x size 4\n",
    )
    return replace(plain, **changes)


@pytest.mark.parametrize(
    "changes",
    [{}, {"eraseinfo": b""}, {"notes": b"", "vmcoreinfo": None}, {"max_mapnr": 2**33}],
    ids=["all", "no eraseinfo", "no notes", "more than 32 bits of pfns"],
)
def test_head_agrees_with_the_test_writer(changes: dict[str, object]) -> None:
    """The head equals the one that an independent writer makes from the same facts."""
    mine = head(**changes)
    layout = KdumpLayout(4096, mine.max_mapnr, len(mine.notes), 7, len(mine.eraseinfo))
    other = KdumpWriter(
        max_mapnr=mine.max_mapnr,
        status=mine.status,
        dump_level=mine.dump_level,
        phys_base=mine.phys_base,
        utsname=mine.utsname,
        timestamp=mine.timestamp,
        nr_cpus=mine.nr_cpus,
        notes=mine.notes,
        vmcoreinfo=mine.vmcoreinfo,
        eraseinfo=mine.eraseinfo,
    )

    assert mine.pack(layout) == other.pack_headers()
    assert layout.descriptors_start == other.descriptors_start


def test_head_marked_incomplete() -> None:
    """Only the status word changes, by the bit that crash and makedumpfile know."""
    plain = head()
    layout = KdumpLayout(4096, plain.max_mapnr, 5000, 7, len(plain.eraseinfo))
    one, two = plain.pack(layout), plain.marked_incomplete().pack(layout)

    assert struct.unpack_from("<I", two, 424) == (0x28,)
    assert two[:424] + one[424:428] + two[428:] == one


def test_head_that_does_not_fit_is_refused() -> None:
    """Notes longer than the layout has room for are a mistake of the caller's."""
    with pytest.raises(ValueError, match="larger than the layout"):
        head().pack(KdumpLayout(4096, 100_000, 10, 7))
    with pytest.raises(ValueError, match="not the layout's"):
        head().pack(KdumpLayout(4096, 100_001, 5000, 7))


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("max_mapnr", [64, 65536, 10**6])
def test_word_size_and_byte_order_are_found(bits: int, order: str, max_mapnr: int) -> None:
    """All four kinds of machine are told apart by their headers."""
    writer = KdumpWriter(max_mapnr=max_mapnr, bits=bits, order=order)

    variant = kdump.identify(writer.pack_headers())

    assert variant is not None
    assert (variant.bits, variant.order) == (bits, order)


def test_senseless_header_has_no_variant() -> None:
    """A header of zeros belongs to no machine, nor does one that is cut."""
    assert kdump.identify(kdump.SIGNATURE + bytes(456)) is None
    assert kdump.identify(kdump.SIGNATURE) is None


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"block_size": 4095}, "block_size"),
        ({"block_size": 1 << 20}, "block_size"),
        ({"block_size": -4096}, "block_size"),
        ({"sub_hdr_size": 0}, "sub_hdr_size"),
        ({"sub_hdr_size": -1}, "sub_hdr_size"),
        ({"sub_hdr_size": 1000}, "sub_hdr_size"),
        ({"bitmap_blocks": 0}, "bitmap_blocks"),
    ],
)
def test_impossible_main_header(changes: dict[str, int], field: str) -> None:
    """Sizes that can't be are refused by name, with the byte where they stand."""
    with pytest.raises(FormatError) as caught:
        kdump.check_main_header(main_header(**changes), 1 << 20)

    assert (caught.value.field, caught.value.file_off) == (field, MAIN_OFFSETS[field][0])


def test_bitmaps_too_small_for_max_mapnr() -> None:
    """max_mapnr beyond what the bitmaps hold is a lie about one of them."""
    assert kdump.bitmap_span(main_header(bitmap_blocks=2), 32768) == (4096, True)
    assert kdump.bitmap_span(main_header(bitmap_blocks=2), 32769) == (8192, False)
    with pytest.raises(FormatError, match="bitmap_blocks"):
        kdump.bitmap_span(main_header(bitmap_blocks=2), 65537)


def test_utsname_strings() -> None:
    """The six strings end at their NULs; junk is shown, not raised."""
    assert kdump.utsname_strings(utsname("aarch64", "6.12"))[2:5] == ("6.12", "#1 SMP", "aarch64")
    assert kdump.utsname_strings(b"\xff" * 390)[0] == "\ufffd" * 65
