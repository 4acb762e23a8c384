"""The command line on a disk with bad sectors: chosen bytes of one file answer EIO.

The process, its forked workers and its files are real; only the calls that read are told to fail,
since nothing in a container can make a file of the page cache fail by itself.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_PROGRAM: Final = """\
import json, os, sys
path, bad = json.loads(sys.argv.pop(1))
preadv, pread = os.preadv, os.pread

def check(fd, off, n_bytes):
    if os.readlink(f"/proc/self/fd/{fd}") == path:
        if any(off < stop and off + n_bytes > start for start, stop in bad):
            raise OSError(5, "Input/output error")

def faulty_preadv(fd, buffers, off, *flags):
    check(fd, off, sum(len(one) for one in buffers))
    return preadv(fd, buffers, off, *flags)

def faulty_pread(fd, n_bytes, off):
    check(fd, off, n_bytes)
    return pread(fd, n_bytes, off)

os.preadv, os.pread = faulty_preadv, faulty_pread
from pipeline.cli import main
sys.exit(main())
"""


def faulty_command(path: Path, bad: Iterable[tuple[int, int]], *words: object) -> list[str]:
    """Words that start the command line where byte ranges `bad` of the file can't be read."""
    what = json.dumps([str(path.resolve()), list(bad)])
    return [sys.executable, "-c", _PROGRAM, what, *map(str, words)]
