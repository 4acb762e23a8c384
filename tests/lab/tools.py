"""Programs the lab needs: Debian packages to install, sid's makedumpfile and crash, drgn.

makedumpfile: Debian 12's 1.7.2 is wrong on kernels from 6.12 on.  crash: Debian 12's 8.0.2 finds
only the running tasks of Debian 12's own kernel.  So both come from sid, together with the
libraries they want, and start through their own dynamic loader; nothing of it is installed.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.lab import cache, debs
from tests.lab.commands import LabError, run
from tests.lab.kernels import ensure_vmlinux

# everything the lab takes from the machine's own release
APT_PACKAGES = (
    "qemu-system-x86",
    "busybox-static",
    "cpio",
    "kmod",
    "kexec-tools",
    "e2fsprogs",
    "gcc",
    "libc6-dev",
    "xz-utils",
    "liblzo2-2",
    # guests of other architectures, and the filler that runs in them
    "qemu-system-arm",
    "qemu-system-misc",
    "gcc-aarch64-linux-gnu",
    "libc6-dev-arm64-cross",
    "gcc-riscv64-linux-gnu",
    "libc6-dev-riscv64-cross",
)
INSTALL_TIMEOUT_S = 600
DRGN_REQUIREMENT = "drgn==0.3.0"


@dataclass(frozen=True, slots=True)
class ForeignProgram:
    """A program of another suite and all packages it needs to run."""

    name: str
    suite: str
    packages: tuple[str, ...]


MAKEDUMPFILE = ForeignProgram(
    "makedumpfile",
    "sid",
    (
        *("makedumpfile", "libc6", "libdw1t64", "libelf1t64", "liblzo2-2", "libzstd1", "zlib1g"),
        *("libbz2-1.0", "liblzma5"),
    ),
)
CRASH = ForeignProgram(
    "crash",
    "sid",
    (
        *("crash", "libc6", "libgcc-s1", "libstdc++6", "libgmp10", "libmpfr6", "libncursesw6"),
        *("libtinfo6", "liblzo2-2", "libsnappy1v5", "libzstd1", "zlib1g"),
    ),
)


def install() -> None:
    """Installs `APT_PACKAGES` with the machine's apt; needs root."""
    run(["apt-get", "-q", "update"], timeout_s=INSTALL_TIMEOUT_S)
    command = ["apt-get", "-q", "-y", "install", "--no-install-recommends", *APT_PACKAGES]
    run(["env", "DEBIAN_FRONTEND=noninteractive", *command], timeout_s=INSTALL_TIMEOUT_S)


def _start_words(program: ForeignProgram) -> list[str]:
    """The words that start the program, fetched if it is not there yet; its options follow."""
    base = cache.ensure(
        cache.root() / "tools" / program.name,
        lambda partial: debs.unpack(program.suite, program.packages, partial),
    )
    libraries = base / "usr/lib/x86_64-linux-gnu"
    for folder in ("usr/bin", "usr/sbin"):
        if (path := base / folder / program.name).is_file():
            loader = libraries / "ld-linux-x86-64.so.2"
            return [str(loader), "--library-path", str(libraries), str(path)]
    raise LabError(f"{base}: {program.name} is not where it was")


def makedumpfile() -> list[str]:
    """The words that start makedumpfile 1.7.8."""
    return _start_words(MAKEDUMPFILE)


def crash() -> list[str]:
    """The words that start crash 9.0."""
    return _start_words(CRASH)


def vmlinux(kernel: str) -> Path:
    """The vmlinux with debug symbols of a kernel of `kernels.KERNELS`."""
    return ensure_vmlinux(kernel)


def ensure_drgn() -> Path:
    """A folder for PYTHONPATH from which this Python can import drgn, filled by pip if need be."""
    found = importlib.util.find_spec("drgn")
    if found is not None and found.origin is not None:
        return Path(found.origin).parents[1]
    version = f"{sys.version_info.major}.{sys.version_info.minor}"

    def install_drgn(partial: Path) -> None:
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--only-binary=:all:"]
        run([*pip, "--target", partial, DRGN_REQUIREMENT])

    return cache.ensure(cache.root() / "tools" / f"drgn-py{version}", install_drgn)


def drgn_environment() -> dict[str, str]:
    """The environment in which `sys.executable` can import drgn."""
    folders = [str(ensure_drgn()), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))}
