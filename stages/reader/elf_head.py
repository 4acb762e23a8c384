"""Read what an ELF core says about itself: its headers, and its notes."""

from __future__ import annotations

from typing import Final

from pipeline.errors import FormatError, TruncatedError
from stages.formats.elf import (
    EF_INCOMPLETE,
    PN_XNUM,
    PT_LOAD,
    PT_NOTE,
    ElfForm,
    ElfHeader,
    ProgramHeader,
    SectionHeader,
    check_header,
    identify,
    machine_name,
    parse_program_headers,
)
from stages.formats.notes import NoteFacts, summarize_notes
from stages.formats.vmcoreinfo import VmcoreInfo
from stages.reader.file_io import ImageFile
from stages.reader.image import ImageInfo, LoadSegment
from stages.reader.pieces import MAX_OFF

DEFAULT_PAGE_SIZE: Final = 4096
MAX_HEADERS: Final = 1 << 18
"""Program headers; makedumpfile's ELF dumps have one for each gap of 1 MiB or more."""
MAX_HEADER_BYTES: Final = MAX_HEADERS * 64
"""Of a table of them; an entry has 56 bytes, or 32."""
_PADDR_BITS: Final = {"riscv64": 56}
_USUAL_PADDR_BITS: Final = 52
"""What the architectures define: x86_64 and aarch64 have 52 bits, and Linux uses no more of any
other but riscv64 (MAX_PHYSMEM_BITS)."""
MAX_MEMORY: Final = 1 << 48
"""Bytes of RAM, wherever they are: four times what the largest machines have. A bitmap takes memory
by the RAM there is, not by where it lies."""
MAX_NOTE_BYTES: Final = 64 << 20
"""8192 CPUs need 12 MiB; drivers may add dumps of their devices."""
MAX_NOTE_SEGMENTS: Final = 64
NO_OFFSET: Final = (1 << 64) - 1
"""`LoadSegment.file_off` of a load whose memory the writer left out, whatever the word size."""


def read_elf_head(file: ImageFile) -> ImageInfo:
    """Everything but the pages.

    Raises:
        FormatError: a header has an impossible value.
        TruncatedError: the file ends inside its headers.
        UnsupportedError: an ELF file, but not a core file.
        OSError: the device failed.
    """
    head = file.read(0, 64)
    form = identify(head.ljust(16, b"\0"))
    if len(head) < form.ehdr.size:
        raise TruncatedError("elf", 0, "ELF header", form.ehdr.size, len(head))
    header = ElfHeader.parse(head, form)
    check_header(header, form)
    headers = _read_program_headers(file, header, form)
    facts, notes, problem = _read_notes(file, headers, form)
    machine = machine_name(header.e_machine, form)
    is_marked = bool(header.e_flags & EF_INCOMPLETE)
    if is_marked:
        problem = problem or "marked incomplete by its writer"
    return ImageInfo(
        form="elf",
        machine=machine,
        page_size=page_size_of(facts.vmcoreinfo) or DEFAULT_PAGE_SIZE,
        notes=notes,
        vmcoreinfo=facts.vmcoreinfo,
        vmcoreinfo_off=facts.vmcoreinfo_off,
        nr_cpus=facts.nr_cpus,
        loads=_loads(headers, form, paddr_end(machine)),
        elf=(form, header.e_machine),
        made_by="qemu" if facts.has_qemu else None,
        eraseinfo=facts.eraseinfo,
        incomplete=file.incomplete or problem,
        has_lost_pages=is_marked or file.incomplete is not None,
    )


def page_size_of(vmcoreinfo: bytes | None) -> int | None:
    """PAGESIZE as the kernel states it; None without VMCOREINFO, or when it makes no sense."""
    if vmcoreinfo is None:
        return None
    try:
        return VmcoreInfo.parse(vmcoreinfo).page_size
    except FormatError:
        return None


def paddr_end(machine: str) -> int:
    """Below this all physical addresses of the architecture are."""
    return 1 << _PADDR_BITS.get(machine, _USUAL_PADDR_BITS)


def _loads(
    headers: list[tuple[int, ProgramHeader]], form: ElfForm, paddr_end: int
) -> list[LoadSegment]:
    """All PT_LOADs.

    Raises:
        FormatError: memory or file bytes where there can't be any, or more than any machine has.
    """
    loads: list[LoadSegment] = []
    left = 2 * MAX_MEMORY  # the kernel's text is described twice
    for at, phdr in headers:
        if phdr.p_type != PT_LOAD:
            continue
        load = _load(at, phdr, form, paddr_end)
        if load.paddr is not None:
            left -= load.mem_size
        if left < 0 or (load.mem_size > MAX_MEMORY and load.paddr is not None):
            assert form.phdr.fields is not None
            off = at + form.phdr.fields["p_memsz"][1]
            wanted = f"at most {MAX_MEMORY:#x} in all"
            raise FormatError("elf", off, "p_memsz", phdr.p_memsz, wanted)
        loads.append(load)
    return loads


