"""The kernel logs before the printk ring: indexed records (v3.5 to v5.9), and plain bytes before.

References:
    kernel/printk/printk.c of v5.9, kernel/printk.c of v3.4

Indexed: records of whole length `len`, one after another; a `len` of 0 means that the next one
starts at the beginning of the buffer::

    log_buf [ ... newest ][ log_next_idx     log_first_idx [ header | text ][ header | text ][ 0 ]

Plain: `log_end` counts every byte that was ever written; a byte's place is that number modulo the
size, which is a power of two.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import anyio.lowlevel

from pipeline.errors import FormatError
from stages.inspect.c_struct import CStruct
from stages.inspect.log_record import LogRecord, escape
from stages.translator.kernel import Kernel

_NEEDED_FOR: Final = "the kernel log"
_MAX_BYTES: Final = 1 << 31
"""The kernel takes no larger log_buf_len=."""
_WINDOW: Final = 256 << 10
"""Bytes read at once; at least twice the 64 KiB that a record may have."""
_MAX_RECORD: Final = 0xFFFF


async def _read_int(kernel: Kernel, symbol: str) -> int:
    return await kernel.read_u32(kernel.info.need_symbol(symbol, _NEEDED_FOR))


async def _read_size(kernel: Kernel) -> int:
    size = await _read_int(kernel, "log_buf_len")
    if not 0 < size <= _MAX_BYTES:
        raise FormatError("kernel log", None, "log_buf_len", size, f"1 to {_MAX_BYTES}")
    return size


@dataclass(frozen=True, slots=True)
class _Header:
    """Where a record's fields are."""

    n_bytes: int
    ts_nsec: int
    length: int
    text_len: int
    caller_id: int | None

    @classmethod
    def of(cls, kernel: Kernel) -> _Header:
        # struct log was renamed by Linux 62e32ac3505a ("printk: rename struct log to struct
        # printk_log") (in v3.11).
        name = "printk_log" if kernel.info.size("printk_log") is not None else "log"
        header = CStruct.named(kernel.info, name, _NEEDED_FOR)
        has_caller = kernel.info.offset(f"{name}.caller_id") is not None
        return cls(
            header.n_bytes,
            header.offset("ts_nsec", 8),
            header.offset("len", 2),
            header.offset("text_len", 2),
            header.offset("caller_id", 4) if has_caller else None,
        )


async def iter_indexed(kernel: Kernel) -> AsyncIterator[LogRecord]:
    """Records of the indexed buffer, oldest first.

    Raises:
        MissingInfoError: VMCOREINFO does not describe the buffer.
        FormatError: a length or an index makes no sense; everything before it was given.
        TranslationError, MissingPageError: a part can't be read; everything before it was given.
    """
    header = _Header.of(kernel)
    buffer = await kernel.read_u64(kernel.info.need_symbol("log_buf", _NEEDED_FOR))
    size = await _read_size(kernel)
    first = await _read_int(kernel, "log_first_idx")
    stop = await _read_int(kernel, "log_next_idx")
    for name, index in (("log_first_idx", first), ("log_next_idx", stop)):
        if index > size:
            raise FormatError("kernel log", None, name, index, f"{size} at most")
    parts = ((first, stop),) if first <= stop else ((first, size), (0, stop))
    for start, end in parts:
        async for record in _iter_part(kernel, header, buffer, start, end):
            yield record


async def _iter_part(
    kernel: Kernel, header: _Header, buffer: int, start: int, end: int
) -> AsyncIterator[LogRecord]:
    """Records between two offsets; a wrap marker ends them early. Every step goes forward."""
    at, window, data = start, start, b""
    while end - at >= header.n_bytes:
        if at + _MAX_RECORD > window + len(data) and window + len(data) < end:
            window, data = at, await kernel.read(buffer + at, min(_WINDOW, end - at))
            await anyio.lowlevel.checkpoint()
        raw = data[at - window :][: header.n_bytes]
        length = kernel.number(raw[header.length : header.length + 2])
        text_len = kernel.number(raw[header.text_len : header.text_len + 2])
        if length == 0:
            return
        if not header.n_bytes + text_len <= length <= end - at:
            wanted = f"{header.n_bytes + text_len} to {end - at}"
            raise FormatError("kernel log", None, f"length of the record at {at}", length, wanted)
        caller = header.caller_id
        yield LogRecord(
            kernel.number(raw[header.ts_nsec : header.ts_nsec + 8]),
            None if caller is None else kernel.number(raw[caller : caller + 4]),
            data[at - window + header.n_bytes :][:text_len],
        )
        at += length


async def iter_plain(kernel: Kernel) -> AsyncIterator[bytes]:
    """Text of the plain buffer in pieces, oldest first; raises as `iter_indexed`."""
    buffer = await kernel.read_u64(kernel.info.need_symbol("log_buf", _NEEDED_FOR))
    size = await _read_size(kernel)
    if size & (size - 1):
        raise FormatError("kernel log", None, "log_buf_len", size, "a power of two")
    # An unsigned long until v2.6.25, an unsigned int since: the low half serves for both.
    written = await _read_int(kernel, "log_end")
    parts = [(0, written)] if written <= size else [(written % size, size), (0, written % size)]
    for start, end in parts:
        for at in range(start, end, _WINDOW):
            yield escape(await kernel.read(buffer + at, min(_WINDOW, end - at)))
