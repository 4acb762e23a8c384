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


def cut_out(facts: DemoFacts, path: Path, start: int, stop: int) -> Path:
    """A copy of the image at `path` that lacks pfns [start, stop): their PT_LOAD is split.

    They must lie inside the last PT_LOAD.
    """
    shutil.copyfile(facts.path, path)
    raw = bytearray(path.read_bytes())
    phoff, count = 64, int.from_bytes(raw[56:58], "little")
    last = phoff + (count - 1) * 56
    words = np.frombuffer(raw, dtype="<u8", count=6, offset=last + 8)
    file_off, vaddr, paddr, n_bytes = (int(word) for word in words[:4])
    before, after = start * 4096 - paddr, stop * 4096 - paddr
    notes = bytes(raw[last + 56 : 0x4000 - 56])
    head = raw[last : last + 8]
    pieces = ((0, before), (after, n_bytes - after))
    table = b"".join(
        bytes(head)
        + np.array([file_off + at, vaddr + at, paddr + at, size, size, 0], dtype="<u8").tobytes()
        for at, size in pieces
    )
    raw[last : last + 112] = table
    raw[last + 112 : 0x4000] = notes
    raw[56:58] = (count + 1).to_bytes(2, "little")
    note_off = int.from_bytes(raw[phoff + 8 : phoff + 16], "little")
    raw[phoff + 8 : phoff + 16] = (note_off + 56).to_bytes(8, "little")
    path.write_bytes(raw)
    return path


def bits_of(bitmap: PageBitmap) -> BoolArray:
    """bool[n_pages]."""
    blocks = [bitmap.block(index) for index in range(bitmap.n_blocks)]
    return np.concatenate(blocks)[: bitmap.n_pages]
