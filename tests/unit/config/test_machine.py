"""CPUs and memory from /proc and control groups, read from trees laid out as Linux has them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.config.machine import read_machine
from pipeline.config.settings import GIB, MIB

MEMINFO = "MemTotal:  2097152 kB\nMemFree: 100 kB\nMemAvailable:    1048576 kB\n"


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
    return root


@pytest.fixture
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 5})


class TestMemory:
    def test_without_groups(self, tmp_path: Path) -> None:
        """MemAvailable counts where no group limits."""
        facts = read_machine(tree(tmp_path, {"proc/meminfo": MEMINFO}))

        assert facts.available_bytes == GIB
        assert facts.memory_why == "MemAvailable"

    def test_v2_limit_of_a_parent_holds(self, tmp_path: Path) -> None:
        """A limit of the parent group counts; page cache that the group holds can be dropped."""
        root = tree(
            tmp_path,
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "0::/pod/box\n",
                "sys/fs/cgroup/pod/memory.max": f"{300 * MIB}\n",
                "sys/fs/cgroup/pod/memory.current": f"{200 * MIB}\n",
                "sys/fs/cgroup/pod/memory.stat": f"anon 1\nfile {150 * MIB}\n",
                "sys/fs/cgroup/pod/box/memory.max": "max\n",
            },
        )

        facts = read_machine(root)

        assert facts.available_bytes == 250 * MIB
        assert "control group" in facts.memory_why

    def test_v1_limit(self, tmp_path: Path) -> None:
        """The first version of control groups names controllers and files differently."""
        root = tree(
            tmp_path,
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "9:name=systemd:/\n4:memory:/box\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/box/memory.limit_in_bytes": f"{100 * MIB}\n",
                "sys/fs/cgroup/memory/box/memory.usage_in_bytes": f"{60 * MIB}\n",
            },
        )

        assert read_machine(root).available_bytes == 40 * MIB

    def test_group_over_its_limit(self, tmp_path: Path) -> None:
        """A group that holds more than it may has nothing left, not less than nothing."""
        root = tree(
            tmp_path,
            {
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": "1000\n",
                "sys/fs/cgroup/memory.current": "5000\n",
            },
        )

        assert read_machine(root).available_bytes == 0

    @pytest.mark.parametrize("text", ["", "MemAvailable:\n", "MemAvailable: lots kB\n", "\n\n:"])
    def test_odd_meminfo(self, tmp_path: Path, text: str) -> None:
        """What cannot be read is not known, and never an error."""
        facts = read_machine(tree(tmp_path, {"proc/meminfo": text}))

        assert facts.available_bytes is None

    def test_nothing_mounted(self, tmp_path: Path) -> None:
        """Without /proc and /sys the CPUs come from affinity alone."""
        facts = read_machine(tmp_path)

        assert facts.available_bytes is None
        assert facts.n_cpus == len(os.sched_getaffinity(0))


@pytest.mark.usefixtures("two_cpus")
class TestCpus:
    def test_affinity(self, tmp_path: Path) -> None:
        """Without a quota the affinity mask counts, however many CPUs the machine has."""
        assert read_machine(tmp_path).n_cpus == 2

    @pytest.mark.parametrize(
        ("quota", "n_cpus"),
        [
            ("max 100000", 2),
            ("50000 100000", 1),
            ("100000 100000", 1),
            ("140000 100000", 1),
            ("150000 100000", 2),
            ("800000 100000", 2),
            ("-1 100000", 2),
            ("100000 0", 2),
            ("100000", 2),
            ("", 2),
        ],
    )
    def test_v2_quota(self, tmp_path: Path, quota: str, n_cpus: int) -> None:
        """A quota of the group lowers the number to what it lets run, one at least."""
        root = tree(
            tmp_path,
            {"proc/self/cgroup": "0::/box\n", "sys/fs/cgroup/box/cpu.max": quota},
        )

        assert read_machine(root).n_cpus == n_cpus

    def test_v1_quota(self, tmp_path: Path) -> None:
        """cpu.cfs_quota_us over its period, where cpu shares its mount with cpuacct."""
        root = tree(
            tmp_path,
            {
                "proc/self/cgroup": "2:cpu,cpuacct:/box\n",
                "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000\n",
            },
        )

        facts = read_machine(root)

        assert facts.n_cpus == 1
        assert "quota of 1.00 CPUs" in facts.cpus_why
