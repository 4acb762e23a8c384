"""Where a range of addresses lies in physical memory, without walking each of its pages.

The range is a row of pieces, at first one: the whole of it, in the top table. A piece that lies in
tables is replaced by the entries of those tables, which are runs of memory, holes, or again pieces
that lie in tables one level down::

    [              top table              ]
    [ hole ][  table  ][  table  ][ hole  ]
    [ hole ][run][table][  run   ][ hole  ]      the leftmost tables first, some at a time

What is left of the first table is final, and is handed out. So memory stays bounded however much
the tables map, holes are skipped whole, and a large leaf costs no more than a small one.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Final, NamedTuple

import anyio.lowlevel
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import FormatError
from pipeline.memory.addresses import AddrArray, BoolArray
from stages.arch.paging import ADDRESS_LIMIT, ENTRY_BYTES, EntryKind, PagingForm, Window
from stages.translator.tables import TableReader

MAX_TABLES: Final = 1 << 18
"""Tables looked into for one range: 512 GiB of addresses in single 4 KiB pages."""
_MAX_ENTRIES: Final = 1 << 15
"""Entries read at once, which keeps a row under 1 MiB. The first batch is one table, and each next
one twice as large, so that little is read for somebody who takes only the first run."""

MAX_EXPECTED: Final = 64
"""Tables announced ahead of those that are being looked into."""


class PhysRun(NamedTuple):
    """A piece of a virtual range: `n_bytes` from `vaddr` lie at `paddr`, or nowhere (None)."""

    vaddr: int
    paddr: int | None
    n_bytes: int


class _Row(NamedTuple):
    """Pieces in ascending order and without gaps between them; arrays of the same length."""

    vaddrs: AddrArray
    n_bytes: AddrArray
    kinds: NDArray[np.uint8]
    """TABLE, LEAF, or ABSENT for anything that maps nothing."""
    addrs: AddrArray
    """Of a TABLE where the table lies, of a LEAF where the memory lies, else 0."""

    def part(self, pieces: slice | NDArray[np.intp] | BoolArray) -> _Row:
        return _Row(
            self.vaddrs[pieces], self.n_bytes[pieces], self.kinds[pieces], self.addrs[pieces]
        )

    def joined(self, other: _Row) -> _Row:
        """The pieces of both, in ascending order."""
        order = np.argsort(np.concatenate((self.vaddrs, other.vaddrs)))
        return _Row(
            np.concatenate((self.vaddrs, other.vaddrs))[order],
            np.concatenate((self.n_bytes, other.n_bytes))[order],
            np.concatenate((self.kinds, other.kinds))[order],
            np.concatenate((self.addrs, other.addrs))[order],
        )


async def iter_runs(
    form: PagingForm,
    root: int,
    tables: TableReader,
    window: Window,
    *,
    max_tables: int = MAX_TABLES,
) -> AsyncGenerator[PhysRun]:
    """Cut the addresses of `window` into physically contiguous runs and holes, ascending.

    Neighbours are merged, so that no two holes follow each other, nor two runs that continue
    each other.

    Raises:
        FormatError: more than `max_tables` tables would have to be looked into.
    """
    pending = [(0, _canonical_row(form, root, window))]
    last: PhysRun | None = None
    n_tables = 0
    batch = 1
    while pending:
        depth, row = pending.pop()
        in_tables = np.flatnonzero(row.kinds == EntryKind.TABLE)
        if not len(in_tables):
            for run in _as_runs(row):
                merged = None if last is None else _join(last, run)
                if last is not None and merged is None:
                    yield last
                last = merged or run
            continue
        batch = min(batch, max(_MAX_ENTRIES >> form.levels[depth].bits, 1))
        head, rest = _split(row, in_tables, batch)
        if len(rest.vaddrs):
            pending.append((depth, rest))
            tables.expect(rest.addrs[rest.kinds == EntryKind.TABLE][:MAX_EXPECTED])
        n_tables += min(len(in_tables), batch)
        batch *= 2
        if n_tables > max_tables:
            raise FormatError(
                "page tables", None, "tables of a range", n_tables, f"{max_tables} at most"
            )
        pending.append((depth + 1, await _replace_tables(form, depth, tables, head)))
        await anyio.lowlevel.checkpoint()
    if last is not None:
        yield last


def _canonical_row(form: PagingForm, root: int, window: Window) -> _Row:
    """The whole of `window`: pieces the top table covers, and holes that no table can."""
    pieces: list[tuple[int, int, int, int]] = []
    at = window.first
    for first, last in form.windows:
        first, last = max(first, at), min(last, window.last)
        if first > last:
            continue
        if first > at:
            pieces.append((at, first - at, EntryKind.ABSENT, 0))
        pieces.append((first, last - first + 1, EntryKind.TABLE, root))
        at = last + 1
    if at <= window.last:
        pieces.append((at, window.last - at + 1, EntryKind.ABSENT, 0))
    vaddrs, n_bytes, kinds, addrs = zip(*pieces, strict=True)
    return _Row(
        np.array(vaddrs, dtype=np.uint64),
        np.array(n_bytes, dtype=np.uint64),
        np.array(kinds, dtype=np.uint8),
        np.array(addrs, dtype=np.uint64),
    )


def _split(row: _Row, in_tables: NDArray[np.intp], n_tables: int) -> tuple[_Row, _Row]:
    """The start of `row` up to its first `n_tables` tables, and the rest."""
    cut = len(row.vaddrs) if len(in_tables) <= n_tables else int(in_tables[n_tables])
    return row.part(slice(None, cut)), row.part(slice(cut, None))


async def _replace_tables(form: PagingForm, depth: int, tables: TableReader, row: _Row) -> _Row:
    """`row` with the pieces in tables at `depth` replaced by what the tables' entries say."""
    is_table = row.kinds == EntryKind.TABLE
    owners, entries_row = _entry_pieces(form, depth, row.part(is_table))
    entries, good = await tables.entries(
        owners + form.index(depth, entries_row.vaddrs) * np.uint64(ENTRY_BYTES)
    )
    kinds, addrs, span_bits = form.decode(depth, entries)
    useful = good & ((kinds == EntryKind.LEAF) | (kinds == EntryKind.TABLE))
    kinds = np.where(useful, kinds, np.uint8(EntryKind.ABSENT))
    # Where the piece starts inside its leaf: not at 0 for a cut piece, or one of several entries.
    inside = entries_row.vaddrs & ((np.uint64(1) << span_bits.astype(np.uint64)) - np.uint64(1))
    addrs = np.where(useful, addrs | inside, np.uint64(0))
    found = _Row(entries_row.vaddrs, entries_row.n_bytes, kinds, addrs)
    return _merge(row.part(~is_table).joined(found))


