"""The command line, held at one point of its way: it says so on standard output, and waits there.

Nothing is simulated but the delay: it is the real process, its real files and real signals.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Final

_BEGIN: Final = """\
import os, sys, time
import anyio

def say():
    os.write(1, b"held\\n")

def hold(*_, **__):
    say()
    time.sleep(600)

async def wait(*_, **__):
    say()
    await anyio.sleep(600)

def slow_sync(_fd):
    say()
    time.sleep(1)

def fail(*_):
    raise OSError(5, "Input/output error")
"""
_END: Final = """
from pipeline.cli import main
sys.exit(main())
"""
PLACES: Final = {
    "opening the image": "import stages.reader.probe as it; it.open_image = hold",
    "opening the kernel": "import stages.translator.kernel as it; it.open_kernel = wait",
    "filtering": "from stages.filter.stage import FilterStage as It; It.run = wait",
    "planning the copy": "import stages.writer.plan as it; it.plan_kdump = wait",
    "syncing": "os.fsync = slow_sync",
    "sync that fails": "os.fsync = fail",
}


def held_command(place: str, *words: object) -> list[str]:
    """Words that start a dump which is held at `place`, a key of `PLACES`."""
    program = "\n".join((_BEGIN, PLACES[place], _END))
    return [sys.executable, "-c", program, "dump", *map(str, words)]


def wait_for_it(running: subprocess.Popen[bytes]) -> None:
    """Until the process is where it is held."""
    assert running.stdout is not None
    assert running.stdout.readline() == b"held\n", "ended before it got there"
