"""The kernels the guests run: fetched from Debian's suites, unpacked, never installed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.lab import cache, debs
from tests.lab.commands import LabError

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel by the number people know it by, and the suite that ships it."""

    name: str
    suite: str
    architecture: str = debs.NATIVE
    suffix: str = ""  # of the flavour's name, such as -16k

    @property
    def flavour(self) -> str:
        return self.architecture + self.suffix


KERNELS = {
    kernel.name: kernel
    for kernel in (
        Kernel("5.10", "bullseye"),
        Kernel("6.1", "bookworm"),
        Kernel("6.12", "trixie"),
        # sid moves on; the sidecar of an image tells which release it really holds
        Kernel("7.2", "sid"),
        Kernel("6.1-arm64", "bookworm", "arm64"),
        Kernel("6.12-arm64-16k", "trixie", "arm64", "-16k"),
        Kernel("6.12-riscv64", "trixie", "riscv64"),
    )
}


@dataclass(frozen=True, slots=True)
class UnpackedKernel:
    """A kernel's files below the cache folder."""

    release: str
    architecture: str
    vmlinuz: Path
    modules: Path


def _image_package(kernel: Kernel) -> str:
    meta_package = f"linux-image-{kernel.flavour}"
    for name in debs.dependencies(kernel.suite, meta_package, kernel.architecture):
        if re.fullmatch(rf"linux-image-\d.*-{kernel.flavour}", name):
            return name
    raise LabError(f"{kernel.suite}: {meta_package} names no kernel image")


def release_of(kernel: Kernel) -> str:
    """The release that the suite has today, such as 6.1.0-50-amd64."""
    return _image_package(kernel).removeprefix("linux-image-")


def _unpack(kernel: Kernel, into: Path) -> None:
    package = _image_package(kernel)
    release = package.removeprefix("linux-image-")
    # from 7.x the image is an empty package that depends on these two
    parts = {f"linux-binary-{release}", f"linux-modules-{release}"}
    split = parts & set(debs.dependencies(kernel.suite, package, kernel.architecture))
    debs.unpack(kernel.suite, sorted(split) or [package], into, kernel.architecture)
    (into / "release").write_text(release)


def ensure_kernel(name: str) -> UnpackedKernel:
    """Unpacks a kernel if it is not there yet."""
    kernel = KERNELS[name]
    base = cache.ensure(cache.root() / "kernels" / name, lambda partial: _unpack(kernel, partial))
    release = (base / "release").read_text()
    for modules in (base / "lib/modules" / release, base / "usr/lib/modules" / release):
        boot = base / "boot"  # riscv64 calls its image vmlinux
        for vmlinuz in (
            boot / f"vmlinuz-{release}",
            boot / f"vmlinux-{release}",
            modules / "vmlinuz",
        ):
            if modules.is_dir() and vmlinuz.is_file():
                return UnpackedKernel(release, kernel.architecture, vmlinuz, modules)
    raise LabError(f"{base}: no vmlinuz or no modules of {release}")


def ensure_vmlinux(name: str) -> Path:
    """The unpacked kernel's vmlinux with debug symbols, from a download of about 1 GB."""
    kernel = ensure_kernel(name)
    release = kernel.release
    # next to which vmlinuz it would be; the other path is a link to it, found late in a slow read
    in_boot = kernel.vmlinuz.parent.name == "boot"
    member = f"boot/vmlinux-{release}" if in_boot else f"lib/modules/{release}/vmlinux"

    def unpack(partial: Path) -> None:
        package = f"linux-image-{release}-dbg"
        member_path = f"usr/lib/debug/{member}"
        debs.unpack_file(KERNELS[name].suite, package, member_path, partial, kernel.architecture)

    return cache.ensure(cache.root() / "symbols" / f"vmlinux-{release}", unpack)
