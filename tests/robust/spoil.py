"""Writes into a copy of the demo image: its notes, its kernel's tables, its struct pages."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from stages.demo.build import DemoFacts

PAGE: Final = 4096
_PHDR = struct.Struct("<IIQQQQQQ")
_ADDRESS_BITS: Final = 0x000F_FFFF_FFFF_F000


def read_at(path: Path, off: int, n_bytes: int) -> bytes:
    with path.open("rb") as file:
        file.seek(off)
        return file.read(n_bytes)


def write_at(path: Path, off: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(off)
        file.write(data)


def write_words(path: Path, off: int, *words: int) -> None:
    write_at(path, off, struct.pack(f"<{len(words)}Q", *words))


def note_span(path: Path) -> tuple[int, int]:
    """Where the notes start, and their size; they are the first program header's."""
    fields = _PHDR.unpack(read_at(path, 64, _PHDR.size))
    return fields[2], fields[5]


def vmcoreinfo(path: Path) -> list[str]:
    """The lines of the note, ``KEY=VALUE`` each, without those that take room only."""
    off, size = note_span(path)
    notes = read_at(path, off, size)
    text = notes[notes.index(b"OSRELEASE=") :].decode("latin-1").rstrip("\0")
    return [line for line in text.split("\n") if "=" in line]


def keys(path: Path) -> list[str]:
    return [line.split("=", 1)[0] for line in vmcoreinfo(path)]


def _find(path: Path, key: str) -> tuple[int, int]:
    """Where the line of `key` starts in the file, and its length without the newline."""
    off, size = note_span(path)
    notes = read_at(path, off, size)
    start = notes.index(f"{key}=".encode())
    return off + start, notes.index(b"\n", start) - start


def drop_key(path: Path, *names: str) -> None:
    """Turn lines into ones that nobody looks for."""
    for name in names:
        start, size = _find(path, name)
        write_at(path, start, b"#" * size)


def set_key(path: Path, name: str, value: str) -> None:
    """Give a key another value; what is longer than the old one is cut."""
    start, size = _find(path, name)
    room = size - len(name) - 1
    write_at(path, start + len(name) + 1, value[:room].ljust(room).encode("latin-1"))


def drop_vmcoreinfo(path: Path) -> None:
    """Give the note a name that says nothing."""
    off, size = note_span(path)
    at = read_at(path, off, size).index(b"VMCOREINFO\0")
    write_at(path, off + at, b"NOTHING")


def tables(demo: DemoFacts, path: Path) -> Iterator[tuple[int, int]]:
    """(level from the top, byte in the file) of every page table, the top one first."""
    seen: set[int] = set()
    waiting = [(0, demo.addresses.file_off(top_table(demo)))]
    while waiting:
        level, off = waiting.pop(0)
        if off in seen:
            continue
        seen.add(off)
        yield level, off
        if level < demo.levels - 1:
            below = [word for word in entries(path, off).values() if not word & 0x80]
            places = [demo.addresses.file_off(word & _ADDRESS_BITS) for word in below]
            waiting += [(level + 1, place) for place in places]


def top_table(demo: DemoFacts) -> int:
    """Physical address."""
    text = 0xFFFF_FFFF_8000_0000
    return demo.symbols["init_top_pgt"] - text + demo.addresses.phys_base


def entries(path: Path, table: int) -> dict[int, int]:
    """Present entries of the table at a byte of the file, by index."""
    words = struct.unpack("<512Q", read_at(path, table, PAGE))
    return {index: word for index, word in enumerate(words) if word & 1}


def data_off(demo: DemoFacts, vaddr: int) -> int:
    """Byte in the file of an address in the kernel's data or in the direct map."""
    text = 0xFFFF_FFFF_8000_0000
    base = text - demo.addresses.phys_base if vaddr >= text else demo.addresses.page_offset
    return demo.addresses.file_off(vaddr - base)


def word_at(path: Path, off: int) -> int:
    (word,) = struct.unpack("<Q", read_at(path, off, 8))
    return int(word)


def cut(path: Path, n_bytes: int) -> Path:
    os.truncate(path, n_bytes)
    return path
