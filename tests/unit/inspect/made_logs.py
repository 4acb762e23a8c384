"""Kernel logs of every form, written into the memory of a made kernel the way printk does."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

from tests.unit.translator.made_kernel import FREE, MadeKernel

PRB: Final = FREE
RING: Final = FREE + 0x100
DESCS: Final = FREE + 0x10000
INFOS: Final = FREE + 0x40000
DATA: Final = FREE + 0x100000
LOG: Final = FREE + 0x80000

RESERVED, COMMITTED, FINALIZED, REUSABLE = range(4)
_ID_MASK: Final = (1 << 62) - 1
_DESC: Final = struct.Struct("<QQQ")
_INFO: Final = struct.Struct("<QQHBBI64x")

_RING_LINES: Final[dict[str, object]] = {
    "SYMBOL(prb)": f"{PRB:x}",
    "SIZE(printk_ringbuffer)": 88,
    "OFFSET(printk_ringbuffer.desc_ring)": 0,
    "OFFSET(printk_ringbuffer.text_data_ring)": 48,
    "SIZE(prb_desc_ring)": 48,
    "OFFSET(prb_desc_ring.count_bits)": 0,
    "OFFSET(prb_desc_ring.descs)": 8,
    "OFFSET(prb_desc_ring.infos)": 16,
    "OFFSET(prb_desc_ring.head_id)": 24,
    "OFFSET(prb_desc_ring.tail_id)": 32,
    "SIZE(prb_desc)": _DESC.size,
    "OFFSET(prb_desc.state_var)": 0,
    "OFFSET(prb_desc.text_blk_lpos)": 8,
    "OFFSET(prb_data_blk_lpos.begin)": 0,
    "OFFSET(prb_data_blk_lpos.next)": 8,
    "SIZE(printk_info)": _INFO.size,
    "OFFSET(printk_info.ts_nsec)": 8,
    "OFFSET(printk_info.text_len)": 16,
    "OFFSET(printk_info.caller_id)": 20,
    "SIZE(prb_data_ring)": 32,
    "OFFSET(prb_data_ring.size_bits)": 0,
    "OFFSET(prb_data_ring.data)": 8,
    "OFFSET(atomic_long_t.counter)": 0,
}


@dataclass
class MadeRing:
    """A printk ring; ids start shortly before they wrap, as the kernel's own do.

    Attributes:
        first_id: the id of the first record.
        lpos: logical position of the next text block.
    """

    count_bits: int = 4
    size_bits: int = 12
    first_id: int = -8 & _ID_MASK
    lpos: int = -256 & ((1 << 64) - 1)
    tail: int | None = None
    made: MadeKernel = field(default_factory=lambda: MadeKernel(vmcoreinfo=dict(_RING_LINES)))

    def __post_init__(self) -> None:
        self._next_id = self.first_id
        for slot in range(1 << self.count_bits):
            self._write_desc(slot, REUSABLE << 62, 1, 1)

    def _write_desc(self, slot: int, state: int, begin: int, end: int) -> None:
        self.made.write(DESCS + slot * _DESC.size, _DESC.pack(state, begin, end))

    def add(self, text: bytes, ts_nsec: int = 0, caller: int = 1, *, state: int = FINALIZED) -> int:
        """Append a record, and give its slot."""
        record_id = self._next_id
        self._next_id = (record_id + 1) & _ID_MASK
        slot = record_id & ((1 << self.count_bits) - 1)
        begin, end = self._place(record_id, text) if text else (1, 1)
        self._write_desc(slot, state << 62 | record_id, begin, end)
        info = _INFO.pack(0, ts_nsec, len(text), 0, 0, caller)
        self.made.write(INFOS + slot * _INFO.size, info)
        return slot

    def _place(self, record_id: int, text: bytes) -> tuple[int, int]:
        """Write a text block, at the start of the data if it would cross the end."""
        size = 1 << self.size_bits
        n_bytes = -(-(8 + len(text)) // 8) * 8
        begin, at = self.lpos, self.lpos % size
        end = begin + n_bytes
        if at + n_bytes > size:
            at, end = 0, begin - at + size + n_bytes
        self.made.write(DATA + at, struct.pack("<Q", record_id) + text)
        self.lpos = end & ((1 << 64) - 1)
        return begin, self.lpos

    def finish(self) -> MadeKernel:
        """The kernel, its ring's own structure written."""
        head = (self._next_id - 1) & _ID_MASK
        n_kept = min((self._next_id - self.first_id) & _ID_MASK, 1 << self.count_bits)
        tail = (self._next_id - n_kept) & _ID_MASK if self.tail is None else self.tail
        ring = struct.pack("<I4xQQQQQ", self.count_bits, DESCS, INFOS, head, tail, 0)
        data = struct.pack("<I4xQQQ", self.size_bits, DATA, 0, 0)
        self.made.write(PRB, struct.pack("<Q", RING))
        self.made.write(RING, ring + data + bytes(8))
        return self.made


def indexed_record(
    text: bytes, ts_nsec: int = 0, caller: int | None = None, *, length: int | None = None
) -> bytes:
    """A struct printk_log with its text, padded to 4 bytes."""
    header = struct.pack("<QHHHBB", ts_nsec, 0, len(text), 0, 0, 0)
    header += b"" if caller is None else struct.pack("<I", caller)
    record = header + text
    record += bytes(-len(record) % 4)
    shown = len(record) if length is None else length
    return record[:8] + struct.pack("<H", shown) + record[10:]


def indexed_log(
    buffer: bytes, first: int, following: int, *, name: str = "printk_log", caller: bool = False
) -> MadeKernel:
    """A kernel of v3.5 to v5.9 with `buffer` as its log."""
    lines: dict[str, object] = {
        "SYMBOL(log_buf)": f"{FREE:x}",
        "SYMBOL(log_buf_len)": f"{FREE + 8:x}",
        "SYMBOL(log_first_idx)": f"{FREE + 12:x}",
        "SYMBOL(log_next_idx)": f"{FREE + 16:x}",
        f"SIZE({name})": 20 if caller else 16,
        f"OFFSET({name}.ts_nsec)": 0,
        f"OFFSET({name}.len)": 8,
        f"OFFSET({name}.text_len)": 10,
    }
    if caller:
        lines[f"OFFSET({name}.caller_id)"] = 16
    made = MadeKernel(vmcoreinfo=lines)
    made.write(FREE, struct.pack("<QIII", LOG, len(buffer), first, following))
    made.write(LOG, buffer)
    return made


def plain_log(buffer: bytes, written: int) -> MadeKernel:
    """A kernel before v3.5 that has written `written` bytes in all."""
    lines = {
        "SYMBOL(log_buf)": f"{FREE:x}",
        "SYMBOL(log_buf_len)": f"{FREE + 8:x}",
        "SYMBOL(log_end)": f"{FREE + 12:x}",
    }
    made = MadeKernel(vmcoreinfo=dict(lines))
    made.write(FREE, struct.pack("<QII", LOG, len(buffer), written))
    made.write(LOG, buffer)
    return made
