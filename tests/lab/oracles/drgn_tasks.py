"""drgn: the tasks of a dump, listed in a Python process of its own.

A process of its own, because drgn is a large extension that the tests' process need not carry, and
because a damaged dump may take its process down.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from tests.lab.commands import run
from tests.lab.tools import drgn_environment

if TYPE_CHECKING:
    from pathlib import Path

_PROGRAM = """
import json, sys
import drgn
from drgn.helpers.linux.pid import for_each_task
program = drgn.Program()
program.set_core_dump(sys.argv[1])
program.load_debug_info([sys.argv[2]])
tasks = [(task.pid.value_(), task.comm.string_().decode()) for task in for_each_task(program)]
json.dump(tasks, sys.stdout)
"""


def drgn_tasks(dump: Path, vmlinux: Path, timeout_s: float = 120) -> list[tuple[int, str]]:
    """pid and comm of each task, in the order of pids.

    Raises:
        LabError: drgn does not accept the dump; the message has its traceback.
    """
    words = [sys.executable, "-c", _PROGRAM, dump, vmlinux]
    tasks = json.loads(run(words, env=drgn_environment(), timeout_s=timeout_s))
    return sorted((int(pid), str(comm)) for pid, comm in tasks)
