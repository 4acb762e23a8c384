"""The memory budget is held: on a real image, by the process and its workers together."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest

from stages.demo.build import DemoFacts
from tests.lab.build import ensure_image
from tests.robust.running import call, children, finish, started

MIB = 1024
"""In the KiB that /proc counts in."""
CAPTURE_MIB = 100
DEFAULT_MIB = 150


def pss_kib(pid: int) -> int:
    """Memory of a process, what it shares with others divided by their number."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (OSError, ProcessLookupError):
        return 0
    found = re.search(r"^Pss:\s+([0-9]+) kB$", text, re.MULTILINE)
    return int(found[1]) if found is not None else 0


def peak_kib(running: subprocess.Popen[bytes]) -> int:
    """The most that the process and its workers were seen to take, until it ends."""
    peak = 0
    while running.poll() is None:
        try:
            every = [running.pid, *children(running.pid)]
        except (OSError, ProcessLookupError):
            break
        peak = max(peak, sum(map(pss_kib, every)))
        time.sleep(0.005)
    return peak


def run_measured(*words: object) -> int:
    with started("dump", "-f", *words) as running:
        peak = peak_kib(running)
        finish(running).succeeded()
    return peak


CODECS = ["none", "zlib", "lzo", "snappy", "zstd"]


@pytest.mark.parametrize("codec", CODECS)
def test_capture_on_the_demo_image(codec: str, demo: DemoFacts, target: Path) -> None:
    """The profile of the capture kernel, with two workers where one CPU would have none."""
    words = ("--profile", "capture", "--set", "compressor.workers=2", "--compress", codec)

    assert run_measured(*words, "-d", "1", demo.path, target) < CAPTURE_MIB * MIB


@pytest.mark.lab
@pytest.mark.parametrize("level", [0, 1, 31])
class TestRealImage:
    """A GiB of Linux 6.1: more would only take longer."""

    @pytest.mark.parametrize("codec", CODECS)
    def test_capture(self, codec: str, level: int, target: Path) -> None:
        """100 MiB are what a capture kernel can spare."""
        image = ensure_image("k6.1-4l")
        words = ("--profile", "capture", "--compress", codec, "-d", level)

        assert run_measured(*words, image, target) < CAPTURE_MIB * MIB

    def test_default(self, level: int, target: Path) -> None:
        """150 MiB without any setting, and the dump is right."""
        image = ensure_image("k6.1-4l")

        assert run_measured("-d", level, image, target) < DEFAULT_MIB * MIB
        assert call("verify", target, "--against", image).code == 0

    def test_smallest_budget(self, level: int, target: Path) -> None:
        """8 MiB is the least that can be asked for: it shrinks what it can, and works."""
        image = ensure_image("k6.1-4l")
        words = ("--set", "memory.budget=8MiB", "-d", level)

        assert run_measured(*words, image, target) < CAPTURE_MIB * MIB
