"""One run of ours, measured, and the proof that what it left is a whole dump."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.measure import Measured, measure
from bench.network.processes import busy_seconds

_VERIFY_S = 300
_PROGRAM = [sys.executable, "-m", "pipeline"]


@dataclass(frozen=True, slots=True)
class Target:
    """What the command line and the environment must say to reach a place."""

    url: str
    sets: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)

    def environ(self) -> dict[str, str]:
        return {**os.environ, **self.env}


@dataclass(frozen=True, slots=True)
class Dumped:
    """A dump that was made, and what it took.

    Attributes:
        busy_s: processor time of the whole machine meanwhile.
    """

    measured: Measured
    stats: dict[str, Any]
    busy_s: float

    @property
    def wall_s(self) -> float:
        return self.measured.wall_s

    @property
    def copy_s(self) -> float:
        """Seconds of the phase that moves data."""
        return float(self.stats["seconds_by_phase"]["copy"])

    @property
    def n_bytes(self) -> int:
        return int(self.stats["size_bytes"])


def dump_command(image: Path, target: Target, level: int, codec: str) -> list[str]:
    """Our command line, all defaults but what the case names."""
    sets = [word for each in target.sets for word in ("--set", each)]
    words = ["dump", "-d", str(level), "--compress", codec, "-f", "--progress", "none", *sets]
    return [*_PROGRAM, *words, str(image), target.url]


def dump(image: Path, target: Target, *, level: int, codec: str) -> Dumped:
    """Make a dump; what others wrote before it is on its disk by then.

    Raises:
        SystemExit: it failed: a failure is not timed.
    """
    with tempfile.TemporaryDirectory() as folder:
        stats = Path(folder) / "stats.json"
        argv = dump_command(image, target, level, codec)
        argv[-2:-2] = ["--stats", str(stats)]
        os.sync()
        before = busy_seconds()
        done = checked(argv, {**target.environ(), "XDG_STATE_HOME": folder})
        return Dumped(done, json.loads(stats.read_text()), busy_seconds() - before)


def checked(argv: Sequence[str], env: dict[str, str] | None = None) -> Measured:
    """Measure, and refuse to time a failure."""
    os.sync()
    done = measure(list(argv), env=env)
    if done.exit_code:
        raise SystemExit(f"{' '.join(argv)}: exit code {done.exit_code}\n{done.stderr}")
    return done


def verify(target: Target) -> None:
    """Have the product check what is stored: every page of a file, the proof of a URL.

    Raises:
        SystemExit: it is not whole.
    """
    done = subprocess.run(
        [*_PROGRAM, "verify", target.url],
        env=target.environ(),
        capture_output=True,
        text=True,
        check=False,
        timeout=_VERIFY_S,
    )
    if done.returncode:
        raise SystemExit(f"verify {target.url}: {done.stdout}{done.stderr}")
