"""Build page tables of any paging form, by call or from text that reads like prose.

    builder = PageTableBuilder(FOUR_LEVELS, root=0x1000)
    builder.map(0xFFFFFFFF81000000, 0x3C0000000, span_bits=30)
    pages = DictPages(builder.pages, page_size=4096)

Text, one statement a line, `#` starts a comment::

    form x86_64-4l
    root 0x1000
    pgd[0x1ff] -> pud[2] -> 0x3c0000000 (1G)         a leaf of 1 GiB, tables placed as needed
    pgd[0x1ff] -> pud[3] -> pmd[0] -> table 0x1000   the entry points to a table at 0x1000
    pgd[0x1ff] -> pud[4] = 0x80                      the entry is exactly this
    @0x2a618 = 0x80000001000001e3                    the entry at this address is exactly this
    lose 0x2000                                      the page of paddr 0x2000 is not in the image
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from pipeline.memory.addresses import BoolArray, ByteArray, PfnArray
from pipeline.memory.sizes import parse_size
from stages.arch.paging import BitField, BitTest, EntryKind, Leaf, Level, PagingForm

_STEP = re.compile(r"^(\w+)\[(\w+)\]$")
_LEAF = re.compile(r"^(\w+) \(([^)]+)\)$")


def _satisfying(test: BitTest) -> int:
    """Bits that make `test` hold."""
    return (test.mask & -test.mask) if test.negated else test.value


def _failing(test: BitTest) -> int:
    """Bits that make `test` fail."""
    if test.negated:
        return test.value
    return 0 if test.value else (test.mask & -test.mask)


def _scatter(address: int, fields: Sequence[BitField]) -> int:
    """Entry bits from which the form puts `address` together again."""
    entry = 0
    for piece in fields:
        entry |= (address >> piece.shift) & piece.mask
    return entry


def absent_entry(level: Level) -> int:
    """An entry of `level` that maps nothing."""
    return _failing(level.present)


def table_entry(level: Level, table: int) -> int:
    """An entry of `level` that points to the table at `table`."""
    entry = _satisfying(level.present) | _scatter(table, level.table)
    for leaf in level.leaves:
        entry |= _failing(leaf.test)
    return entry


def leaf_entry(level: Level, leaf: Leaf, paddr: int) -> int:
    """An entry of `level` that maps memory at `paddr`, a multiple of the leaf's span."""
    entry = _satisfying(level.present) | _satisfying(leaf.test) | _scatter(paddr, leaf.address)
    for earlier in level.leaves[: level.leaves.index(leaf)]:
        entry |= _failing(earlier.test)
    return entry


