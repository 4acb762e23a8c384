"""What this process may use: CPUs and memory, by affinity, control groups and /proc.

References: sched_getaffinity(2), cgroups(7), Linux Documentation/admin-guide/cgroup-v2.rst
(cpu.max, memory.max, memory.current) and cgroup-v1/memory.rst. Files that are absent or odd are
facts too: the number is then not limited by them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.config.resolved import MachineFacts

# cgroup v1 says "no limit" by a number close to 2**63.
_NO_LIMIT = 1 << 60


def read_machine(root: Path = Path("/")) -> MachineFacts:
    """Facts of this process; `root` is where ``proc`` and ``sys`` are looked for."""
    n_cpus, cpus_why = _cpus(root)
    available, memory_why = _memory(root)
    return MachineFacts(n_cpus, cpus_why, available, memory_why)


def _cpus(root: Path) -> tuple[int, str]:
    n_cpus = len(os.sched_getaffinity(0))
    quotas = [quota for folder in _groups(root, "cpu") if (quota := _cpu_quota(folder)) is not None]
    # Half a CPU more lets a second worker run while the first waits; less than that does not.
    if quotas and (limit := max(int(min(quotas) + 0.5), 1)) < n_cpus:
        return limit, f"{limit} by the control group's quota of {min(quotas):.2f} CPUs"
    return n_cpus, f"{n_cpus} by CPU affinity"


def _cpu_quota(folder: Path) -> float | None:
    """CPUs that the group may keep busy, None when not limited."""
    quota, period = _words(folder / "cpu.max", 2)
    if quota is None:
        (quota,) = _words(folder / "cpu.cfs_quota_us", 1)
        (period,) = _words(folder / "cpu.cfs_period_us", 1)
    if quota is None or period is None or quota <= 0 or period <= 0:
        return None
    return quota / period


def _memory(root: Path) -> tuple[int | None, str]:
    found: list[tuple[int, str]] = []
    available = _mem_available(root / "proc/meminfo")
    if available is not None:
        found.append((available, "MemAvailable"))
    for folder in _groups(root, "memory"):
        left = _memory_left(folder)
        if left is not None:
            found.append((left, "the control group's memory limit"))
    return min(found) if found else (None, "nothing says how much memory is available")


def _mem_available(path: Path) -> int | None:
    for line in _text(path).splitlines():
        name, _, rest = line.partition(":")
        number = rest.split()[:1]
        if name == "MemAvailable" and number and number[0].isdigit():
            return int(number[0]) * 1024
    return None


def _memory_left(folder: Path) -> int | None:
    """Bytes that the group may still take, None when not limited."""
    for limit_name, used_name in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        (limit,) = _words(folder / limit_name, 1)
        (used,) = _words(folder / used_name, 1)
        if limit is not None and limit < _NO_LIMIT:
            # Page cache counts as used and can be dropped; it is what memory.stat calls file.
            return max(limit - max((used or 0) - _file_cache(folder), 0), 0)
    return None


def _file_cache(folder: Path) -> int:
    for line in _text(folder / "memory.stat").splitlines():
        name, _, number = line.partition(" ")
        if name in {"file", "total_cache"} and number.isdigit():
            return int(number)
    return 0


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's groups and of their parents, whose limits hold too."""
    mounts = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        unified = number == "0" and not controllers
        if not unified and controller not in controllers.split(","):
            continue
        top = mounts if unified else mounts / controllers
        folder = top / path.strip("/")
        yield folder
        while folder != top and folder.parent != folder:
            folder = folder.parent
            yield folder


def _words(path: Path, n_words: int) -> list[int | None]:
    """The first `n_words` of a small file as numbers; None for absent ones and for ``max``."""
    words = _text(path).split()[:n_words]
    numbers = [int(word) if word.lstrip("-").isdigit() else None for word in words]
    return numbers + [None] * (n_words - len(numbers))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