def _load(at: int, phdr: ProgramHeader, form: ElfForm, paddr_end: int) -> LoadSegment:
    """The load that the program header at byte `at` of the file describes.

    Raises:
        FormatError: memory or file bytes where there can't be any.
    """
    fields = form.phdr.fields
    assert fields is not None
    left_out = phdr.p_offset == form.ones
    file_size = 0 if left_out else min(phdr.p_filesz, phdr.p_memsz)
    has_paddr = phdr.p_paddr != form.ones
    if has_paddr and phdr.p_paddr + phdr.p_memsz > paddr_end:
        wanted = f"an end below {paddr_end:#x} for p_paddr {phdr.p_paddr:#x}"
        raise FormatError("elf", at + fields["p_memsz"][1], "p_memsz", phdr.p_memsz, wanted)
    if has_paddr and file_size and phdr.p_offset + file_size > MAX_OFF:
        wanted = f"less than {MAX_OFF:#x}"
        raise FormatError("elf", at + fields["p_offset"][1], "p_offset", phdr.p_offset, wanted)
    return LoadSegment(
        paddr=phdr.p_paddr if has_paddr else None,
        vaddr=phdr.p_vaddr,
        mem_size=phdr.p_memsz,
        file_off=NO_OFFSET if left_out else phdr.p_offset,
        file_size=file_size,
    )


def _read_program_headers(
    file: ImageFile, header: ElfHeader, form: ElfForm
) -> list[tuple[int, ProgramHeader]]:
    """PT_LOADs and PT_NOTEs, each with the byte of the file where its header starts."""
    n_headers = header.e_phnum
    if n_headers == PN_XNUM:
        n_headers = _extended_count(file, header, form)
    size, start = header.e_phentsize, header.e_phoff
    if n_headers > MAX_HEADERS:
        wanted = f"at most {MAX_HEADERS}"
        raise FormatError("elf", None, "number of program headers", n_headers, wanted)
    if n_headers * size > MAX_HEADER_BYTES:
        wanted = f"{MAX_HEADER_BYTES // n_headers} at most for {n_headers} headers"
        raise FormatError("elf", form.ehdr.size - 10, "e_phentsize", size, wanted)
    table = file.read(start, n_headers * size)
    if len(table) < n_headers * size:
        end = start + len(table)
        raise TruncatedError("elf", start, "program headers", n_headers * size, end)
    found = parse_program_headers(table, n_headers, size, form, kinds=(PT_LOAD, PT_NOTE))
    return [(start + at, phdr) for at, phdr in found]


def _extended_count(file: ImageFile, header: ElfHeader, form: ElfForm) -> int:
    """sh_info of section header 0, where more than 16 bits of headers are counted."""
    if header.e_shoff == 0:
        off = 40 if form.bits == 64 else 32
        raise FormatError("elf", off, "e_shoff", 0, "where section header 0 is")
    raw = file.read(header.e_shoff, form.shdr.size)
    if len(raw) < form.shdr.size:
        end = header.e_shoff + len(raw)
        raise TruncatedError("elf", header.e_shoff, "section header 0", form.shdr.size, end)
    return SectionHeader.parse(raw, form).sh_info


def _read_notes(
    file: ImageFile, headers: list[tuple[int, ProgramHeader]], form: ElfForm
) -> tuple[NoteFacts, bytes, str | None]:
    """What all PT_NOTEs say, the bytes of the first, and what is wrong with them, if anything."""
    facts = NoteFacts()
    first: bytes | None = None
    problem: str | None = None
    n_left = MAX_NOTE_BYTES
    segments = [phdr for _, phdr in headers if phdr.p_type == PT_NOTE]
    for phdr in segments[:MAX_NOTE_SEGMENTS]:
        blob = file.read(phdr.p_offset, min(phdr.p_filesz, n_left))
        n_left -= len(blob)
        if len(blob) < phdr.p_filesz:
            problem = f"{len(blob)} of {phdr.p_filesz} bytes of notes are there"
        found = summarize_notes(blob, form.order)
        if first is None:
            facts, first = found, blob
        else:
            facts.absorb(found)
    return facts, first or b"", problem
