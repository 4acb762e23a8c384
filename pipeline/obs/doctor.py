"""Is this machine fit for dumping, and is everything installed: one line for each question.

Nothing of the product's own dependencies is imported here, so that a missing one is a line of the
answer instead of its end.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal, TextIO

from pipeline.errors import EXIT_DONE, EXIT_FAILED
from pipeline.memory.sizes import show_size
from pipeline.obs.plain import printable
from pipeline.obs.version import own_version

Status = Literal["ok", "warn", "fail"]

LEAST_PYTHON: Final = (3, 11)
LEAST_AVAILABLE_BYTES: Final = 100 << 20
"""What the capture profile stays under."""
NEEDED: Final = ("anyio", "msgspec", "numpy", "structlog", "zstandard")
BY_USE: Final = {
    "aiofiles": "sink.write_mode = aiofiles",
    "isal": "zlib at level 1 and checksums of the network; Python's own are used without it",
    "cramjam": "snappy, and zlib at level 1",
    "lzallright": "reading lzo, and writing it where liblzo2 is absent",
}


@dataclass(frozen=True, slots=True)
class Check:
    """One answer. `fail`: dumps cannot be made like this; `warn`: some cannot."""

    name: str
    status: Status
    said: str


def run_doctor(directory: str, out: TextIO) -> int:
    """Print one line for each check to `out`; exit code 1 when something needed is absent."""
    failed = False
    for check in checks(directory):
        out.write(f"{check.status:<4}  {check.name:<12} {printable(check.said)}\n")
        failed = failed or check.status == "fail"
    return EXIT_FAILED if failed else EXIT_DONE


def checks(directory: str, root: Path = Path("/")) -> Iterator[Check]:
    """All of them; `root` is where ``proc`` and ``sys`` are looked for."""
    yield Check("dumpstream", "ok", own_version())
    yield check_python(sys.version_info[:3])
    yield from (check_package(name, None) for name in NEEDED)
    yield from (check_package(name, use) for name, use in BY_USE.items())
    yield check_library("liblzo2.so.2", "lzo by lzallright, which is slower")
    yield from _machine_checks(root)
    vmcore = root / "proc/vmcore"
    yield check_vmcore(vmcore)
    if not vmcore.exists():  # the capture kernel itself has nothing reserved, and needs nothing
        yield check_crashkernel(root / "sys/kernel")
    yield check_space(directory)
    yield check_terminal(sys.stderr)


def check_python(version: tuple[int, ...]) -> Check:
    said = ".".join(str(part) for part in version)
    if version[:2] >= LEAST_PYTHON:
        return Check("python", "ok", said)
    return Check("python", "fail", f"{said}, needs {LEAST_PYTHON[0]}.{LEAST_PYTHON[1]} or newer")


def check_package(name: str, use: str | None) -> Check:
    """`use` is None for a package that every run needs, else what it is for."""
    if find_spec(name) is None:
        if use is None:
            return Check(name, "fail", "not installed")
        return Check(name, "warn", f"not installed; for {use}")
    try:
        return Check(name, "ok", metadata.version(name))
    except metadata.PackageNotFoundError:
        return Check(name, "ok", "version not known: copied without its metadata")


def check_library(soname: str, without: str) -> Check:
    try:
        ctypes.CDLL(soname)
    except OSError:
        return Check("liblzo2", "warn", f"{soname} not found: {without}")
    return Check("liblzo2", "ok", soname)


def _machine_checks(root: Path) -> Iterator[Check]:
    try:
        from pipeline.config.machine import read_machine
    except ImportError:
        return  # msgspec is absent, and has its line already
    machine = read_machine(root)
    yield Check("cpus", "ok", machine.cpus_why)
    if machine.available_bytes is None:
        yield Check("memory", "warn", machine.memory_why)
        return
    said = f"{show_size(machine.available_bytes)} available ({machine.memory_why})"
    enough = machine.available_bytes >= LEAST_AVAILABLE_BYTES
    more = "" if enough else f", {show_size(LEAST_AVAILABLE_BYTES)} would be safe"
    yield Check("memory", "ok" if enough else "warn", said + more)


def check_vmcore(path: Path) -> Check:
    if not path.exists():
        return Check("vmcore", "ok", f"no {path}: this is not a capture kernel")
    if os.access(path, os.R_OK):
        return Check("vmcore", "ok", f"{path} is readable")
    return Check("vmcore", "fail", f"{path} is there but not readable: root is needed")


def check_crashkernel(folder: Path) -> Check:
    """Memory set aside for a capture kernel, and whether one is loaded."""
    size, loaded = _number(folder / "kexec_crash_size"), _number(folder / "kexec_crash_loaded")
    if size is None:
        return Check("crashkernel", "warn", "not known: the kernel has no kexec, or hides it")
    if size == 0:
        return Check("crashkernel", "warn", "nothing reserved: a crash leaves no /proc/vmcore")
    if not loaded:
        return Check("crashkernel", "warn", f"{show_size(size)} reserved, but no kernel is loaded")
    return Check("crashkernel", "ok", f"{show_size(size)} reserved, and a kernel is loaded")


def check_space(directory: str) -> Check:
    try:
        free = shutil.disk_usage(directory).free
    except OSError as error:
        return Check("space", "fail", f"{directory}: {error.strerror}")
    if not os.access(directory, os.W_OK | os.X_OK):
        return Check("space", "fail", f"{directory} is not writable")
    return Check("space", "ok", f"{show_size(free)} free in {directory}")


def check_terminal(stream: TextIO) -> Check:
    if stream.isatty():
        return Check("terminal", "ok", f"standard error is one ({os.environ.get('TERM', 'dumb')})")
    return Check("terminal", "ok", "standard error is none: JSON log, no progress bar")


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
