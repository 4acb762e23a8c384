"""The lab's cache folder: what is built once stays, half-built things never carry their final name.

apt/<suite>/        a private apt root for another Debian suite
tools/              makedumpfile and the libraries it runs with
kernels/<name>/     an unpacked kernel image with its modules
symbols/            vmlinux-<release>, with debug symbols
disks/              files that guests read
images/<name>/      a dump, its sidecar, and the variant that makedumpfile reads
bench/<name>/       the same, for the large ones
logs/               serial lines of the guests
"""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CACHE_VARIABLE = "DUMPSTREAM_LAB_CACHE"
REPO_ROOT = Path(__file__).resolve().parents[2]


def root() -> Path:
    """The cache folder, made if it is not there."""
    folder = Path(os.environ.get(CACHE_VARIABLE) or REPO_ROOT / ".lab").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def folder(*names: str) -> Path:
    """A folder inside the cache, made if it is not there."""
    path = root().joinpath(*names)
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def lock(key: str) -> Iterator[None]:
    """Holds the machine-wide lock of one product; blocks while another process builds it."""
    path = folder("locks") / (key.replace("/", "-") + ".lock")
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # given back by the kernel, however the process ends
        yield


def remove(path: Path) -> None:
    """Removes a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def ensure(final: Path, make: Callable[[Path], None]) -> Path:
    """Returns `final`, built by `make(partial)` and renamed if it is not there yet.

    Safe against interruption (a leftover partial is thrown away) and against a second process.
    """
    if final.exists():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    with lock(str(final.relative_to(root()))):
        if final.exists():
            return final
        partial = final.with_name(final.name + ".partial")
        remove(partial)
        try:
            make(partial)
        except BaseException:
            remove(partial)
            raise
        partial.rename(final)
    return final
