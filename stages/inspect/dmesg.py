"""The kernel log of an image, as dmesg prints it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from pipeline.errors import MissingInfoError
from stages.inspect.log_record import LogGap, format_gap, format_record
from stages.inspect.old_log import iter_indexed, iter_plain
from stages.inspect.printk_ring import iter_records
from stages.translator.kernel import Kernel


async def read_log(kernel: Kernel) -> AsyncIterator[bytes]:
    """Printable pieces of the log, oldest first; all but those of the oldest kernels are lines.

    The form is told by what VMCOREINFO names, newest first.

    Raises:
        MissingInfoError: VMCOREINFO names no log, or does not describe it.
        FormatError: what was found there makes no sense; pieces before it were given.
        TranslationError, MissingPageError: a part can't be read; pieces before it were given.
    """
    info = kernel.info
    if info.symbol("prb") is not None:
        async for found in iter_records(kernel):
            yield format_gap(found) if isinstance(found, LogGap) else format_record(found)
    elif info.symbol("log_next_idx") is not None:
        async for record in iter_indexed(kernel):
            yield format_record(record)
    elif info.symbol("log_end") is not None:
        async for text in iter_plain(kernel):
            yield text
    else:
        raise MissingInfoError("VMCOREINFO SYMBOL(prb)", "the kernel log")
