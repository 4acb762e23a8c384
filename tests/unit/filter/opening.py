"""Open demo images the way a run does, and change single things in them first."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipeline.memory.addresses import BoolArray
from pipeline.memory.bitmap import PageBitmap
from stages.cache.pages import PageCache
from stages.demo.build import DemoFacts
from stages.reader.image import Image
from stages.reader.probe import open_image
from stages.translator.kernel import Kernel, open_kernel


async def open_demo(
    path: Path, replaced: Mapping[str, str | None] | None = None
) -> tuple[Image, Kernel]:
    """The image at `path` and its kernel.

    Args:
        path: a demo image.
        replaced: VMCOREINFO lines by key, such as ``SIZE(page)``; None removes the line.
    """
    image = open_image(str(path))
    for key, value in (replaced or {}).items():
        assert image.info.vmcoreinfo is not None
        lines = image.info.vmcoreinfo.decode().splitlines()
        assert value is not None or any(line.startswith(f"{key}=") for line in lines)
        lines = [line for line in lines if not line.startswith(f"{key}=")]
        if value is not None:
            lines.append(f"{key}={value}")
        image.info.vmcoreinfo = "".join(f"{line}\n" for line in lines).encode()
    return image, await open_kernel(image, PageCache(image, capacity_bytes=1 << 20))


def patched(facts: DemoFacts, path: Path, writes: Mapping[int, bytes]) -> Path:
    """A copy of the image at `path`, with bytes changed at physical addresses."""
    shutil.copyfile(facts.path, path)
    with path.open("r+b") as file:
        for paddr, data in writes.items():
            file.seek(facts.addresses.file_off(paddr))
            file.write(data)
    return path


def without_tail(facts: DemoFacts, path: Path, n_pages: int) -> Path:
    """A copy of the image at `path` that lacks the last pages of its last PT_LOAD: not saved."""
    shutil.copyfile(facts.path, path)
    with path.open("r+b") as file:
        file.seek(56)
        last = 64 + (int.from_bytes(file.read(2), "little") - 1) * 56
        file.seek(last + 32)
        file_size = int.from_bytes(file.read(8), "little") - n_pages * 4096
        file.seek(last + 32)
        file.write(file_size.to_bytes(8, "little"))
    return path


def section_paddr(facts: DemoFacts) -> int:
    """Where struct mem_section of section 0 is; SPARSEMEM_EXTREME, the symbol being the array."""
    array = facts.symbols["mem_section"] - facts.addresses.page_offset
    with facts.path.open("rb") as file:
        file.seek(facts.addresses.file_off(array))
        return int.from_bytes(file.read(8), "little") - facts.addresses.page_offset


def bits_of(bitmap: PageBitmap) -> BoolArray:
    """bool[n_pages]."""
    blocks = [bitmap.block(index) for index in range(bitmap.n_blocks)]
    return np.concatenate(blocks)[: bitmap.n_pages]
