"""dumpstream as its users start it: one process, arguments, files."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.lab.commands import run

_ROOT = Path(__file__).resolve().parents[2]


def dumpstream(*words: str | Path, timeout_s: float = 300) -> str:
    """Run the command line and return what it printed.

    Raises:
        LabError: it failed.
    """
    command = ["env", "-C", str(_ROOT), sys.executable, "-m", "pipeline"]
    return run([*command, *words], timeout_s=timeout_s)


def dump(image: Path, level: int, codec: str, out: Path, *options: str) -> None:
    """Dump `image` into `out`, overwriting it."""
    words = ["-d", str(level), "--compress", codec, "--progress", "none", "-f", *options]
    dumpstream("dump", *words, image, out)
