"""What processes other than ours use: from /proc, while they run."""

from __future__ import annotations

import os
from pathlib import Path

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> tuple[float, float]:
    """User and system time of `pid`, its children that have ended, and those that run."""
    user = system = 0.0
    for each in [pid, *_children(pid)]:
        try:
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        # utime, stime, cutime, cstime: fields 14 to 17 of proc_pid_stat(5), two before the name
        times = [int(word) / _TICKS_A_SECOND for word in fields[11:15]]
        user += times[0] + times[2]
        system += times[1] + times[3]
    return user, system


def busy_seconds() -> float:
    """Processor time of everything on the machine since it started, interrupts included."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    # proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal
    user, nice, system, _, _, irq, softirq, steal = map(int, words[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICKS_A_SECOND


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            direct = [int(word) for word in path.read_text().split()]
        except OSError:
            continue
        for child in direct:
            found += [child, *_children(child)]
    return found


def peak_rss(pid: int) -> int:
    """Most bytes that `pid` alone ever had in memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