@dataclass
class PageTableBuilder:
    """Tables in `pages`, by pfn. New tables come right after each other, from `root` up.

    Attributes:
        placed: what `map` was told: virtual start, physical start, span bits.
    """

    form: PagingForm
    root: int
    pages: dict[int, bytearray] = field(default_factory=dict, init=False, repr=False)
    placed: list[tuple[int, int, int]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._next = self.root
        if self._new_table(0) != self.root:
            raise ValueError(f"a top table can't lie at {self.root:#x}")

    @classmethod
    def from_text(cls, text: str, forms: Iterable[PagingForm]) -> PageTableBuilder:
        """Tables as `text` says; `form` and `root` come first in it.

        Raises:
            ValueError: a line that makes no sense, with its text.
        """
        lines = [line.split("#")[0].strip() for line in text.splitlines()]
        facts = dict(line.split(maxsplit=1) for line in lines if line.startswith(("form", "root")))
        form = next(form for form in forms if form.name == facts["form"])
        builder = cls(form, root=int(facts["root"], 0))
        for line in lines:
            if line and not line.startswith(("form ", "root ")):
                builder._read_line(line)
        return builder

    def _read_line(self, line: str) -> None:
        if line.startswith("lose "):
            self.pages.pop(int(line.removeprefix("lose "), 0) >> self.form.page_bits)
            return
        path, equals, raw = line.partition(" = ")
        if path.startswith("@"):
            at = int(path.removeprefix("@"), 0)
            self.pages.setdefault(at >> self.form.page_bits, bytearray(1 << self.form.page_bits))
            self._write(at, int(raw, 0))
            return
        *steps, last = path.split(" -> ")
        if equals:
            steps, last = [*steps, last], ""
        indexes = [self._read_step(depth, step) for depth, step in enumerate(steps)]
        depth = len(indexes) - 1
        level = self.form.levels[depth]
        if equals:
            entry = int(raw, 0)
        elif last.startswith("table "):
            entry = table_entry(level, int(last.removeprefix("table "), 0))
        else:
            found = _LEAF.match(last)
            if found is None:
                raise ValueError(f"{line!r} does not say where it leads")
            leaf = self._leaf(depth, parse_size(found[2]).bit_length() - 1)
            entry = leaf_entry(level, leaf, int(found[1], 0))
        self.put(indexes, entry)

    def _read_step(self, depth: int, text: str) -> int:
        found = _STEP.match(text)
        if found is None or found[1].lower() != self.form.levels[depth].name:
            raise ValueError(f"{text!r} is not an entry of a {self.form.levels[depth].name}")
        return int(found[2], 0)

    def _leaf(self, depth: int, span_bits: int) -> Leaf:
        for leaf in self.form.levels[depth].leaves:
            if leaf.span_bits == span_bits:
                return leaf
        raise ValueError(f"{self.form.levels[depth].name} has no leaf of {1 << span_bits} bytes")

    def _new_table(self, depth: int) -> int:
        """A table without mappings, aligned to its own size as architectures want it."""
        level = self.form.levels[depth]
        n_bytes = 8 << level.bits
        at = -(-self._next // n_bytes) * n_bytes
        self._next = at + n_bytes
        page_size = 1 << self.form.page_bits
        empty = absent_entry(level).to_bytes(8, self._order) * (min(n_bytes, page_size) // 8)
        for start in range(at, at + n_bytes, page_size):
            page = self.pages.setdefault(start // page_size, bytearray(page_size))
            inside = start % page_size
            page[inside : inside + len(empty)] = empty
        return at

    def put(self, indexes: Sequence[int], entry: int) -> None:
        """Write `entry` at the end of the path `indexes`; tables on the way are made.

        Raises:
            ValueError: something that is not a table lies on the way, or the entry is in use.
        """
        at = self._table_of(indexes) + 8 * indexes[-1]
        if self.peek(at) not in (absent_entry(self.form.levels[len(indexes) - 1]), entry):
            raise ValueError(f"the entry at {at:#x} is in use")
        self._write(at, entry)

    def _table_of(self, indexes: Sequence[int]) -> int:
        """Where the table of the last index lies; tables on the way are made."""
        table = self.root
        for depth, index in enumerate(indexes[:-1]):
            table = self._enter(depth, table, index)
        return table

    def _enter(self, depth: int, table: int, index: int) -> int:
        level = self.form.levels[depth]
        entry = self.peek(table + 8 * index)
        if entry == absent_entry(level):
            new = self._new_table(depth + 1)
            self._write(table + 8 * index, table_entry(level, new))
            return new
        kinds, addrs, _ = self.form.decode(depth, np.array([entry], dtype=np.uint64))
        if kinds[0] != EntryKind.TABLE:
            raise ValueError(f"{level.name}[{index}] is no table")
        return int(addrs[0])

    def map(self, vaddr: int, paddr: int, span_bits: int) -> None:
        """Map 2**span_bits bytes; both addresses are multiples of that.

        Raises:
            ValueError: no level has such a leaf, or something else is mapped there.
        """
        depth, leaf = next(
            (depth, leaf)
            for depth, level in enumerate(self.form.levels)
            for leaf in level.leaves
            if leaf.span_bits == span_bits
        )
        level = self.form.levels[depth]
        for at in range(vaddr, vaddr + (1 << span_bits), 1 << level.shift):
            indexes = [
                (at >> above.shift) & ((1 << above.bits) - 1)
                for above in self.form.levels[: depth + 1]
            ]
            self.put(indexes, leaf_entry(level, leaf, paddr))
        self.placed.append((vaddr, paddr, span_bits))

    def clear(self, indexes: Sequence[int]) -> None:
        """Make the entry at the end of the path `indexes` absent again; tables stay."""
        at = self._table_of(indexes) + 8 * indexes[-1]
        self._write(at, absent_entry(self.form.levels[len(indexes) - 1]))

    def peek(self, paddr: int) -> int:
        page = self.pages[paddr >> self.form.page_bits]
        at = paddr & ((1 << self.form.page_bits) - 1)
        return int.from_bytes(page[at : at + 8], self._order)

    def _write(self, paddr: int, entry: int) -> None:
        at = paddr & ((1 << self.form.page_bits) - 1)
        page = self.pages[paddr >> self.form.page_bits]
        page[at : at + 8] = entry.to_bytes(8, self._order)

    @property
    def _order(self) -> Literal["little", "big"]:
        return "little" if self.form.entry_order == "<" else "big"


class DictPages:
    """A `PageReader` over pages in a dict; counts what it is asked for.

    Attributes:
        requests: the pfns of each call.
    """

    def __init__(self, pages: dict[int, bytearray], *, page_size: int) -> None:
        self.page_size = page_size
        self.requests: list[list[int]] = []
        self._pages = pages

    async def get_many(self, pfns: PfnArray) -> tuple[ByteArray, BoolArray]:
        wanted = pfns.tolist()
        self.requests.append(wanted)
        rows = np.zeros((len(wanted), self.page_size), dtype=np.uint8)
        good = np.zeros(len(wanted), dtype=np.bool_)
        for row, pfn in enumerate(wanted):
            if pfn in self._pages:
                rows[row] = np.frombuffer(self._pages[pfn], dtype=np.uint8)
                good[row] = True
        return rows, good
