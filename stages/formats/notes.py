"""ELF notes of a vmcore: what is in them, and where.

References:
    System V gABI, "Note Section"; include/linux/elfcore.h; fs/proc/vmcore.c

All words are 4 bytes and padding is to 4, in 64-bit files too::

    namesz | descsz | type | name, NUL included, padded | desc, padded | next note ...

The kernel reserves room for each CPU and leaves unused room zero, so zero words between notes are
skipped. A note that runs past the end ends the list.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from stages.formats.elf import ByteOrder

NT_PRSTATUS: Final = 1
NT_VMCOREINFO: Final = 0
NT_ERASEINFO: Final = 0
XEN_ELFNOTE_CRASH_INFO: Final = 0x1000001
MAX_NOTES: Final = 1 << 18
"""Far above 8192 CPUs with a few notes each; keeps hostile input from costing seconds."""

_HEADER: Final = {order: struct.Struct(f"{order}III") for order in ("<", ">")}
_NOT_ZERO: Final = re.compile(rb"[^\0]")
# sizeof(struct elf_prstatus) where it tells little-endian architectures apart.
_MACHINE_OF_PRSTATUS: Final = {336: "x86_64", 392: "aarch64", 376: "riscv64"}


class Note(Struct, frozen=True):
    """One note; `desc_off` is relative to the bytes that were walked."""

    name: bytes  # without its NUL
    type: int
    desc_off: int
    desc_size: int


class NoteFacts(Struct):
    """What the notes of an image say about it. The first note of a kind wins."""

    nr_cpus: int = 0
    """`CORE` NT_PRSTATUS notes."""
    vmcoreinfo: bytes | None = None
    vmcoreinfo_off: int | None = None
    """Where the descriptor of VMCOREINFO starts."""
    eraseinfo: bytes = b""
    vmcoreinfo_xen: bytes | None = None
    xen_crash_info: bytes | None = None
    has_qemu: bool = False
    machine: str | None = None
    """Little-endian 64-bit architecture that the size of NT_PRSTATUS belongs to."""

    def absorb(self, later: NoteFacts) -> None:
        """Add what one more PT_NOTE says; offsets stay those of the first."""
        self.nr_cpus += later.nr_cpus
        self.has_qemu |= later.has_qemu
        self.vmcoreinfo = later.vmcoreinfo if self.vmcoreinfo is None else self.vmcoreinfo
        self.eraseinfo = self.eraseinfo or later.eraseinfo
        self.vmcoreinfo_xen = self.vmcoreinfo_xen or later.vmcoreinfo_xen
        self.xen_crash_info = self.xen_crash_info or later.xen_crash_info
        self.machine = self.machine or later.machine


def iter_notes(blob: bytes, order: ByteOrder = "<") -> Iterator[Note]:
    """Notes of `blob` in file order, at most `MAX_NOTES` of them."""
    header = _HEADER[order]
    off = 0
    for _ in range(MAX_NOTES):
        found = _NOT_ZERO.search(blob, off)
        if found is None:
            return
        # Padding ends at a multiple of 4 from where it began; never step back into a note.
        off += (found.start() - off) // 4 * 4
        if off + header.size > len(blob):
            return
        name_size, desc_size, note_type = header.unpack_from(blob, off)
        name_off = off + header.size
        desc_off = name_off + (name_size + 3 & ~3)
        if desc_off + desc_size > len(blob):
            return
        name = blob[name_off : name_off + name_size].rstrip(b"\0")
        yield Note(name, note_type, desc_off, desc_size)
        off = desc_off + (desc_size + 3 & ~3)


def summarize_notes(blob: bytes, order: ByteOrder = "<") -> NoteFacts:
    """Walk the notes once and keep what concerns the whole image."""
    facts = NoteFacts()
    for note in iter_notes(blob, order):
        desc = slice(note.desc_off, note.desc_off + note.desc_size)
        kind = (note.name, note.type)
        if kind == (b"CORE", NT_PRSTATUS):
            facts.nr_cpus += 1
            facts.machine = facts.machine or _MACHINE_OF_PRSTATUS.get(note.desc_size)
        elif kind == (b"VMCOREINFO", NT_VMCOREINFO) and facts.vmcoreinfo is None:
            facts.vmcoreinfo = blob[desc]
            facts.vmcoreinfo_off = note.desc_off
        elif kind == (b"ERASEINFO", NT_ERASEINFO) and not facts.eraseinfo:
            facts.eraseinfo = blob[desc]
        elif kind == (b"VMCOREINFO_XEN", NT_VMCOREINFO) and facts.vmcoreinfo_xen is None:
            facts.vmcoreinfo_xen = blob[desc]
        elif kind == (b"Xen", XEN_ELFNOTE_CRASH_INFO) and facts.xen_crash_info is None:
            facts.xen_crash_info = blob[desc]
        elif note.name == b"QEMU":
            facts.has_qemu = True
    return facts


def pack_note(name: bytes, note_type: int, desc: bytes, order: ByteOrder = "<") -> bytes:
    """One note with its padding; `name` comes without NUL."""
    label = name + b"\0"
    head = _HEADER[order].pack(len(label), len(desc), note_type)
    return head + label + bytes(-len(label) % 4) + desc + bytes(-len(desc) % 4)