def _entry_pieces(form: PagingForm, depth: int, row: _Row) -> tuple[AddrArray, _Row]:
    """One piece for each entry that `row`'s tables have for its addresses, and its table."""
    shift = np.uint64(form.levels[depth].shift)
    lasts = row.vaddrs + (row.n_bytes - np.uint64(1))
    firsts = row.vaddrs >> shift
    counts = ((lasts >> shift) - firsts + np.uint64(1)).astype(np.intp)
    ends = np.cumsum(counts)
    nth = np.arange(int(ends[-1])) - np.repeat(ends - counts, counts)
    begins = (np.repeat(firsts, counts) + nth.astype(np.uint64)) << shift
    begins_inside = np.maximum(begins, np.repeat(row.vaddrs, counts))
    lasts_inside = np.minimum(
        begins + ((np.uint64(1) << shift) - np.uint64(1)), np.repeat(lasts, counts)
    )
    n_bytes = lasts_inside - begins_inside + np.uint64(1)
    blank = np.zeros(len(nth), dtype=np.uint8)
    owners = np.repeat(row.addrs, counts)
    return owners, _Row(begins_inside, n_bytes, blank, owners)


def _merge(row: _Row) -> _Row:
    """Neighbouring holes, and neighbouring runs that continue each other, become one piece."""
    before, after = row.part(slice(None, -1)), row.part(slice(1, None))
    continues = before.addrs + before.n_bytes == after.addrs
    joins = (before.kinds == after.kinds) & (after.kinds != EntryKind.TABLE)
    joins &= continues | (after.kinds == EntryKind.ABSENT)
    heads = np.concatenate((np.zeros(1, dtype=np.intp), np.flatnonzero(~joins) + 1))
    return row.part(heads)._replace(n_bytes=np.add.reduceat(row.n_bytes, heads))


def _as_runs(row: _Row) -> list[PhysRun]:
    return [
        PhysRun(vaddr, addr if kind == EntryKind.LEAF else None, n_bytes)
        for vaddr, n_bytes, kind, addr in zip(*(column.tolist() for column in row), strict=True)
    ]


def _join(left: PhysRun, right: PhysRun) -> PhysRun | None:
    """One run for both, None where `right` does not continue `left`."""
    if left.paddr is None or right.paddr is None:
        joins = left.paddr is None and right.paddr is None
    else:
        joins = left.paddr + left.n_bytes == right.paddr
    return left._replace(n_bytes=left.n_bytes + right.n_bytes) if joins else None


def window_of(vaddr: int, n_bytes: int) -> Window | None:
    """The addresses from `vaddr` on, cut at the end of the address space; None when empty."""
    last = min(vaddr + n_bytes, ADDRESS_LIMIT) - 1
    return Window(vaddr, last) if 0 <= vaddr <= last else None
