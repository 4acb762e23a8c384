"""ELF headers: the C layouts, round trips, and what is refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import FormatError, TruncatedError, UnsupportedError
from stages.formats import elf

CLASSES = [(1, 1), (1, 2), (2, 1), (2, 2)]


def form_of(ei_class: int, ei_data: int) -> elf.ElfForm:
    return elf.identify(elf.MAGIC + bytes((ei_class, ei_data)) + bytes(10))


def core_header(**changes: int) -> elf.ElfHeader:
    plain = elf.ElfHeader(
        elf.MAGIC + bytes((2, 1, 1)) + bytes(9), 4, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    return plain._replace(**changes)  # type: ignore[arg-type]  # e_ident is never among them


@pytest.mark.parametrize(
    ("ei_class", "sizes"), [(1, (52, 32, 40)), (2, (64, 56, 64))], ids=["elf32", "elf64"]
)
def test_sizes(ei_class: int, sizes: tuple[int, int, int]) -> None:
    """Structure sizes are those of elf.h, in both byte orders."""
    for ei_data in (1, 2):
        form = form_of(ei_class, ei_data)

        assert (form.ehdr.size, form.phdr.itemsize, form.shdr.size) == sizes


@pytest.mark.parametrize(
    ("ei_class", "offsets"),
    [
        (1, {"p_type": 0, "p_offset": 4, "p_vaddr": 8, "p_paddr": 12, "p_filesz": 16,
             "p_memsz": 20, "p_flags": 24, "p_align": 28}),
        (2, {"p_type": 0, "p_flags": 4, "p_offset": 8, "p_vaddr": 16, "p_paddr": 24,
             "p_filesz": 32, "p_memsz": 40, "p_align": 48}),
    ],
    ids=["elf32", "elf64"],
)  # fmt: skip
def test_program_header_offsets(ei_class: int, offsets: dict[str, int]) -> None:
    """Every field of a program header lies where elf.h puts it."""
    fields = form_of(ei_class, 1).phdr.fields
    assert fields is not None

    assert {name: fields[name][1] for name in fields} == offsets


@settings(deadline=None)
@given(
    kind=st.sampled_from(CLASSES),
    words=st.lists(st.integers(0, 2**32 - 1), min_size=8, max_size=8),
    n_headers=st.integers(1, 5),
)
def test_program_headers_round_trip(
    kind: tuple[int, int], words: list[int], n_headers: int
) -> None:
    """What was packed is parsed again, whatever the word size and byte order."""
    form = form_of(*kind)
    headers = [elf.ProgramHeader._make(words[at:] + words[:at]) for at in range(n_headers)]

    table = elf.pack_program_headers(headers, form)

    size = form.phdr.itemsize
    kinds = tuple(header.p_type for header in headers)
    assert elf.parse_program_headers(table, n_headers, size, form, kinds=kinds) == [
        (at * size, header) for at, header in enumerate(headers)
    ]


@settings(deadline=None)
@given(
    kind=st.sampled_from(CLASSES),
    halves=st.lists(st.integers(0, 2**16 - 1), min_size=8, max_size=8),
    words=st.lists(st.integers(0, 2**32 - 1), min_size=5, max_size=5),
)
def test_elf_header_round_trip(kind: tuple[int, int], halves: list[int], words: list[int]) -> None:
    """An ELF header survives packing."""
    form = form_of(*kind)
    fields = (bytes(16), *halves[:2], *words, *halves[2:])
    header = elf.ElfHeader._make(fields)

    assert elf.ElfHeader.parse(header.pack(form), form) == header


@settings(deadline=None)
@given(
    kind=st.sampled_from(CLASSES),
    words=st.lists(st.integers(0, 2**32 - 1), min_size=10, max_size=10),
)
def test_section_header_round_trip(kind: tuple[int, int], words: list[int]) -> None:
    """A section header survives packing."""
    form = form_of(*kind)
    header = elf.SectionHeader._make(words)

    assert elf.SectionHeader.parse(header.pack(form), form) == header


def test_entry_size_is_honoured() -> None:
    """Program headers may be further apart than they are long."""
    form = elf.ELF64_LE
    header = elf.ProgramHeader(1, 7, 0x1000, 2, 3, 4, 5, 6)
    table = (elf.pack_program_headers([header], form) + bytes(8)) * 2

    found = elf.parse_program_headers(table, 2, 64, form, kinds=(elf.PT_LOAD,))

    assert found == [(0, header), (64, header)]


def test_other_kinds_are_left_out() -> None:
    """Headers that describe neither memory nor notes are not even built."""
    header = elf.ProgramHeader(1, 7, 0x1000, 2, 3, 4, 5, 6)
    table = elf.pack_program_headers(
        [header._replace(p_type=0x6474E551), header, header._replace(p_type=0)], elf.ELF64_LE
    )

    found = elf.parse_program_headers(table, 3, 56, elf.ELF64_LE, kinds=(elf.PT_LOAD,))

    assert found == [(56, header)]


def test_cut_table_says_where() -> None:
    """A table that ends early is an error that names both sizes."""
    with pytest.raises(TruncatedError, match=r"program headers.*cut at 100 bytes.*168 bytes"):
        elf.parse_program_headers(bytes(100), 3, 56, elf.ELF64_LE, kinds=(1,))


@pytest.mark.parametrize(
    ("e_machine", "kind", "name"),
    [
        (62, (2, 1), "x86_64"),
        (183, (2, 1), "aarch64"),
        (243, (2, 1), "riscv64"),
        (22, (2, 2), "s390x"),
        (21, (2, 1), "ppc64le"),
        (21, (2, 2), "ppc64"),
        (3, (1, 1), "i686"),
        (40, (1, 1), "arm"),
        (258, (2, 1), "loongarch64"),
        (9999, (2, 1), "unknown"),
    ],
)
def test_machine_names(e_machine: int, kind: tuple[int, int], name: str) -> None:
    """Architectures are called what `uname -m` calls them."""
    assert elf.machine_name(e_machine, form_of(*kind)) == name


def test_bad_class_is_refused() -> None:
    """A file of neither word size is no ELF file."""
    with pytest.raises(FormatError, match="EI_CLASS"):
        elf.identify(elf.MAGIC + b"\3\1" + bytes(10))


def test_executables_are_refused() -> None:
    """An ELF file that is no core is recognised, and refused as what it is."""
    with pytest.raises(UnsupportedError, match="type 2, wanted 4"):
        elf.check_header(core_header(e_type=2), elf.ELF64_LE)


@pytest.mark.parametrize(
    ("field", "value", "file_off"), [("e_phoff", 63, 32), ("e_phentsize", 55, 54)]
)
def test_impossible_table_is_refused(field: str, value: int, file_off: int) -> None:
    """The error points at the byte where the bad field stands."""
    header = core_header(**{field: value})
    packed = header.pack(elf.ELF64_LE)

    with pytest.raises(FormatError) as caught:
        elf.check_header(header, elf.ELF64_LE)

    assert (caught.value.field, caught.value.file_off) == (field, file_off)
    size = {"e_phoff": "<Q", "e_phentsize": "<H"}[field]
    assert struct.unpack_from(size, packed, file_off) == (value,)
