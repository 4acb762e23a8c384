"""Paging forms: how an architecture's page tables are read, as data.

A walk goes down a fixed number of levels, top table first. At each level some bits of the address
choose an entry, and the entry is one of four things::

    vaddr  ffff | pgd 9 | pud 9 | pmd 9 | pte 9 | offset 12          (x86_64, 4 levels)

    entry  absent                 `present` does not hold
           leaf                   one of `leaves` holds: maps 2**span_bits bytes at `address`
           table                  neither: the next table lies at `table`
           invalid                present, but neither, or with bits set that are reserved

Masks and shifts say all of this for every architecture that Linux runs on with 8-byte entries:
address bits may be scattered (arm64 LPA, LPA2), shifted (riscv), or finer than a page (s390x,
ppc64), tables may be larger or smaller than a page, and a leaf may span several entries (Svnapot).
So a new architecture is a new form, and no new walker.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from pipeline.memory.addresses import AddrArray, BoolArray

ENTRY_BYTES: Final = 8
ADDRESS_LIMIT: Final = 1 << 64


class EntryKind(IntEnum):
    """What an entry is; values of the `kinds` arrays (uint8)."""

    ABSENT = 0
    TABLE = 1
    LEAF = 2
    INVALID = 3
    """Present, with bits that the architecture reserves, or of a kind its level can't hold."""
    UNREADABLE = 4
    """The table is not in the image; never from `decode`, which sees only what was read."""


class BitTest(Struct, frozen=True):
    """Holds where `entry & mask` equals `value`; with `negated`, where it does not."""

    mask: int
    value: int
    negated: bool = False

    def holds(self, entries: AddrArray) -> BoolArray:
        equal: BoolArray = (entries & np.uint64(self.mask)) == np.uint64(self.value)
        return ~equal if self.negated else equal


ALWAYS: Final = BitTest(0, 0)


class BitField(Struct, frozen=True):
    """A piece of an address: entry bits `mask`, moved left by `shift`."""

    mask: int
    shift: int = 0


class Leaf(Struct, frozen=True):
    """A kind of entry that maps memory: the 2**span_bits bytes around the address asked for."""

    test: BitTest
    span_bits: int
    address: tuple[BitField, ...]
    reserved: int = 0
    """Bits that make such an entry invalid."""


class Level(Struct, frozen=True):
    """One kind of table. `leaves` are tried in order; `table` is empty where no table can follow.

    The table has 2**bits entries, and each stands for 2**shift bytes of addresses.
    """

    name: str
    shift: int
    bits: int
    present: BitTest
    leaves: tuple[Leaf, ...] = ()
    table: tuple[BitField, ...] = ()
    reserved: int = 0
    """Bits that make an entry that points to a table invalid."""
    flags: tuple[tuple[int, str], ...] = ()
    """Mask and name of the bits worth showing to people."""


class Window(NamedTuple):
    """Addresses `first` to `last`, both included."""

    first: int
    last: int


class Decoded(NamedTuple):
    """Entries of one level, taken apart; arrays of the same length n."""

    kinds: NDArray[np.uint8]
    """`EntryKind` of each."""
    addrs: AddrArray
    """uint64[n]: where the next table or the mapped memory starts; 0 for anything else."""
    span_bits: NDArray[np.uint8]
    """Of leaves, else 0."""


def _assemble(entries: AddrArray, fields: tuple[BitField, ...]) -> AddrArray:
    """uint64[n]: the address whose pieces are spread over each entry."""
    out = np.zeros(len(entries), dtype=np.uint64)
    for field in fields:
        out |= (entries & np.uint64(field.mask)) << np.uint64(field.shift)
    return out


class PagingForm(Struct, frozen=True):
    """Everything a walker needs to know.

    Attributes:
        page_bits: log2 of the page size, in which table pages are read.
        levels: top table first.
        windows: addresses that are not refused at the door. Their bounds lie on boundaries of top
            table entries, so that all addresses of one such entry are canonical, or none.
        entry_order: byte order of entries, ``<`` or ``>``; not always the kernel's own.
    """

    name: str
    page_bits: int
    levels: tuple[Level, ...]
    windows: tuple[Window, ...]
    entry_order: str = "<"

    @property
    def va_bits(self) -> int:
        return self.levels[0].shift + self.levels[0].bits

    def canonical(self, vaddrs: AddrArray) -> BoolArray:
        """bool[n]: which addresses the form can hold."""
        out = np.zeros(len(vaddrs), dtype=np.bool_)
        for window in self.windows:
            out |= (vaddrs >= np.uint64(window.first)) & (vaddrs <= np.uint64(window.last))
        return out

    def index(self, depth: int, vaddrs: AddrArray) -> AddrArray:
        """uint64[n]: which entry of a table at `depth` (0 is the top) each address belongs to."""
        level = self.levels[depth]
        return (vaddrs >> np.uint64(level.shift)) & np.uint64((1 << level.bits) - 1)

    def decode(self, depth: int, entries: AddrArray) -> Decoded:
        """Take apart entries (uint64[n]) of tables at `depth`."""
        level = self.levels[depth]
        n_entries = len(entries)
        present = level.present.holds(entries)
        kinds = np.where(present, np.uint8(EntryKind.INVALID), np.uint8(EntryKind.ABSENT))
        addrs = np.zeros(n_entries, dtype=np.uint64)
        span_bits = np.zeros(n_entries, dtype=np.uint8)
        left = present
        for leaf in level.leaves:
            mine = left & leaf.test.holds(entries)
            left = left & ~mine
            if leaf.reserved:
                mine &= (entries & np.uint64(leaf.reserved)) == 0
            starts = _assemble(entries, leaf.address) & np.uint64(
                ADDRESS_LIMIT - (1 << leaf.span_bits)
            )
            np.copyto(addrs, starts, where=mine)
            kinds[mine] = EntryKind.LEAF
            span_bits[mine] = leaf.span_bits
        if level.table:
            if level.reserved:
                left = left & ((entries & np.uint64(level.reserved)) == 0)
            np.copyto(addrs, _assemble(entries, level.table), where=left)
            kinds[left] = EntryKind.TABLE
        return Decoded(kinds, addrs, span_bits)

    def ignoring(self, bits: int) -> PagingForm:
        """The same form, with `bits` of every entry not part of addresses, nor reserved.

        For memory encryption, which marks pages by an address bit.
        """
        if not bits:
            return self

        def strip(fields: tuple[BitField, ...]) -> tuple[BitField, ...]:
            return tuple(replace(field, mask=field.mask & ~bits) for field in fields)

        def strip_leaf(leaf: Leaf) -> Leaf:
            return replace(leaf, address=strip(leaf.address), reserved=leaf.reserved & ~bits)

        return replace(
            self,
            levels=tuple(
                replace(
                    level,
                    table=strip(level.table),
                    leaves=tuple(strip_leaf(leaf) for leaf in level.leaves),
                    reserved=level.reserved & ~bits,
                )
                for level in self.levels
            ),
        )
