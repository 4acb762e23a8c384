"""The disk of files that guests read to fill their page cache: real modules, programs and texts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab import cache
from tests.lab.commands import LabError, run
from tests.lab.kernels import ensure_kernel

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
SOURCE_KERNEL = "6.1"  # the last whose modules are not compressed: 390 MB that look like code
MORE_SOURCES = (Path("/usr/lib"), Path("/usr/share"), Path("/usr/bin"))


def _files() -> Iterator[Path]:
    for source in (ensure_kernel(SOURCE_KERNEL).modules, *MORE_SOURCES):
        for folder, names, files in os.walk(source):
            names.sort()
            for name in sorted(files):
                path = Path(folder, name)
                if path.is_file() and not path.is_symlink():
                    yield path


def _copy_files(tree: Path, n_bytes: int) -> None:
    """Copies files until their sizes add up to `n_bytes`."""
    left = n_bytes
    for path in _files():
        size = path.stat().st_size
        if size > left:
            continue
        target = tree / path.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        left -= size
        if left < MIB:
            return
    raise LabError(f"this machine has not enough files to fill {n_bytes} bytes; {left} are missing")


def ensure_disk(size_mib: int) -> Path:
    """An ext4 image with `size_mib` MiB of files, built if it is not there yet."""

    def build(partial: Path) -> None:
        tree = partial.with_name(partial.name + ".files")
        cache.remove(tree)  # of a build that was killed
        try:
            _copy_files(tree, size_mib * MIB)
            image_mib = size_mib + size_mib // 5 + 32  # room for inodes and directories
            options = ["-q", "-t", "ext4", "-O", "^has_journal", "-m", "0"]
            run(["mke2fs", *options, "-d", tree, partial, f"{image_mib}M"])
        finally:
            cache.remove(tree)

    return cache.ensure(cache.root() / "disks" / f"files-{size_mib}.img", build)
