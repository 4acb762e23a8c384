"""Runs the lab's external commands: each with a time limit, its last words kept if it fails."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TAIL_LINES = 30


class MirrorError(Exception):
    """The mirror's own files of a foreign architecture do not fit together; try another day."""


class LabError(Exception):
    """Something the lab needs could not be made or fetched; the message says what and why."""


def not_installed(program: str) -> LabError:
    """The error for a program that apt has, and this machine has not."""
    return LabError(f"{program} is not installed (python -m tests.lab tools --install)")


def tail(text: str, lines: int = TAIL_LINES) -> str:
    """The last lines of a log, for an error message."""
    return "\n".join(text.splitlines()[-lines:])


def which(name: str) -> Path:
    """A program on this machine's path, sbin included.

    Raises:
        LabError: it is not installed.
    """
    found = shutil.which(name, path="/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin")
    if found is None:
        raise not_installed(name)
    return Path(found)


def run(
    argv: Sequence[object],
    *,
    timeout_s: float = 300,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    text_in: str | None = None,
) -> str:
    """Runs a command to its end and returns what it printed on stdout.

    Raises:
        LabError: the command is missing, failed, or took longer than `timeout_s`.
    """
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words,
            input=text_in,
            stdin=subprocess.DEVNULL if text_in is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            cwd=cwd,
            env=env,
            check=False,
        )
    except FileNotFoundError as error:
        raise not_installed(words[0]) from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{' '.join(words)}: no end after {timeout_s} s") from error
    if done.returncode != 0:
        said = tail(done.stderr or done.stdout)
        raise LabError(f"{' '.join(words)}: exit {done.returncode}\n{said}")
    return done.stdout
