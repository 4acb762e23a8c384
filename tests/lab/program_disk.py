"""A disk with this Python, dumpstream and what it needs, for a capture kernel to run it from.

As Debian's kdump-tools have it: the crashed machine's own file system, and one program of it. Files
keep their places, so that the interpreter finds its library.
"""

from __future__ import annotations

import re
import shutil
import sys
import sysconfig
import tomllib
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.lab import cache
from tests.lab.commands import run, which

if TYPE_CHECKING:
    from collections.abc import Iterator

HOME: Final = Path("/opt/dumpstream")
"""Where our own packages are on the disk."""
PYTHON: Final = Path(sys.executable).resolve()
PYTHONPATH: Final = ":".join(
    dict.fromkeys([str(HOME), *map(sysconfig.get_path, ("purelib", "platlib"))])
)
"""The interpreter is not started by way of its environment, and is told of it."""
_OWN: Final = ("pipeline", "stages", "config")
_UNUSED: Final = ("__pycache__", "test", "tests", "site-packages", "dist-packages", "idlelib",
                  "tkinter", "ensurepip", "lib2to3", "config-3*")  # fmt: skip
_SPARE_MIB: Final = 40


def build_program_disk(tree: Path, commands: str, into: Path) -> None:
    """Write an ext4 image.

    Args:
        tree: an empty folder to put it together in.
        commands: a shell script; what it leaves in /out is on another disk.
        into: the image file.
    """
    _copy_folder(Path(sysconfig.get_path("stdlib")), tree)
    for file in _needed_files():
        _copy(file, tree)
    for name in _OWN:
        _copy_folder(cache.REPO_ROOT / name, tree, HOME / name)
    _copy(PYTHON, tree)
    _copy(which("busybox"), tree, Path("/bin/busybox"))
    (tree / "bin/sh").symlink_to("busybox")
    for library in _libraries([PYTHON, *_shared_objects(tree)]):
        _copy(library, tree)
    for name in ("dev", "out", "proc", "sys", "tmp"):
        (tree / name).mkdir(exist_ok=True)
    (tree / "commands").write_text(commands)
    size = sum(path.stat().st_size + 2048 for path in tree.rglob("*") if path.is_file())
    make_disk(into, (size >> 20) + _SPARE_MIB, tree)


def make_disk(into: Path, size_mib: int, tree: Path | None = None) -> None:
    """An ext4 image with the files of `tree`, or with none."""
    content = () if tree is None else ("-d", tree)
    run(["mke2fs", "-q", "-t", "ext4", "-m", "0", *content, into, f"{size_mib}M"])


def read_disk(image: Path, into: Path) -> None:
    """Copy all files of an ext4 image into a folder; needs no mount."""
    into.mkdir()
    run(["debugfs", "-R", f"rdump / {into}", image])


def _place(path: Path, tree: Path) -> Path:
    target = tree / path.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _copy(file: Path, tree: Path, at: Path | None = None) -> None:
    shutil.copy(file, _place(at or file, tree))


def _copy_folder(folder: Path, tree: Path, at: Path | None = None) -> None:
    ignored = shutil.ignore_patterns(*_UNUSED)
    shutil.copytree(folder, _place(at or folder, tree), ignore=ignored, dirs_exist_ok=True)


def _needed_files() -> Iterator[Path]:
    """Of all distributions that dumpstream requires, at the places that they have here."""
    project = tomllib.loads((cache.REPO_ROOT / "pyproject.toml").read_text())["project"]
    requirements: list[str] = list(project["dependencies"])
    seen = set()
    while requirements:
        requirement = requirements.pop()
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        if name in seen or "extra ==" in requirement or not _is_here(name):
            continue
        seen.add(name)
        requirements += metadata.requires(name) or ()
        for file in metadata.files(name) or ():
            if file.suffix != ".pyc" and "tests" not in file.parts and ".." not in file.parts:
                yield Path(str(file.locate()))


def _is_here(name: str) -> bool:
    """False for what another Python or system would need."""
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _shared_objects(tree: Path) -> list[Path]:
    return [path for path in tree.rglob("*.so*") if path.is_file()]


def _libraries(programs: list[Path]) -> set[Path]:
    """What the dynamic linker finds here for `programs`, and what ctypes asks for by name."""
    found = set()
    for program in programs:
        lines = run(["sh", "-c", 'ldd "$1" || true', "sh", program])
        found |= {Path(word) for word in re.findall(r"(/\S+) \(0x", lines)}
    by_name = re.search(r"liblzo2\.so\.2 .*=> (\S+)", run([which("ldconfig"), "-p"]))
    if by_name is not None:
        found.add(Path(by_name[1]))
    return found
