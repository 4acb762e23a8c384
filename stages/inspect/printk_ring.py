"""The lockless printk ring buffer (in v5.10 and later).

References:
    kernel/printk/printk_ringbuffer.c

Three arrays, all powers of two. An id grows by one a record and chooses descriptor and info; the
descriptor's logical positions grow with every byte and choose the text::

    descs  [ state_var | text_blk_lpos.begin .next ] ...        slot = id mod 2**count_bits
    infos  [ ts_nsec | text_len | caller_id ... ]    ...        the same slot
    data   [ id | text ... ][ id | text ... ]        ...        byte = lpos mod 2**size_bits

A text block that would cross the end of the data starts at its beginning instead.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import anyio.lowlevel
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import FormatError
from pipeline.memory.addresses import AddrArray, BoolArray
from stages.inspect.c_struct import CStruct, column
from stages.inspect.log_record import LogGap, LogRecord
from stages.translator.kernel import Kernel

_NEEDED_FOR: Final = "the kernel log"
_BATCH: Final = 256
"""Records read at once: 64 KiB of descriptors and infos, at most 16 MiB of text."""
_LONG: Final = 8
_STATE_SHIFT: Final = 62
_ID_MASK: Final = (1 << _STATE_SHIFT) - 1
_IDS: Final = np.uint64(_ID_MASK)
_COMMITTED: Final = 1
_FINALIZED: Final = 2
# The kernel takes log_buf_len= up to 2 GiB, and a descriptor for every 32 bytes of it.
_MAX_SIZE_BITS: Final = 31
_MAX_COUNT_BITS: Final = 26


@dataclass(frozen=True, slots=True)
class _Ring:
    """struct printk_ringbuffer as it was found, checked."""

    count_bits: int
    size_bits: int
    descs: int
    infos: int
    data: int
    head_id: int
    tail_id: int

    def ids(self) -> tuple[int, int]:
        """First id and number of ids; a tail that can't be right gives as many as there are."""
        n_ids = min(((self.head_id - self.tail_id) & _ID_MASK) + 1, 1 << self.count_bits)
        return (self.head_id - n_ids + 1) & _ID_MASK, n_ids


async def iter_records(kernel: Kernel) -> AsyncIterator[LogRecord | LogGap]:
    """The records, oldest first; those that are being written, or were given back, are left out.

    Raises:
        MissingInfoError: VMCOREINFO does not describe the buffer.
        FormatError: the buffer's own description makes no sense.
        TranslationError, MissingPageError: that description can't be read.
    """
    ring = await _read_ring(kernel)
    first, n_ids = ring.ids()
    n_lost = 0
    for done in range(0, n_ids, _BATCH):
        nth = np.arange(done, min(done + _BATCH, n_ids), dtype=np.uint64)
        for record in await _read_batch(kernel, ring, (np.uint64(first) + nth) & _IDS):
            if record is None:
                n_lost += 1
                continue
            if n_lost:
                yield LogGap(n_lost)
                n_lost = 0
            yield record
        await anyio.lowlevel.checkpoint()
    if n_lost:
        yield LogGap(n_lost)


async def _read_ring(kernel: Kernel) -> _Ring:
    info = kernel.info
    whole = CStruct.named(info, "printk_ringbuffer", _NEEDED_FOR)
    descs = CStruct.named(info, "prb_desc_ring", _NEEDED_FOR)
    texts = CStruct.named(info, "prb_data_ring", _NEEDED_FOR)
    buffer = await kernel.read_u64(info.need_symbol("prb", _NEEDED_FOR))
    raw = await kernel.read(buffer, whole.n_bytes)
    desc_ring = raw[whole.offset("desc_ring", descs.n_bytes) :]
    text_ring = raw[whole.offset("text_data_ring", texts.n_bytes) :]

    def number(part: bytes, at: int, n_bytes: int) -> int:
        return kernel.number(part[at : at + n_bytes])

    def record_id(member: str) -> int:
        at = descs.offset(member, _LONG, of_part="atomic_long_t.counter")
        return number(desc_ring, at, _LONG) & _ID_MASK

    ring = _Ring(
        count_bits=number(desc_ring, descs.offset("count_bits", 4), 4),
        size_bits=number(text_ring, texts.offset("size_bits", 4), 4),
        descs=number(desc_ring, descs.offset("descs", _LONG), _LONG),
        infos=number(desc_ring, descs.offset("infos", _LONG), _LONG),
        data=number(text_ring, texts.offset("data", _LONG), _LONG),
        head_id=record_id("head_id"),
        tail_id=record_id("tail_id"),
    )
    for field, bits, most in (
        ("prb_desc_ring.count_bits", ring.count_bits, _MAX_COUNT_BITS),
        ("prb_data_ring.size_bits", ring.size_bits, _MAX_SIZE_BITS),
    ):
        if not 0 < bits <= most:
            raise FormatError("kernel log", None, field, bits, f"1 to {most}")
    return ring


