"""One address, step by step: what people look at, and what errors are made of."""

from __future__ import annotations

from typing import Final

import numpy as np
from msgspec import Struct

from pipeline.errors import NonCanonicalError, NotPresentError, TranslationError
from stages.arch.paging import ADDRESS_LIMIT, ENTRY_BYTES, EntryKind, Level, PagingForm
from stages.translator.tables import TableReader

_PROBLEMS: Final = {
    EntryKind.ABSENT: "not present",
    EntryKind.INVALID: "has reserved bits set",
    EntryKind.UNREADABLE: "is in a table that the image does not hold",
}


class WalkStep(Struct, frozen=True):
    """One entry that was looked at.

    Attributes:
        level: the table's kernel name.
        entry: raw, None when it could not be read.
        target: where the next table or the leaf's memory lies, None when the walk ends here.
        span_bits: log2 of what the entry stands for, or of what a leaf maps.
    """

    level: str
    index: int
    entry_paddr: int
    entry: int | None
    kind: EntryKind
    target: int | None
    span_bits: int
    flags: tuple[str, ...]


class Walk(Struct, frozen=True):
    """All steps for one address. `paddr` is None when it maps nothing, and `problem` says why."""

    vaddr: int
    steps: tuple[WalkStep, ...]
    paddr: int | None
    problem: TranslationError | None


async def explain(form: PagingForm, root: int, tables: TableReader, vaddr: int) -> Walk:
    """Walk the tables for `vaddr`, and tell each step; never raises for what it finds there."""
    if not 0 <= vaddr < ADDRESS_LIMIT or not form.canonical(_array(vaddr))[0]:
        return Walk(vaddr, (), None, NonCanonicalError(vaddr, form.va_bits))
    steps: list[WalkStep] = []
    table = root
    for depth in range(len(form.levels)):
        step = await _step(form, depth, tables, table, vaddr)
        steps.append(step)
        if step.target is None:
            return Walk(vaddr, tuple(steps), None, _problem(vaddr, step))
        if step.kind == EntryKind.LEAF:
            offset = vaddr & ((1 << step.span_bits) - 1)
            return Walk(vaddr, tuple(steps), step.target | offset, None)
        table = step.target
    raise AssertionError(f"{form.name}: an entry of the last level points to a table")


def _array(value: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.array([value], dtype=np.uint64)


async def _step(
    form: PagingForm, depth: int, tables: TableReader, table: int, vaddr: int
) -> WalkStep:
    level = form.levels[depth]
    index = int(form.index(depth, _array(vaddr))[0])
    entry_paddr = table + index * ENTRY_BYTES
    entries, good = await tables.entries(_array(entry_paddr))
    decoded = form.decode(depth, entries)
    kind = EntryKind(int(decoded.kinds[0])) if good[0] else EntryKind.UNREADABLE
    is_open = kind in (EntryKind.TABLE, EntryKind.LEAF)
    return WalkStep(
        level=level.name,
        index=index,
        entry_paddr=entry_paddr,
        entry=int(entries[0]) if good[0] else None,
        kind=kind,
        target=int(decoded.addrs[0]) if is_open else None,
        span_bits=int(decoded.span_bits[0]) if kind == EntryKind.LEAF else level.shift,
        flags=_flags(level, int(entries[0])),
    )


def _flags(level: Level, entry: int) -> tuple[str, ...]:
    return tuple(name for mask, name in level.flags if entry & mask)


def _problem(vaddr: int, step: WalkStep) -> TranslationError:
    kind = NotPresentError if step.kind == EntryKind.ABSENT else TranslationError
    return kind(vaddr, step.level, step.index, step.entry, step.entry_paddr, _PROBLEMS[step.kind])
