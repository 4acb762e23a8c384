"""The demo vmcore as a file: an ELF core, laid out as the kernel lays out /proc/vmcore.

::

    0         ELF header | program headers | notes
    DATA_OFF  RAM, range by range; the text's PT_LOAD names part of it a second time
    end       the device ROM, if any
"""

from __future__ import annotations

import struct
from typing import Final

from stages.demo.address_map import (
    DATA_OFF,
    KERNEL_PAGES,
    ROM_PADDR,
    ROM_PAGES,
    AddressMap,
)
from stages.demo.memory import PAGE

N_CPUS: Final = 2
_EHDR: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR: Final = struct.Struct("<IIQQQQQQ")
_PT_LOAD: Final = 1
_PT_NOTE: Final = 4
_READ_WRITE_EXECUTE: Final = 7


def _note(name: bytes, kind: int, desc: bytes) -> bytes:
    head = struct.pack("<III", len(name) + 1, len(desc), kind)
    return (
        head
        + (name + b"\0").ljust(-(-(len(name) + 1) // 4) * 4, b"\0")
        + desc.ljust(-(-len(desc) // 4) * 4, b"\0")
    )


def _prstatus(pid: int, text_vaddr: int) -> bytes:
    """Struct elf_prstatus: 112 bytes, 27 registers, 8 bytes; only pid and rip say something."""
    registers = [0] * 27
    registers[16] = text_vaddr + 0x1000
    return struct.pack("<32xI76x", pid) + struct.pack("<27Q", *registers) + bytes(8)


def ram_end(addresses: AddressMap) -> int:
    """File offset after the last byte of RAM."""
    last = addresses.ranges[-1]
    return last.file_off + (last.stop - last.start) * PAGE


def elf_head(addresses: AddressMap, vmcoreinfo: bytes, *, device_rom: bool) -> bytes:
    """Headers and notes.

    Raises:
        ValueError: they do not fit before `DATA_OFF`.
    """
    notes = b"".join(
        _note(b"CORE", 1, _prstatus(pid, addresses.text_vaddr)) for pid in range(1, N_CPUS + 1)
    ) + _note(b"VMCOREINFO", 0, vmcoreinfo)
    loads = _loads(addresses)
    if device_rom:
        loads.append((ROM_PADDR, ROM_PADDR, ram_end(addresses), ROM_PAGES * PAGE))
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    count = len(loads) + 1
    notes_off = _EHDR.size + count * _PHDR.size
    head = _EHDR.pack(ident, 4, 62, 1, 0, _EHDR.size, 0, 0, _EHDR.size, _PHDR.size, count, 0, 0, 0)
    head += _PHDR.pack(_PT_NOTE, 0, notes_off, 0, 0, len(notes), len(notes), 0)
    for vaddr, paddr, file_off, n_bytes in loads:
        head += _PHDR.pack(
            _PT_LOAD, _READ_WRITE_EXECUTE, file_off, vaddr, paddr, n_bytes, n_bytes, 0
        )
    if len(head) + len(notes) > DATA_OFF:
        raise ValueError(f"{len(head) + len(notes)} bytes of headers, {DATA_OFF} at most")
    return head + notes


def _loads(addresses: AddressMap) -> list[tuple[int, int, int, int]]:
    """(vaddr, paddr, file offset, bytes) of the text, which is RAM too, and of all RAM."""
    text = addresses.kernel_pfn * PAGE
    out = [(addresses.text_vaddr, text, addresses.file_off(text), KERNEL_PAGES * PAGE)]
    for ram in addresses.ranges:
        paddr = ram.start * PAGE
        n_bytes = (ram.stop - ram.start) * PAGE
        out.append((addresses.page_offset + paddr, paddr, ram.file_off, n_bytes))
    return out
