"""The demo kernel's own variables, in its data section."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from stages.demo.address_map import KERNEL_PAGES, AddressMap
from stages.demo.memory import PAGE, DemoMemory

_UTS_FIELD: Final = 65
_COUNT_BITS: Final = 5
_TEXT_BITS: Final = 12
_FIRST_ID: Final = 30
"""Two below the size of the ring, so that it has wrapped."""
_FINALIZED: Final = 2 << 62

PRINTK_LAYOUT: Final = """\
SIZE(printk_ringbuffer)=88
OFFSET(printk_ringbuffer.desc_ring)=0
OFFSET(printk_ringbuffer.text_data_ring)=48
OFFSET(printk_ringbuffer.fail)=80
SIZE(prb_desc_ring)=48
OFFSET(prb_desc_ring.count_bits)=0
OFFSET(prb_desc_ring.descs)=8
OFFSET(prb_desc_ring.infos)=16
OFFSET(prb_desc_ring.head_id)=24
OFFSET(prb_desc_ring.tail_id)=32
SIZE(prb_desc)=24
OFFSET(prb_desc.state_var)=0
OFFSET(prb_desc.text_blk_lpos)=8
SIZE(prb_data_blk_lpos)=16
OFFSET(prb_data_blk_lpos.begin)=0
OFFSET(prb_data_blk_lpos.next)=8
SIZE(printk_info)=88
OFFSET(printk_info.seq)=0
OFFSET(printk_info.ts_nsec)=8
OFFSET(printk_info.text_len)=16
OFFSET(printk_info.caller_id)=20
OFFSET(printk_info.dev_info)=24
SIZE(dev_printk_info)=64
OFFSET(dev_printk_info.subsystem)=0
LENGTH(printk_info_subsystem)=16
OFFSET(dev_printk_info.device)=16
LENGTH(printk_info_device)=48
SIZE(prb_data_ring)=32
OFFSET(prb_data_ring.size_bits)=0
OFFSET(prb_data_ring.data)=8
OFFSET(prb_data_ring.head_lpos)=16
OFFSET(prb_data_ring.tail_lpos)=24
SIZE(atomic_long_t)=8
OFFSET(atomic_long_t.counter)=0
SIZE(latched_seq)=24
OFFSET(latched_seq.val)=8
"""


class KernelData:
    """Places variables one after the other in the data half of the kernel image."""

    def __init__(self, memory: DemoMemory, addresses: AddressMap) -> None:
        self._memory = memory
        self._addresses = addresses
        self._next = KERNEL_PAGES // 2 * PAGE

    def vaddr_of(self, offset: int) -> int:
        return self._addresses.text_vaddr + offset

    def reserve(self, n_bytes: int, align: int = 64) -> int:
        """Bytes from the start of the image at which `n_bytes` are free."""
        start = -(-self._next // align) * align
        self._next = start + n_bytes
        return start

    def place(self, data: bytes, align: int = 64) -> int:
        """The virtual address where `data` now is."""
        start = self.reserve(len(data), align)
        self._memory.write(self._addresses.kernel_pfn * PAGE + start, data)
        return self.vaddr_of(start)


def pack_utsname(release: str) -> bytes:
    """Struct new_utsname, 390 bytes."""
    strings = ("Linux", "demo", release, "#1 SMP dumpstream demo", "x86_64", "(none)")
    return b"".join(text.encode().ljust(_UTS_FIELD, b"\0") for text in strings)


@dataclass(frozen=True, slots=True)
class LogLine:
    """One record of the kernel log."""

    ts_nsec: int
    caller_id: int
    text: str


def log_lines(release: str) -> tuple[LogLine, ...]:
    """What the demo kernel had to say; the last lines are why it is here."""
    texts = [
        f"Linux version {release} (demo@dumpstream)",
        "Command line: demo=1 crashkernel=none",
        *(f"demo: chunk {number} is in use" for number in range(8)),
        "sysrq: Trigger a crash",
        "Kernel panic - not syncing: sysrq triggered crash",
    ]
    return tuple(
        LogLine(number * 137_000_123, 1 if number % 3 else 1 << 31, text)
        for number, text in enumerate(texts)
    )


def place_printk_ring(data: KernelData, lines: tuple[LogLine, ...]) -> int:
    """Build the ring; the address of the pointer variable `prb`."""
    count = 1 << _COUNT_BITS
    descs, infos = bytearray(24 * count), bytearray(88 * count)
    text = bytearray(1 << _TEXT_BITS)
    at = 0
    for number, line in enumerate(lines):
        ident = _FIRST_ID + number
        slot = ident % count
        raw = line.text.encode()
        block = -(-(8 + len(raw)) // 8) * 8
        struct.pack_into("<Q", text, at, ident)
        text[at + 8 : at + 8 + len(raw)] = raw
        struct.pack_into("<QQQ", descs, 24 * slot, _FINALIZED | ident, at, at + block)
        struct.pack_into(
            "<QQHBBI", infos, 88 * slot, number, line.ts_nsec, len(raw), 0, 0, line.caller_id
        )
        at += block
    ring = struct.pack(
        "<QQQQQQQQQQQ",
        _COUNT_BITS, data.place(bytes(descs)), data.place(bytes(infos)),
        _FIRST_ID + len(lines) - 1, _FIRST_ID, 0,
        _TEXT_BITS, data.place(bytes(text)), at, 0, 0,
    )  # fmt: skip
    return data.place(struct.pack("<Q", data.place(ring)))
