"""Build ELF core files in memory, including ones that lie about themselves.

The file is laid out as makedumpfile and the kernel do, unless told otherwise::

    ELF header | program headers: PT_NOTE, PT_LOADs | [section header 0] | notes | data, packed

Memory is self-describing: every 8-byte word of a `described` page holds its own physical address
with the top bit set, so a page that turns up in the wrong place tells where it came from.

    VmcoreWriter().load(paddr=0x100000, data=described(0x100, 16)).note("CORE", 1, regs).write(path)
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import numpy as np

PAGE: Final = 4096
EM_386: Final = 3
EM_S390: Final = 22
EM_X86_64: Final = 62
EM_AARCH64: Final = 183
ET_CORE: Final = 4
PT_LOAD: Final = 1
PT_NOTE: Final = 4
PN_XNUM: Final = 0xFFFF
NO_ADDRESS: Final = (1 << 64) - 1
"""All ones: what p_paddr and p_offset hold when there is none."""

_EHDR: Final = {64: "16sHHIQQQIHHHHHH", 32: "16sHHIIIIIHHHHHH"}
_PHDR: Final = {64: "IIQQQQQQ", 32: "IIIIIIII"}
_SHDR: Final = {64: "IIQQQQIIQQ", 32: "IIIIIIIIII"}


def described(first_pfn: int, n_pages: int = 1, page_size: int = PAGE) -> bytes:
    """Pages `first_pfn` and following, each word being its own physical address with bit 63 set."""
    start = first_pfn * page_size
    words = np.arange(start, start + n_pages * page_size, 8, dtype="<u8")
    return (words | np.uint64(1 << 63)).tobytes()


def prstatus(pid: int = 1) -> bytes:
    """An x86_64 elf_prstatus, 336 bytes, of a task that was in no hurry."""
    return struct.pack("<32xI", pid) + bytes(336 - 36)


@dataclass
class _Load:
    p_paddr: int
    p_vaddr: int
    p_memsz: int
    p_filesz: int
    p_offset: int | None
    p_flags: int
    data: bytes


@dataclass
class VmcoreWriter:
    """Collects loads and notes in file order; `pack` and `write` may be called repeatedly.

    Attributes:
        machine: e_machine; `bits` and `order` are independent of it.
        extended: PN_XNUM numbering, the count in sh_info of section header 0.
        headers_at: e_phoff; bytes between the ELF header and it are zero.
        data_align: every load's data starts at a multiple of this.
        lies: fields of the ELF header to overwrite by name after all is computed.
    """

    machine: int = EM_X86_64
    bits: Literal[32, 64] = 64
    order: Literal["<", ">"] = "<"
    e_type: int = ET_CORE
    e_flags: int = 0
    extended: bool = False
    headers_at: int | None = None
    data_align: int = 1
    lies: dict[str, int] = field(default_factory=dict)
    _loads: list[_Load] = field(default_factory=list, init=False)
    _notes: list[bytearray] = field(default_factory=lambda: [bytearray()], init=False)

    def load(
        self,
        *,
        paddr: int | None,
        data: bytes = b"",
        mem_size: int | None = None,
        vaddr: int | None = None,
        file_size: int | None = None,
        file_off: int | None = None,
        flags: int = 7,
    ) -> VmcoreWriter:
        """A PT_LOAD of `data`; `file_size` may lie about it.

        Args:
            paddr: None for a load without a physical address.
            file_off: where `data` goes instead of behind the previous load's; with no `data`, any
                p_offset at all (bytes shared with another load, lies).
        """
        address = self._ones if paddr is None else paddr
        self._loads.append(
            _Load(
                p_paddr=address,
                p_vaddr=address if vaddr is None else vaddr,
                p_memsz=len(data) if mem_size is None else mem_size,
                p_filesz=len(data) if file_size is None else file_size,
                p_offset=file_off,
                p_flags=flags,
                data=data,
            )
        )
        return self

    def note(self, name: str, note_type: int, desc: bytes) -> VmcoreWriter:
        """A note in the current PT_NOTE, name and desc padded to 4 as the kernel does."""
        self._notes[-1] += pack_note(name, note_type, desc, order=self.order)
        return self

    def raw_notes(self, blob: bytes) -> VmcoreWriter:
        """Bytes to stand in the current PT_NOTE as they are: zero headers, lies."""
        self._notes[-1] += blob
        return self

    def next_note_segment(self) -> VmcoreWriter:
        """Notes from here on go into one more PT_NOTE."""
        self._notes.append(bytearray())
        return self

    def vmcoreinfo(self, text: str) -> VmcoreWriter:
        return self.note("VMCOREINFO", 0, text.encode())

    @property
    def _ones(self) -> int:
        return (1 << self.bits) - 1

    @property
    def header_bytes(self) -> int:
        """Where the notes start: the end of all headers."""
        n_sections = 1 if self.extended else 0
        return (
            self._phoff
            + len(self._headers(0)) * struct.calcsize(self.order + _PHDR[self.bits])
            + n_sections * struct.calcsize(self.order + _SHDR[self.bits])
        )

    @property
    def _phoff(self) -> int:
        size = struct.calcsize(self.order + _EHDR[self.bits])
        return size if self.headers_at is None else self.headers_at

    def _headers(self, first_off: int) -> list[tuple[int, _Load]]:
        """(p_type, fields) of every program header, data placed from `first_off` on."""
        out: list[tuple[int, _Load]] = []
        offset = first_off
        for blob in self._notes:
            if blob:
                out.append((PT_NOTE, _Load(0, 0, 0, len(blob), offset, 0, bytes(blob))))
                offset += len(blob)
        for load in self._loads:
            offset = -(-offset // self.data_align) * self.data_align
            at = load.p_offset
            if at is None:
                at, offset = offset, offset + len(load.data)
            placed = _Load(**{**load.__dict__, "p_offset": at})
            out.append((PT_LOAD, placed))
        return out

    def _pack_program_header(self, p_type: int, load: _Load) -> bytes:
        assert load.p_offset is not None
        ones = self._ones
        where = [load.p_offset & ones, load.p_vaddr & ones, load.p_paddr & ones]
        sizes = [load.p_filesz & ones, load.p_memsz & ones]
        fields = (
            [p_type, load.p_flags, *where, *sizes, 0]
            if self.bits == 64
            else [p_type, *where, *sizes, load.p_flags, 0]
        )
        return struct.pack(self.order + _PHDR[self.bits], *fields)

    def _pack_elf_header(self, n_headers: int) -> bytes:
        sizes = [struct.calcsize(self.order + form[self.bits]) for form in (_EHDR, _PHDR, _SHDR)]
        e_shoff = self._phoff + n_headers * sizes[1] if self.extended else 0
        fields = {
            "e_type": self.e_type,
            "e_machine": self.machine,
            "e_version": 1,
            "e_entry": 0,
            "e_phoff": self._phoff,
            "e_shoff": e_shoff,
            "e_flags": self.e_flags,
            "e_ehsize": sizes[0],
            "e_phentsize": sizes[1],
            "e_phnum": PN_XNUM if self.extended else n_headers,
            "e_shentsize": sizes[2] if self.extended else 0,
            "e_shnum": 1 if self.extended else 0,
            "e_shstrndx": 0,
        }
        assert set(self.lies) <= {*fields, "sh_info"}, self.lies
        fields |= {name: value for name, value in self.lies.items() if name != "sh_info"}
        ident = b"\x7fELF" + bytes((self.bits // 32, 1 if self.order == "<" else 2, 1)) + bytes(9)
        return struct.pack(self.order + _EHDR[self.bits], ident, *fields.values())

    def pieces(self) -> list[tuple[int, bytes]]:
        """(file offset, bytes) of everything there is to write; gaps between them are zero."""
        headers = self._headers(self.header_bytes)
        table = b"".join(self._pack_program_header(*header) for header in headers)
        if self.extended:
            sh_info = self.lies.get("sh_info", len(headers))
            fields = [0, 0, 0, 0, 0, 1, 0, sh_info, 0, 0]
            table += struct.pack(self.order + _SHDR[self.bits], *fields)
        out = [(0, self._pack_elf_header(len(headers))), (self._phoff, table)]
        for _, load in headers:
            if load.data:
                assert load.p_offset is not None
                out.append((load.p_offset, load.data))
        return out

    def pack(self) -> bytes:
        """The whole file."""
        pieces = self.pieces()
        out = bytearray(max(offset + len(data) for offset, data in pieces))
        for offset, data in pieces:
            out[offset : offset + len(data)] = data
        return bytes(out)

    def write(self, path: Path, *, cut_at: int | None = None, holes: bool = False) -> Path:
        """Write the file to `path`, and give `path` back.

        Args:
            cut_at: keep only so many bytes, as a full disk would.
            holes: leave 64 KiB-aligned runs of zero bytes out of the file.
        """
        blob = self.pack()[:cut_at]
        if not holes:
            path.write_bytes(blob)
            return path
        step = 1 << 16
        with path.open("wb") as file:
            for offset in range(0, len(blob), step):
                part = blob[offset : offset + step]
                if part.strip(b"\0"):
                    file.seek(offset)
                    file.write(part)
            file.truncate(len(blob))
        return path


def pack_note(name: str, note_type: int, desc: bytes, *, order: str = "<") -> bytes:
    """One ELF note; the name gets its NUL, both parts are padded to 4 bytes."""
    label = name.encode() + b"\0"
    head = struct.pack(order + "III", len(label), len(desc), note_type)
    return head + label + bytes(-len(label) % 4) + desc + bytes(-len(desc) % 4)
