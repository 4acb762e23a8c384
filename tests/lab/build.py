"""Makes sure an image is in the cache: builds it once, with a sidecar that says what is in it."""

from __future__ import annotations

import json
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from tests.lab import boot, cache, elfhead
from tests.lab.catalog import IMAGES, Image, Method
from tests.lab.commands import LabError, MirrorError, run
from tests.lab.kernels import ensure_kernel
from tests.lab.qemu import sections
from tests.lab.tools import makedumpfile

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SIDECAR = "image.json"
GUESTS_AT_ONCE = 2
COMM_LENGTH = 15  # TASK_COMM_LEN without its end


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


def _comm(shown: str) -> str:
    """What task_struct.comm has, where /proc adds a worker's work or a thread's full name."""
    return re.sub(r"^(kworker/[^-]+:[^-]+)-.*", r"\1", shown)[:COMM_LENGTH]


def _layout(image: Image) -> str:
    """Who can read the file, by its layout."""
    if not image.native:
        return "foreign"
    if image.method is Method.QMP_KDUMP:
        return "flattened"
    return "qemu" if image.method is Method.QMP_ELF and not image.normalised else "plain"


def _sidecar(image: Image, release: str, log: str, dump: Path, seconds: float) -> dict[str, Any]:
    said = sections(log)
    tasks = [line.split(" ", 1) for line in said["ps"].splitlines()]
    return {
        "name": image.name,
        "kernel": image.kernel,
        "kernel_release": release,
        "paging_levels": image.paging_levels,
        "memory_mib": image.memory_mib,
        "balloon_mib": image.balloon_mib,
        "method": image.method.value,
        "layout": _layout(image),
        "plan": image.plan,
        "size_bytes": dump.stat().st_size,
        "allocated_bytes": dump.stat().st_blocks * 512,
        "seconds": round(seconds, 1),
        "cmdline": said["cmdline"].strip(),
        # tasks come and go: the dump has nearly all of these, and the init's current child
        "tasks": [{"pid": int(pid), "comm": _comm(shown)} for pid, shown in tasks],
        "meminfo": said["meminfo"],
        "vmstat": said["vmstat"],
        "zoneinfo": said["zoneinfo"],
        "iomem": said["iomem"],
    }


def _build(image: Image, into: Path) -> None:
    into.mkdir()
    dump = into / image.file_name
    kernel = ensure_kernel(image.kernel)
    started = time.monotonic()
    log = boot.take_dump(image, kernel, dump)
    if image.method is not Method.QMP_KDUMP:
        elfhead.read_program_headers(dump)  # a file that is no ELF core never gets its name
    sidecar = _sidecar(image, kernel.release, log, dump, time.monotonic() - started)
    (into / SIDECAR).write_text(json.dumps(sidecar, indent=1) + "\n")


def ensure_image(name: str) -> Path:
    """The dump of that name as it was made, built if it is not in the cache."""
    image = find(name)
    folder = cache.ensure(image_folder(image), lambda partial: _build(image, partial))
    return folder / image.file_name


def ensure_oracle_image(name: str) -> Path:
    """A dump with the same contents that makedumpfile can read.

    The image itself where its layout already suits makedumpfile.  Of QEMU's ELF a copy with the
    program headers where makedumpfile looks for them (see elfhead), its zeros holes.

    QEMU's kdump-compressed file is the exception: the copy is what makedumpfile -R makes of it,
    but only crash opens that.  QEMU 7.2 reads NUMBER(phys_base) of VMCOREINFO, which
    is decimal, as hexadecimal and writes that into the sub header; makedumpfile fails on it, and
    also on a copy with the right phys_base.  drgn misses the name of the architecture.
    """
    dump = ensure_image(name)
    layout = sidecar(name)["layout"]

    def copy(partial: Path) -> None:
        if layout == "flattened":
            script = 'out=$1; shift; exec "$@" < "$0"'
            run(["sh", "-c", script, dump, partial, *makedumpfile(), "-R", partial])
        else:
            run(["cp", "--sparse=always", dump, partial])
            elfhead.normalise(partial)

    return dump if layout in ("plain", "foreign") else cache.ensure(dump.with_stem("oracle"), copy)


def ensure_images(names: Iterable[str]) -> dict[str, Path]:
    """Several images, two at a time; all are tried before a failure is raised.

    Those for which the mirror has no usable packages today are said and left out.
    """
    wanted = [find(name).name for name in names]
    with ThreadPoolExecutor(GUESTS_AT_ONCE) as pool:
        futures = {name: pool.submit(ensure_oracle_image, name) for name in wanted}
    built = {}
    for name, future in futures.items():
        try:
            built[name] = future.result()
        except MirrorError as error:
            print(f"{name:18} not built: {error}", file=sys.stderr)
    return built


def sidecar(name: str) -> dict[str, Any]:
    """What is known about an image that has been built."""
    text = (image_folder(find(name)) / SIDECAR).read_text()
    known: dict[str, Any] = json.loads(text)
    return known
