"""Translating many addresses at once.

All addresses go down together, one level at a time. They are sorted first, so that those that share
an entry are neighbours, and each distinct entry is read and decoded once::

    ascending addresses     a a a a a a a a a a a a
    distinct pgd entries    [----------------------]
    distinct pud entries    [----------][----------]      a front: one slot each
    distinct pmd entries    [----][----][--][------]

Slots that met their leaf, or failed, hand that down to the slots below them unchanged.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pipeline.memory.addresses import AddrArray, BoolArray
from stages.arch.paging import ENTRY_BYTES, EntryKind, PagingForm
from stages.translator.tables import TableReader, run_starts

MAPPED: Final = -1
NON_CANONICAL: Final = -2
_WALKING: Final = -3

_CHUNK: Final = 1 << 16
"""Addresses walked together: temporaries stay in the second-level cache, and bounded."""
_OFFSET_MASKS: Final = np.array([(1 << bits) - 1 for bits in range(64)], dtype=np.uint64)


class Walked(NamedTuple):
    """The outcome for each address, in the order they were given."""

    paddrs: AddrArray
    """uint64[n], 0 where there is none."""
    outcome: NDArray[np.int8]
    """int8[n]: `MAPPED`, `NON_CANONICAL`, or the depth of the table where the walk ended."""

    @property
    def mapped(self) -> BoolArray:
        mapped: BoolArray = self.outcome == MAPPED
        return mapped


class _Front(Struct):
    """One slot for each distinct entry of a level, in ascending order of address."""

    base: AddrArray
    """Of a walking slot, the table to look into; of a mapped one, the leaf's memory; else 0."""
    span_bits: NDArray[np.uint8]
    """Of a mapped slot, the leaf's span; else 0."""
    outcome: NDArray[np.int8]

    def split(self, n_parts: NDArray[np.intp]) -> _Front:
        """Every slot repeated for each of its `n_parts` entries on the next level."""
        return _Front(
            np.repeat(self.base, n_parts),
            np.repeat(self.span_bits, n_parts),
            np.repeat(self.outcome, n_parts),
        )


async def walk(form: PagingForm, root: int, tables: TableReader, vaddrs: AddrArray) -> Walked:
    """Translate `vaddrs` (uint64[n], any order) through the top table at `root`.

    Work and memory are bounded by n and by the number of levels, whatever the tables hold.
    """
    if len(vaddrs) == 0 or bool((vaddrs[1:] >= vaddrs[:-1]).all()):
        return await _walk_ascending(form, root, tables, vaddrs)
    order = np.argsort(vaddrs)
    ascending = await _walk_ascending(form, root, tables, vaddrs[order])
    out = Walked(np.empty_like(ascending.paddrs), np.empty_like(ascending.outcome))
    out.paddrs[order] = ascending.paddrs
    out.outcome[order] = ascending.outcome
    return out


async def _walk_ascending(
    form: PagingForm, root: int, tables: TableReader, vaddrs: AddrArray
) -> Walked:
    out = Walked(np.empty(len(vaddrs), dtype=np.uint64), np.empty(len(vaddrs), dtype=np.int8))
    for first in range(0, len(vaddrs), _CHUNK):
        mine = slice(first, first + _CHUNK)
        out.paddrs[mine], out.outcome[mine] = await _walk_chunk(form, root, tables, vaddrs[mine])
    return out


async def _walk_chunk(
    form: PagingForm, root: int, tables: TableReader, vaddrs: AddrArray
) -> Walked:
    starts = _slot_starts(form, vaddrs)
    front = _enter(form, root, vaddrs[starts[0]])
    for depth in range(len(form.levels)):
        if depth:
            front = front.split(_n_parts(starts[depth - 1], starts[depth]))
        await _descend(form, depth, tables, front, vaddrs[starts[depth]])
    per_slot = np.diff(np.append(starts[-1], len(vaddrs)))
    offsets = vaddrs & np.repeat(_OFFSET_MASKS[front.span_bits], per_slot)
    return Walked(np.repeat(front.base, per_slot) | offsets, np.repeat(front.outcome, per_slot))


def _slot_starts(form: PagingForm, vaddrs: AddrArray) -> list[NDArray[np.intp]]:
    """For each level, the index in `vaddrs` of the first address of each distinct entry."""
    starts: list[NDArray[np.intp]] = []
    finer = np.arange(len(vaddrs))
    for level in reversed(form.levels):
        finer = finer[run_starts(vaddrs[finer] >> np.uint64(level.shift))]
        starts.append(finer)
    return starts[::-1]


def _n_parts(coarse: NDArray[np.intp], fine: NDArray[np.intp]) -> NDArray[np.intp]:
    """How many of the `fine` slots each of the `coarse` ones has; both are slot starts."""
    return np.diff(np.append(np.searchsorted(fine, coarse), len(fine)))


def _enter(form: PagingForm, root: int, vaddrs: AddrArray) -> _Front:
    canonical = form.canonical(vaddrs)
    return _Front(
        np.where(canonical, np.uint64(root), np.uint64(0)),
        np.zeros(len(vaddrs), dtype=np.uint8),
        np.where(canonical, _WALKING, NON_CANONICAL).astype(np.int8),
    )


async def _descend(
    form: PagingForm, depth: int, tables: TableReader, front: _Front, vaddrs: AddrArray
) -> None:
    """Read and apply the entries of all slots that are still walking; updates `front`."""
    walking = np.flatnonzero(front.outcome == _WALKING)
    if not len(walking):
        return
    offsets = form.index(depth, vaddrs[walking]) * np.uint64(ENTRY_BYTES)
    entries, good = await tables.entries(front.base[walking] + offsets)
    kinds, addrs, span_bits = form.decode(depth, entries)
    kinds[~good] = EntryKind.UNREADABLE
    verdict = np.full(len(EntryKind), depth, dtype=np.int8)
    verdict[EntryKind.TABLE] = _WALKING
    verdict[EntryKind.LEAF] = MAPPED
    front.base[walking] = addrs
    front.span_bits[walking] = span_bits
    front.outcome[walking] = verdict[kinds]