async def _read_batch(kernel: Kernel, ring: _Ring, ids: AddrArray) -> list[LogRecord | None]:
    """Records of `ids` (uint64[n]) in order, None for each that is not in the image."""
    slots = ids & np.uint64((1 << ring.count_bits) - 1)
    descs = await _read_descs(kernel, ring, slots)
    wanted = (descs.states & _IDS) == ids
    wanted &= np.isin(descs.states >> np.uint64(_STATE_SHIFT), (_COMMITTED, _FINALIZED))
    infos = await _read_infos(kernel, ring, slots)
    records: dict[int, LogRecord | None] = dict.fromkeys(
        np.flatnonzero(~descs.good | (wanted & ~infos.good)).tolist()
    )
    usable = np.flatnonzero(wanted & infos.good)
    starts, sizes = _text_blocks(ring, descs.begins[usable], descs.nexts[usable])
    sizes = np.minimum(sizes, infos.lengths[usable])
    texts = await kernel.read_ragged(np.uint64(ring.data) + starts, sizes)
    for index, text in zip(usable.tolist(), texts, strict=True):
        caller = None if infos.callers is None else int(infos.callers[index])
        records[index] = None if text is None else LogRecord(int(infos.stamps[index]), caller, text)
    return [records[index] for index in sorted(records)]


class _Descs(NamedTuple):
    """Descriptors, uint64[n] each, and which of them could be read."""

    states: AddrArray
    begins: AddrArray
    nexts: AddrArray
    good: BoolArray


async def _read_descs(kernel: Kernel, ring: _Ring, slots: AddrArray) -> _Descs:
    desc = CStruct.named(kernel.info, "prb_desc", _NEEDED_FOR)
    rows, good = await kernel.read_many(
        np.uint64(ring.descs) + slots * np.uint64(desc.n_bytes), desc.n_bytes
    )
    long = f"{kernel.byte_order}u8"
    state_at = desc.offset("state_var", _LONG, of_part="atomic_long_t.counter")
    begin_at = desc.offset("text_blk_lpos", _LONG, of_part="prb_data_blk_lpos.begin")
    next_at = desc.offset("text_blk_lpos", _LONG, of_part="prb_data_blk_lpos.next")
    return _Descs(
        column(rows, state_at, long),
        column(rows, begin_at, long),
        column(rows, next_at, long),
        good,
    )


class _Infos(NamedTuple):
    """What belongs to each text, uint64[n] and the like, and which of it could be read."""

    stamps: NDArray[Any]
    lengths: NDArray[Any]
    callers: NDArray[Any] | None
    good: BoolArray


async def _read_infos(kernel: Kernel, ring: _Ring, slots: AddrArray) -> _Infos:
    info = CStruct.named(kernel.info, "printk_info", _NEEDED_FOR)
    rows, good = await kernel.read_many(
        np.uint64(ring.infos) + slots * np.uint64(info.n_bytes), info.n_bytes
    )
    order = kernel.byte_order
    callers = None
    if kernel.info.offset("printk_info.caller_id") is not None:
        callers = column(rows, info.offset("caller_id", 4), f"{order}u4")
    return _Infos(
        column(rows, info.offset("ts_nsec", 8), f"{order}u8"),
        column(rows, info.offset("text_len", 2), f"{order}u2"),
        callers,
        good,
    )


def _text_blocks(ring: _Ring, begins: AddrArray, nexts: AddrArray) -> tuple[AddrArray, AddrArray]:
    """Offset into the data, and size, of each block's text (uint64[n] each).

    Records without text have equal positions (both the same odd number).
    """
    mask = np.uint64((1 << ring.size_bits) - 1)
    lasts = nexts - np.uint64(1)
    wraps = (begins & ~mask) != (lasts & ~mask)
    starts = np.where(wraps, np.uint64(0), begins & mask)
    ends = (lasts & mask) + np.uint64(1)
    has_text = (begins != nexts) & (ends >= starts + np.uint64(_LONG))
    sizes = np.where(has_text, ends - starts - np.uint64(_LONG), np.uint64(0))
    return np.where(has_text, starts + np.uint64(_LONG), np.uint64(0)), sizes
