"""The crash utility: what it says about a dump, with what differs from dump to dump taken out."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.commands import LabError, run, tail
from tests.lab.tools import crash

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = ("sys", "bt -a", "kmem -i", "ps", "log")
_MARK = "lab-output-of"
# lines that name the files looked at
_FILES = re.compile(r"^ +(KERNEL|DUMPFILE|DEBUGINFO): .*\n", re.MULTILINE)


def _input(commands: Sequence[str]) -> str:
    """crash's own commands, each after a line that says which one it is."""
    lines = [line for command in commands for line in (f"!echo '{_MARK} {command}'", command)]
    return "\n".join([*lines, "quit", ""])


def parse_output(text: str) -> dict[str, str]:
    """Splits crash's output at the marks, by command."""
    outputs = {}
    for part in text.split(f"{_MARK} ")[1:]:
        command, _, output = part.partition("\n")
        outputs[command] = _FILES.sub("", output)
    return outputs


def crash_commands(
    vmlinux: Path, dump: Path, commands: Sequence[str] = COMMANDS, timeout_s: float = 120
) -> dict[str, str]:
    """Opens a dump in crash, runs commands, and returns the output of each.

    Raises:
        LabError: crash does not accept the dump, or ends before the last command.
    """
    with tempfile.TemporaryDirectory(prefix="lab-crash-") as name:
        script = Path(name, "input")
        script.write_text(_input(commands))
        # HOME keeps a .crashrc of the user out of it
        words = ["env", f"HOME={name}", "TERM=dumb", "TZ=UTC", *crash()]
        words += ["-s", "--no_modules", "--no_scroll", "-i", str(script)]
        text = run([*words, vmlinux, dump], timeout_s=timeout_s)
    outputs = parse_output(text)
    if list(outputs) != list(commands):
        raise LabError(f"crash answered only {list(outputs)} of {list(commands)}:\n{tail(text)}")
    return outputs


def crash_tasks(ps: str) -> list[tuple[int, str]]:
    """pid and comm of each line of `ps`, but for idle tasks; kernel threads without brackets."""
    found = re.findall(r"^>? +(\d+) +\d+ +\d+ +[0-9a-f]{16} .* (\S.*)$", ps, re.MULTILINE)
    return [(int(pid), _bare(comm)) for pid, comm in found if pid != "0"]


def _bare(comm: str) -> str:
    return comm[1:-1] if comm.startswith("[") and comm.endswith("]") else comm
