"""Memory of the run: the main process and its workers together.

References: proc_pid_status(5) (VmHWM), proc_pid_smaps(5) and Linux
Documentation/ABI/testing/procfs-smaps_rollup (Pss: shared pages count a share in each process, so
that sums over processes are right), getrusage(2). Whatever cannot be read counts as not known.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from msgspec import Struct

SAMPLE_INTERVAL_S: Final = 1.0


class PeakMemory(Struct, frozen=True):
    """Bytes; None where the kernel does not tell.

    Attributes:
        self_rss: most that the main process had resident.
        children_rss: most that any one worker had resident, of those that have ended.
        total_pss: most that all processes together had at a moment when it was sampled; None for
            a run that was over before it was, too.
    """

    self_rss: int
    children_rss: int
    total_pss: int | None

    @property
    def total(self) -> int:
        """Best single figure: sampled sums miss short peaks, so never below the main process."""
        return max(self.total_pss or 0, self.self_rss)


def child_pids(pid: int | None = None) -> list[int]:
    """Children of `pid` (this process when None); empty when the kernel does not list them."""
    found: list[int] = []
    for task in Path(f"/proc/{pid or os.getpid()}/task").glob("*/children"):
        found += [int(word) for word in _text(task).split()]
    return found


def pss_bytes(pid: int) -> int | None:
    """Proportional share of `pid`, None when it ended or may not be looked at."""
    return _kib_field(Path(f"/proc/{pid}/smaps_rollup"), "Pss")


def peak_rss_bytes() -> int:
    """Most that this process had resident since it started its program."""
    # ru_maxrss survives exec(2): it would show the size of whoever started us.
    high = _kib_field(Path("/proc/self/status"), "VmHWM")
    return high or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class MemorySampler:
    """Keeps the highest sum of proportional shares that `sample` has seen.

    A sample costs the kernel a walk over all mappings, some milliseconds at 100 MiB: call it a few
    times a second at most.
    """

    def __init__(self, workers: Callable[[], Iterable[int]] = child_pids) -> None:
        """`workers` names the processes besides this one, at each sample."""
        self._workers = workers
        self._peak: int | None = None

    def sample(self) -> int | None:
        """Bytes of all processes now, None when this one cannot be read."""
        own = pss_bytes(os.getpid())
        if own is None:
            return None
        total = own + sum(pss_bytes(pid) or 0 for pid in self._workers())
        self._peak = max(self._peak or 0, total)
        return total

    async def watch(self) -> None:
        """Sample until cancelled, in a thread: nobody has to wait for the kernel's walks.

        Not at once: a dump that takes a third of a second would be 3 % slower for one sample.
        """
        import anyio.to_thread

        while True:
            await anyio.sleep(SAMPLE_INTERVAL_S)
            await anyio.to_thread.run_sync(self.sample)

    def sample_if_none(self) -> None:
        """For a run that was over before its first sample, and still wants the figure."""
        if self._peak is None:
            self.sample()

    def peak(self) -> PeakMemory:
        children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        return PeakMemory(peak_rss_bytes(), children, self._peak)


def _kib_field(path: Path, name: str) -> int | None:
    for line in _text(path).splitlines():
        field, _, rest = line.partition(":")
        words = rest.split()
        if field == name and words and words[0].isdigit():
            return int(words[0]) * 1024
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
