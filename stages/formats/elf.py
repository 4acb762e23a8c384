"""ELF core files: the headers of 64- and 32-bit images in both byte orders.

References:
    System V gABI, chapters 4 and 5; elf(5); include/uapi/linux/elf.h

Headers are found through their offsets, never by position (QEMU puts section headers first)::

    0        ELF header           e_phoff, e_phnum (PN_XNUM: the count is section 0's sh_info)
    e_phoff  program headers      PT_NOTE: notes;  PT_LOAD: memory [p_paddr, p_paddr + p_memsz)
    p_offset the segment's bytes  p_filesz of them; p_memsz beyond that was not saved, or is zero
"""

from __future__ import annotations

import struct
from typing import Final, Literal, NamedTuple, TypeAlias

import numpy as np
from msgspec import Struct

from pipeline.errors import FormatError, TruncatedError, UnsupportedError

Buffer: TypeAlias = bytes | bytearray | memoryview
ByteOrder: TypeAlias = Literal["<", ">"]

MAGIC: Final = b"\x7fELF"
EI_NIDENT: Final = 16
ET_CORE: Final = 4
PT_LOAD: Final = 1
PT_NOTE: Final = 4
PN_XNUM: Final = 0xFFFF
EF_INCOMPLETE: Final = 1
"""e_flags bit that makedumpfile sets in an ELF dump it could not finish."""

_NAMES: Final = {
    3: "i686",
    8: "mips",
    20: "ppc",
    21: "ppc64",
    22: "s390",
    40: "arm",
    62: "x86_64",
    183: "aarch64",
    243: "riscv",
    258: "loongarch",
}


class ElfForm(Struct, frozen=True):
    """Word size and byte order of a file, and the layouts that follow from them."""

    bits: int
    order: ByteOrder
    ehdr: struct.Struct
    phdr: np.dtype[np.void]
    shdr: struct.Struct

    @property
    def ones(self) -> int:
        """All ones in the file's word size: no p_paddr, or no p_offset."""
        return (1 << self.bits) - 1


def _form(bits: int, order: ByteOrder) -> ElfForm:
    word = {64: "Q", 32: "I"}[bits]
    # Elf64_Phdr has p_flags second, so that words are aligned; Elf32_Phdr has it last but one.
    names = ["p_offset", "p_vaddr", "p_paddr", "p_filesz", "p_memsz"]
    names = ["p_type", "p_flags", *names] if bits == 64 else ["p_type", *names, "p_flags"]
    sizes = [order + ("u4" if name in {"p_type", "p_flags"} else f"u{bits // 8}") for name in names]
    columns = [*zip(names, sizes, strict=True), ("p_align", f"{order}u{bits // 8}")]
    return ElfForm(
        bits=bits,
        order=order,
        ehdr=struct.Struct(f"{order}16sHHI{word}{word}{word}IHHHHHH"),
        phdr=np.dtype(columns),
        shdr=struct.Struct(f"{order}II{word}{word}{word}{word}II{word}{word}"),
    )


_FORMS: Final = {
    (1, 1): _form(32, "<"),
    (1, 2): _form(32, ">"),
    (2, 1): _form(64, "<"),
    (2, 2): _form(64, ">"),
}
ELF64_LE: Final = _FORMS[2, 1]


def identify(head: Buffer) -> ElfForm:
    """Form of the file that starts with `head`, which has the magic and 16 bytes at least.

    Raises:
        FormatError: EI_CLASS or EI_DATA is none of the defined values.
    """
    form = _FORMS.get((head[4], head[5]))
    if form is None:
        raise FormatError("elf", 4, "EI_CLASS, EI_DATA", tuple(head[4:6]), "1 or 2 each")
    return form


def machine_name(e_machine: int, form: ElfForm) -> str:
    """The kernel's own name of the architecture, as in utsname.machine, or ``unknown``."""
    name = _NAMES.get(e_machine, "unknown")
    match name:
        case "riscv" | "loongarch" | "mips":
            return f"{name}{form.bits}" if (name, form.bits) != ("mips", 32) else name
        case "s390":
            return "s390x" if form.bits == 64 else name
        case "ppc64":
            return "ppc64le" if form.order == "<" else name
    return name


