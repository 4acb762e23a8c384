"""Makes sure an image is in the cache: builds it once, with a sidecar that says what is in it."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from tests.lab import boot, cache, elfhead
from tests.lab.catalog import IMAGES, Image, Method
from tests.lab.commands import LabError, run
from tests.lab.kernels import ensure_kernel
from tests.lab.qemu import sections

if TYPE_CHECKING:
    from pathlib import Path

DUMP = "dump.elf"
ORACLE_DUMP = "oracle.elf"
SIDECAR = "image.json"


def image_folder(image: Image) -> Path:
    """Where the image's files are, or will be."""
    return cache.root() / ("bench" if image.bench else "images") / image.name


def find(name: str) -> Image:
    """The catalogue's entry of that name.

    Raises:
        LabError: there is none.
    """
    if name not in IMAGES:
        raise LabError(f"no image {name}; there are {', '.join(IMAGES)}")
    return IMAGES[name]


def _sidecar(image: Image, release: str, log: str, dump: Path, seconds: float) -> dict[str, Any]:
    said = sections(log)
    tasks = [line.split(" ", 1) for line in said["ps"].splitlines()]
    return {
        "name": image.name,
        "kernel": image.kernel,
        "kernel_release": release,
        "paging_levels": image.paging_levels,
        "memory_mib": image.memory_mib,
        "method": image.method.value,
        "normalised": image.normalised or image.method is not Method.QMP_ELF,
        "plan": image.plan,
        "size_bytes": dump.stat().st_size,
        "allocated_bytes": dump.stat().st_blocks * 512,
        "seconds": round(seconds, 1),
        "cmdline": said["cmdline"].strip(),
        "tasks": [{"pid": int(pid), "comm": comm} for pid, comm in tasks],
        "meminfo": said["meminfo"],
        "vmstat": said["vmstat"],
        "zoneinfo": said["zoneinfo"],
        "iomem": said["iomem"],
    }


def _build(image: Image, into: Path) -> None:
    into.mkdir()
    kernel = ensure_kernel(image.kernel)
    started = time.monotonic()
    log = boot.take_dump(image, kernel, into / DUMP)
    elfhead.read_program_headers(into / DUMP)  # a file that is no ELF core never gets its name
    sidecar = _sidecar(image, kernel.release, log, into / DUMP, time.monotonic() - started)
    (into / SIDECAR).write_text(json.dumps(sidecar, indent=1) + "\n")


def ensure_image(name: str) -> Path:
    """The dump of that name as it was made, built if it is not in the cache."""
    image = find(name)
    return cache.ensure(image_folder(image), lambda partial: _build(image, partial)) / DUMP


def ensure_oracle_image(name: str) -> Path:
    """A dump with the same contents that makedumpfile can read (see elfhead).

    The image itself where its layout already suits makedumpfile, else a copy whose zeros are holes.
    """
    dump = ensure_image(name)
    if sidecar(name)["normalised"]:
        return dump

    def copy(partial: Path) -> None:
        run(["cp", "--sparse=always", dump, partial])
        elfhead.normalise(partial)

    return cache.ensure(dump.with_name(ORACLE_DUMP), copy)


def sidecar(name: str) -> dict[str, Any]:
    """What is known about an image that has been built."""
    text = (image_folder(find(name)) / SIDECAR).read_text()
    known: dict[str, Any] = json.loads(text)
    return known
