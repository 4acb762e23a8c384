"""Run a command as a whole process tree: wall time, CPU time, and peak memory of the tree."""

from __future__ import annotations

import mmap
import os
import resource
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

_SAMPLE_S = 0.05
_SPARE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Measured:
    """One run. `peak_pss` sums proportional shares over the tree; short peaks can be missed."""

    wall_s: float
    cpu_s: float
    peak_pss: int
    max_rss: int
    """Largest single process, as the kernel recorded it."""
    exit_code: int
    stderr: str


def measure(argv: list[str], *, env: dict[str, str] | None = None, memory: bool = True) -> Measured:
    """Run `argv` to its end; without `memory`, peak_pss and max_rss stay 0.

    Sampling walks the page tables of every process of the tree, 20 times a second: that slows the
    run down, the more the more processes there are, and needs a core that the run may be using.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env
    )
    sampler = _Sampler(process.pid)
    if memory:
        sampler.start()
    _, stderr = process.communicate()
    wall = time.perf_counter() - started
    if memory:
        sampler.stop()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    return Measured(
        wall,
        cpu,
        sampler.peak,
        sampler.max_rss,
        process.returncode,
        stderr.decode(errors="replace"),
    )


class _Sampler(threading.Thread):
    """Adds up Pss over the tree, again and again, until stopped."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._done = threading.Event()
        self.peak = 0
        self.max_rss = 0

    def run(self) -> None:
        while not self._done.wait(_SAMPLE_S):
            pids = [self._pid, *_descendants(self._pid)]
            self.peak = max(self.peak, sum(_field(pid, "smaps_rollup", "Pss:") for pid in pids))
            self.max_rss = max([self.max_rss, *(_field(pid, "status", "VmHWM:") for pid in pids)])

    def stop(self) -> None:
        self._done.set()
        self.join()


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    try:
        # A process may end between any two of these.
        texts = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return found
    for text in texts:
        children = [int(word) for word in text.split()]
        for child in children:
            found += [child, *_descendants(child)]
    return found


def _field(pid: int, name: str, key: str) -> int:
    try:
        for line in Path(f"/proc/{pid}/{name}").read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0


def warm(path: Path) -> None:
    """Read `path` once, so that every run finds it in the page cache; holes are skipped."""
    fd = os.open(path, os.O_RDONLY)
    buffer = bytearray(4 << 20)
    size = os.fstat(fd).st_size
    at = 0
    try:
        while at < size:
            try:
                at = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:
                return
            stop = os.lseek(fd, at, os.SEEK_HOLE)
            while at < stop:
                at += os.preadv(fd, [buffer], at) or stop
    finally:
        os.close(fd)


def settle(n_bytes: int) -> None:
    """Leave the same machine to whoever runs next: nothing to write back, `n_bytes` of free memory.

    A virtual machine's free memory may be nowhere until it is touched, at several times the cost of
    writing to it: the first run after another's files were removed would pay for both.
    """
    os.sync()
    size = n_bytes + _SPARE_BYTES
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        for at in range(0, size, mmap.PAGESIZE):
            memory[at] = 1


def sync_s(path: Path) -> float:
    """Seconds that it takes to have all of `path` on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        started = time.perf_counter()
        os.fsync(fd)
        return time.perf_counter() - started
    finally:
        os.close(fd)
