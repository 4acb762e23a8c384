"""drgn: what it reads at many virtual addresses of a dump, with no symbols but VMCOREINFO's.

Of an ELF dump drgn walks the page tables itself (x86_64, aarch64); of a kdump-compressed one it
leaves that to libkdumpfile, which knows more architectures. Neither shares code with dumpstream.
"""

from __future__ import annotations

import json
import sys
from hashlib import sha256
from typing import TYPE_CHECKING

from tests.lab.commands import run
from tests.lab.tools import drgn_environment

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_PROGRAM = """
import json, sys
from hashlib import sha256
import drgn
program = drgn.Program()
program.set_core_dump(sys.argv[1])
n_bytes = int(sys.argv[2])
seen = []
for address in json.load(sys.stdin):
    try:
        seen.append(sha256(program.read(address, n_bytes)).hexdigest())
    except drgn.FaultError:
        seen.append(None)
json.dump(seen, sys.stdout)
"""


def digest(data: bytes) -> str:
    """As `drgn_digests` gives it."""
    return sha256(data).hexdigest()


def drgn_digests(
    dump: Path, addresses: Sequence[int], n_bytes: int, timeout_s: float = 120
) -> list[str | None]:
    """SHA-256 of `n_bytes` from each virtual address on, None where drgn finds no memory.

    Raises:
        LabError: drgn does not accept the dump; the message has its traceback.
    """
    words = [sys.executable, "-c", _PROGRAM, dump, n_bytes]
    asked = json.dumps([int(address) for address in addresses])
    said = run(words, env=drgn_environment(), timeout_s=timeout_s, text_in=asked)
    seen: list[str | None] = json.loads(said)
    return seen
