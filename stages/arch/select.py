"""The table of architectures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from pipeline.errors import UnsupportedError
from stages.arch import x86_64
from stages.arch.layout import KernelLayout
from stages.formats.vmcoreinfo import VmcoreInfo
from stages.reader.image import ImageInfo


@dataclass(frozen=True, slots=True)
class Arch:
    """What differs from one architecture to the next."""

    name: str
    """As `ImageInfo.machine` spells it."""
    byte_order: str
    """Of kernel data, as numpy spells it: ``<`` or ``>``."""
    layouts: Callable[[VmcoreInfo, ImageInfo], list[KernelLayout]]
    """Guesses at the page tables, best first; never empty."""
    page_offsets: Callable[[ImageInfo], Iterator[int]]
    """Guesses at the start of the direct map that the image's own headers suggest."""


ARCHES: Final = (Arch(x86_64.NAME, x86_64.BYTE_ORDER, x86_64.layouts, x86_64.page_offsets),)


def arch_for(machine: str) -> Arch:
    """The architecture called `machine`.

    Raises:
        UnsupportedError: there is no table for it.
    """
    for arch in ARCHES:
        if arch.name == machine:
            return arch
    known = ", ".join(arch.name for arch in ARCHES)
    raise UnsupportedError(f"address translation on {machine} is not supported, only on {known}")
