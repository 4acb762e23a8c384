"""Where everything of an ELF dump lies, and its head.

Program headers come right behind the ELF header: makedumpfile looks nowhere else. Room is reserved
for as many as there may be, and what is not needed stays PT_NULL::

    0        ELF header, PT_NOTE                      HEAD
    head     PT_LOADs, appended as pages are written  DESCRIPTORS
    data     [section header 0], notes                DATA, as are the
    pages    pages, packed                            pages themselves
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from stages.formats.elf import (
    EF_INCOMPLETE,
    EI_NIDENT,
    ET_CORE,
    MAGIC,
    PN_XNUM,
    PT_NOTE,
    ElfForm,
    ElfHeader,
    ProgramHeader,
    SectionHeader,
    pack_program_headers,
)

_EV_CURRENT: Final = 1
_WORD: Final = 8


class ElfLayout(Struct, frozen=True):
    """Attributes:
    n_slots: program headers that there is room for, PT_NOTE not counted.
    """

    form: ElfForm
    e_machine: int
    page_size: int
    n_slots: int
    notes_size: int

    @property
    def is_extended(self) -> bool:
        """More headers than e_phnum can say: section header 0 does."""
        return self.n_slots + 1 >= PN_XNUM

    @property
    def table_start(self) -> int:
        """The first PT_LOAD."""
        return self.form.ehdr.size + self.form.phdr.itemsize

    @property
    def data_start(self) -> int:
        return self._whole_pages(self.table_start + self.n_slots * self.form.phdr.itemsize)

    @property
    def notes_start(self) -> int:
        return self.data_start + (self.form.shdr.size if self.is_extended else 0)

    @property
    def pages_start(self) -> int:
        """Never aligned to pages, as in makedumpfile's own ELF dumps.

        makedumpfile 1.7.8 maps what is aligned, and crashes where segments are short: it unmaps
        what it has unmapped before.
        """
        start = -(-(self.notes_start + self.notes_size) // _WORD) * _WORD
        return start if start % self.page_size else start + _WORD

    def _whole_pages(self, n_bytes: int) -> int:
        return -(-n_bytes // self.page_size) * self.page_size

    def pack_head(self, n_loads: int, *, incomplete: bool) -> bytes:
        """ELF header and PT_NOTE; `n_loads` program headers follow."""
        form = self.form
        extended = self.is_extended
        header = ElfHeader(
            e_ident=self._ident(),
            e_type=ET_CORE,
            e_machine=self.e_machine,
            e_version=_EV_CURRENT,
            e_entry=0,
            e_phoff=form.ehdr.size,
            e_shoff=self.data_start if extended else 0,
            e_flags=EF_INCOMPLETE if incomplete else 0,
            e_ehsize=form.ehdr.size,
            e_phentsize=form.phdr.itemsize,
            e_phnum=PN_XNUM if extended else n_loads + 1,
            e_shentsize=form.shdr.size if extended else 0,
            e_shnum=1 if extended else 0,
            e_shstrndx=0,
        )
        size = self.notes_size
        note = ProgramHeader(PT_NOTE, 0, self.notes_start, 0, 0, size, size, 0)
        return header.pack(form) + pack_program_headers([note], form)

    def _ident(self) -> bytes:
        bits, order = self.form.bits, self.form.order
        fields = MAGIC + bytes((bits // 32, 1 if order == "<" else 2, _EV_CURRENT))
        return fields.ljust(EI_NIDENT, b"\0")

    def pack_front(self, notes: bytes) -> bytes:
        """From `data_start` up to the pages."""
        front = b""
        if self.is_extended:
            # Counts every slot: those that stay empty are PT_NULL.
            front = SectionHeader(0, 0, 0, 0, 0, 1, 0, self.n_slots + 1, 0, 0).pack(self.form)
        return (front + notes).ljust(self.pages_start - self.data_start, b"\0")
