"""VMCOREINFO and image facts, as short as a test needs them."""

from __future__ import annotations

from collections.abc import Mapping

from stages.formats.vmcoreinfo import VmcoreInfo
from stages.reader.image import ImageInfo, LoadSegment


def info_of(lines: Mapping[str, object], *, page_size: int = 4096) -> VmcoreInfo:
    """VMCOREINFO of a kernel with these lines; a number is written as hex for a SYMBOL."""
    text = f"OSRELEASE=6.1\nPAGESIZE={page_size}\n"
    for key, value in lines.items():
        shown = f"{value:x}" if isinstance(value, int) and key.startswith("SYMBOL") else value
        text += f"{key}={shown}\n"
    return VmcoreInfo.parse(text.encode())


def image_of(machine: str, *loads: tuple[int | None, int]) -> ImageInfo:
    """An image with PT_LOADs of 256 MiB at these physical and virtual addresses."""
    size = 256 << 20
    segments = [LoadSegment(paddr, vaddr, size, 0, size) for paddr, vaddr in loads]
    return ImageInfo("elf", machine, 4096, loads=segments)
