"""A clock and a meter around whatever a hostile image may keep busy."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

MOST_S: Final = 20
"""Far above what a refusal takes on a busy machine, far below what believing a lie costs."""
MOST_MIB: Final = 120
"""Above what the process had before; a dump with the usual settings takes less than half of it."""
_STATUS: Final = Path("/proc/self/status")


class TooSlowError(BaseException):
    """Not an Exception, so that nothing on the way takes it for one of its own."""


def _status_kib(name: str) -> int:
    found = re.search(rf"^{name}:\s+([0-9]+) kB$", _STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


@contextlib.contextmanager
def bounded(most_s: int = MOST_S, most_mib: int = MOST_MIB) -> Iterator[None]:
    """Fail when the block takes longer or grows the process by more."""

    def too_slow(_number: int, _frame: FrameType | None) -> NoReturn:
        raise TooSlowError(f"no end after {most_s} s")

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before_kib = _status_kib("VmRSS")
    handler = signal.signal(signal.SIGALRM, too_slow)
    signal.alarm(most_s)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
    grown_kib = _status_kib("VmHWM") - before_kib
    assert grown_kib < most_mib << 10, f"took {grown_kib >> 10} MiB"
