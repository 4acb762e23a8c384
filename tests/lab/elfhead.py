"""ELF headers of vmcores: read, written, and moved to where makedumpfile expects them.

QEMU puts section headers first, so its program headers start at 192, and it writes e_ehsize = 8:

    0 ELF header | 64 section headers | 192 program headers | notes | memory

makedumpfile ignores e_phoff and looks for program headers right behind the ELF header.  Its layout
fits into the same bytes, so nothing behind the headers moves:

    0 ELF header | 64 program headers | unused | notes | memory
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from tests.lab.commands import LabError

if TYPE_CHECKING:
    from pathlib import Path

ELF_MAGIC = b"\x7fELF"
ET_CORE = 4
EM_X86_64 = 62
PT_LOAD = 1
PT_NOTE = 4
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
PROGRAM_HEADER_SIZE = _PHDR.size


class ProgramHeader(NamedTuple):
    """An Elf64_Phdr, field by field."""

    p_type: int
    p_flags: int
    p_offset: int
    p_vaddr: int
    p_paddr: int
    p_filesz: int
    p_memsz: int
    p_align: int


def read_program_headers(path: Path) -> list[ProgramHeader]:
    """Reads the program headers from where e_phoff says they are.

    Raises:
        LabError: not a little-endian ELF64 core file.
    """
    with path.open("rb") as file:
        head = file.read(_EHDR.size)
        if len(head) < _EHDR.size or head[:6] != ELF_MAGIC + b"\x02\x01":
            raise LabError(f"{path}: not a little-endian ELF64 file")
        fields = _EHDR.unpack(head)
        e_type, e_phoff, e_phnum = fields[1], fields[5], fields[10]
        if e_type != ET_CORE:
            raise LabError(f"{path}: e_type is {e_type}, not a core file")
        file.seek(e_phoff)
        table = file.read(e_phnum * _PHDR.size)
    return [ProgramHeader._make(fields) for fields in _PHDR.iter_unpack(table)]


def pack_headers(headers: list[ProgramHeader], machine: int = EM_X86_64) -> bytes:
    """An ELF header with the program headers right behind it."""
    ident = ELF_MAGIC + bytes((2, 1, 1)) + bytes(9)
    sizes = (_EHDR.size, _PHDR.size, len(headers), 0, 0, 0)
    head = _EHDR.pack(ident, ET_CORE, machine, 1, 0, _EHDR.size, 0, 0, *sizes)
    return head + b"".join(_PHDR.pack(*header) for header in headers)


def normalise(path: Path) -> None:
    """Gives a file the layout that makedumpfile expects, in place."""
    headers = read_program_headers(path)
    packed = pack_headers(headers)
    if len(packed) > min(header.p_offset for header in headers):
        raise LabError(f"{path}: no room for the program headers behind the ELF header")
    with path.open("r+b") as file:
        file.write(packed)


def read_note(path: Path) -> bytes:
    """The contents of the PT_NOTE segment (the first, should there be more)."""
    for header in read_program_headers(path):
        if header.p_type == PT_NOTE:
            with path.open("rb") as file:
                file.seek(header.p_offset)
                return file.read(header.p_filesz)
    raise LabError(f"{path}: no PT_NOTE")
