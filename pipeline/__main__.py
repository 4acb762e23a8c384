"""The process around the command line: the installed script, and ``python -m pipeline``.

The imports of a start are most of a short run, and whoever interrupts them is owed what any other
interruption gets: one line and an exit code. What this module imports while signals still have
their usual effect is therefore next to nothing.
"""

from __future__ import annotations

import gc
import os
import sys

TYPE_CHECKING = False  # as in typing, which takes 3 ms to import
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

_GC_THRESHOLD = 50_000  # new containers before the first look for garbage; 700 is the default
_INTERRUPTED = b"dumpstream: error: interrupted\n"
_FAILED = 1  # EXIT_FAILED of pipeline.errors


def run() -> NoReturn:
    """Run the command of `sys.argv`, and out, without taking the interpreter apart first.

    Importing makes containers by the hundred thousand and frees none; looking for garbage among
    them, and taking everything apart at the end, would be a tenth of a short run.
    """
    try:
        gc.set_threshold(_GC_THRESHOLD)
        _leave_on_signals()
    except KeyboardInterrupt:
        _leave()
    from pipeline.cli import main

    code = _FAILED
    try:
        code = main()
        _flush()
    except KeyboardInterrupt:
        pass  # once more, while `main` told of the first, or after its end
    os._exit(code)


def _flush() -> None:
    from contextlib import suppress

    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or never there
            stream.flush()


def _leave_on_signals() -> None:
    """Until `main` gives them its own meaning; what whoever started us ignores stays ignored."""
    import signal

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)


def _leave(_number: int = 0, _frame: FrameType | None = None) -> NoReturn:
    # Not by an exception: the middle of an import may turn it into another, or print it.
    try:
        os.write(2, _INTERRUPTED)
    finally:
        os._exit(_FAILED)


if __name__ == "__main__":
    run()
