"""Records of the kernel log, and how they are printed."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_CPU: Final = 1 << 31
"""In a caller id: the rest is a CPU number, else a task's pid."""
_UNPRINTABLE: Final = re.compile(rb"[^\x20-\x7e\t\n\v\f\r]")


class LogRecord(NamedTuple):
    """One record. `caller_id` is None where kernels don't keep it."""

    ts_nsec: int
    caller_id: int | None
    text: bytes


class LogGap(NamedTuple):
    """Records in a row that the image does not hold."""

    n_records: int


def escape(text: bytes) -> bytes:
    r"""`text` with everything but printable ASCII and white space as ``\xNN``."""
    return _UNPRINTABLE.sub(lambda found: b"\\x%02x" % found[0][0], text)


def format_record(record: LogRecord) -> bytes:
    """The record as dmesg prints it, ending in a newline; further lines of it are indented."""
    seconds, nanos = divmod(record.ts_nsec, 1_000_000_000)
    prefix = b"[%5d.%06d] " % (seconds, nanos // 1000)
    if record.caller_id is not None:
        kind = b"C" if record.caller_id & _CPU else b"T"
        prefix += b"[%8s] " % (kind + b"%d" % (record.caller_id & ~_CPU))
    text = escape(record.text).replace(b"\n", b"\n" + b" " * len(prefix))
    return prefix + text + b"\n"


def format_gap(gap: LogGap) -> bytes:
    """A line in the log's place: what is lost must be seen."""
    return b"<%d log records are not in the image>\n" % gap.n_records
