"""Builds the guests' initial file systems: busybox, modules in load order, the filler, a plan."""

from __future__ import annotations

import lzma
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab import cache, debs
from tests.lab.commands import run, which
from tests.lab.machines import MACHINES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tests.lab.kernels import UnpackedKernel

GUEST_SOURCES = Path(__file__).with_name("guest")
# a name that is not there as a file is built in
GUEST_MODULES = (
    "qemu_fw_cfg",  # hands VMCOREINFO to QEMU's vmcoreinfo device
    "virtio_pci",
    "virtio_blk",
    "virtio_balloon",
    "crc32c_generic",  # ext4 asks for it by name, so no dependency mentions it
    "ext4",
)
CAPTURE_MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")


def ensure_fill(architecture: str = debs.NATIVE) -> Path:
    """Compiles the filler if it is not there yet or its source is newer."""
    source = GUEST_SOURCES / "fill.c"
    suffix = "" if architecture == debs.NATIVE else f"-{architecture}"
    final = cache.folder("tools") / f"fill-{source.stat().st_mtime_ns}{suffix}"
    compiler = MACHINES[architecture].compiler

    def compile_it(partial: Path) -> None:
        run([compiler, "-O2", "-static", "-Wall", "-Wextra", "-o", partial, source])

    return cache.ensure(final, compile_it)


def _module_files(kernel: UnpackedKernel) -> dict[str, Path]:
    files = kernel.modules.rglob("*.ko*")
    return {path.name.partition(".ko")[0].replace("-", "_"): path for path in files}


def load_order(kernel: UnpackedKernel, wanted: Iterable[str]) -> list[Path]:
    """Files of the wanted modules and of all they depend on, dependencies first."""
    files = _module_files(kernel)
    order: dict[str, Path] = {}

    def add(name: str) -> None:
        if name in order or name not in files:
            return
        depends = run(["modinfo", "-F", "depends", files[name]]).strip()
        for other in filter(None, depends.split(",")):
            add(other.replace("-", "_"))
        order[name] = files[name]

    for name in wanted:
        add(name)
    return list(order.values())


def _copy_modules(kernel: UnpackedKernel, wanted: Iterable[str], tree: Path) -> None:
    folder = tree / "modules"
    folder.mkdir()
    names = []
    for path in load_order(kernel, wanted):
        name = path.name.partition(".ko")[0] + ".ko"
        data = path.read_bytes()
        # busybox insmod takes no compressed module
        (folder / name).write_bytes(lzma.decompress(data) if path.suffix == ".xz" else data)
        names.append(name)
    (folder / "order").write_text("".join(f"{name}\n" for name in names))


def _copy_program(program: Path, tree: Path) -> None:
    """Copies a dynamically linked program and the libraries that ldd shows for it."""
    libraries = re.findall(r"(/\S+) \(0x", run(["ldd", program]))
    for path in (program, *map(Path, libraries)):
        target = tree / path.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


def _pack(tree: Path, into: Path) -> None:
    script = 'cd "$1" && find . | cpio -o -H newc --quiet > "$2"'
    run(["sh", "-c", script, "sh", str(tree), str(into)])


def _busybox(architecture: str) -> Path:
    """A static busybox: this machine's own, or unpacked from a suite that has the architecture."""
    suite = MACHINES[architecture].busybox_suite
    if suite is None:
        return which("busybox")
    base = cache.ensure(
        cache.root() / "tools" / f"busybox-{architecture}",
        lambda partial: debs.unpack(suite, ["busybox-static"], partial, architecture),
    )
    found = base / "bin/busybox"
    return found if found.is_file() else base / "usr/bin/busybox"


def _start_tree(tree: Path, init: str, architecture: str) -> None:
    (tree / "bin").mkdir()
    shutil.copy(_busybox(architecture), tree / "bin/busybox")
    shutil.copy(GUEST_SOURCES / init, tree / "init")
    (tree / "init").chmod(0o755)


def build_guest(
    kernel: UnpackedKernel,
    plan: str,
    into: Path,
    extra: Mapping[str, Path] | None = None,
    *,
    crash: bool = False,
) -> None:
    """Writes the initramfs of a guest that fills its memory by `plan` (lines for its shell).

    Args:
        kernel: whose modules go in.
        plan: shell lines; guest/init.sh has the functions they may call.
        into: the cpio file to write.
        extra: more files by their name in the guest's root.
        crash: whether the guest loads a capture kernel and crashes at the end.
    """
    with tempfile.TemporaryDirectory(prefix="lab-initramfs-") as name:
        tree = Path(name)
        _start_tree(tree, "init.sh", kernel.architecture)
        shutil.copy(ensure_fill(kernel.architecture), tree / "bin/fill")
        _copy_modules(kernel, GUEST_MODULES, tree)
        (tree / "plan").write_text(plan)
        for target, source in (extra or {}).items():
            shutil.copy(source, tree / target)
        if crash:
            _copy_program(which("kexec"), tree)
            shutil.copy(GUEST_SOURCES / "crash.sh", tree / "crash.sh")
        _pack(tree, into)


def build_capture(kernel: UnpackedKernel, into: Path, init: str = "capture.sh") -> None:
    """Writes the initramfs of the capture kernel, which copies /proc/vmcore to its disk."""
    with tempfile.TemporaryDirectory(prefix="lab-capture-") as name:
        tree = Path(name)
        _start_tree(tree, init, kernel.architecture)
        _copy_modules(kernel, CAPTURE_MODULES, tree)
        _pack(tree, into)