class ElfHeader(NamedTuple):
    """Elf64_Ehdr or Elf32_Ehdr."""

    e_ident: bytes
    e_type: int
    e_machine: int
    e_version: int
    e_entry: int
    e_phoff: int  # byte in the file
    e_shoff: int
    e_flags: int
    e_ehsize: int  # QEMU 7.2 writes 8 here: never used
    e_phentsize: int
    e_phnum: int
    e_shentsize: int
    e_shnum: int
    e_shstrndx: int

    @classmethod
    def parse(cls, buf: Buffer, form: ElfForm) -> ElfHeader:
        return cls._make(form.ehdr.unpack_from(buf))

    def pack(self, form: ElfForm) -> bytes:
        return form.ehdr.pack(*self)


class ProgramHeader(NamedTuple):
    """Elf64_Phdr or Elf32_Phdr, in the order of the former."""

    p_type: int
    p_flags: int
    p_offset: int
    p_vaddr: int
    p_paddr: int
    p_filesz: int
    p_memsz: int
    p_align: int


class SectionHeader(NamedTuple):
    """Elf64_Shdr or Elf32_Shdr; only number 0 is used, when PN_XNUM is."""

    sh_name: int
    sh_type: int
    sh_flags: int
    sh_addr: int
    sh_offset: int
    sh_size: int  # e_shnum, in section 0
    sh_link: int
    sh_info: int  # number of program headers, in section 0
    sh_addralign: int
    sh_entsize: int

    @classmethod
    def parse(cls, buf: Buffer, form: ElfForm) -> SectionHeader:
        return cls._make(form.shdr.unpack_from(buf))

    def pack(self, form: ElfForm) -> bytes:
        return form.shdr.pack(*self)


def check_header(header: ElfHeader, form: ElfForm) -> None:
    """Refuse a header whose program headers can't be found.

    Raises:
        UnsupportedError: an ELF file, but not a core file.
        FormatError: e_phoff or e_phentsize is impossible.
    """
    if header.e_type != ET_CORE:
        raise UnsupportedError(
            f"not a memory image: an ELF file of type {header.e_type}, wanted {ET_CORE} (core)"
        )
    # Offsets of both fields: behind 16 + 2 + 2 + 4 bytes and e_entry; last but five halfwords.
    if header.e_phoff < form.ehdr.size:
        off = 24 + form.bits // 8
        raise FormatError("elf", off, "e_phoff", header.e_phoff, f"{form.ehdr.size} or more")
    if header.e_phentsize < form.phdr.itemsize:
        off = form.ehdr.size - 10
        wanted = f"{form.phdr.itemsize} or more"
        raise FormatError("elf", off, "e_phentsize", header.e_phentsize, wanted)


def parse_program_headers(
    table: Buffer, n_headers: int, entry_size: int, form: ElfForm, *, kinds: tuple[int, ...]
) -> list[tuple[int, ProgramHeader]]:
    """Those of `n_headers` program headers whose p_type is in `kinds`, and where they stand.

    Args:
        table: starts with the first header.
        n_headers: how many there are.
        entry_size: bytes from one header to the next.
        form: of the file.
        kinds: p_type values; headers of other kinds cost nothing.

    Returns:
        (byte in `table`, header) pairs in file order.

    Raises:
        TruncatedError: `table` is shorter.
    """
    n_bytes = n_headers * entry_size
    if len(table) < n_bytes:
        raise TruncatedError("elf", 0, "program headers", n_bytes, len(table))
    fields = form.phdr.fields
    assert fields is not None
    names = ProgramHeader._fields
    spaced = np.dtype(
        {
            "names": names,
            "formats": [fields[name][0] for name in names],
            "offsets": [fields[name][1] for name in names],
            "itemsize": entry_size,
        }
    )
    rows = np.frombuffer(table, dtype=spaced, count=n_headers)
    chosen = np.flatnonzero(np.isin(rows["p_type"], kinds))
    columns = [rows[name][chosen].tolist() for name in names]
    headers = (ProgramHeader._make(values) for values in zip(*columns, strict=True))
    return list(zip((chosen * entry_size).tolist(), headers, strict=True))


def pack_program_headers(headers: list[ProgramHeader], form: ElfForm) -> bytes:
    """The table as it stands in a file, entries without gaps."""
    table = np.zeros(len(headers), dtype=form.phdr)
    for name, column in zip(ProgramHeader._fields, zip(*headers, strict=True), strict=False):
        table[name] = column
    return table.tobytes()
