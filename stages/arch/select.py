"""The table of architectures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from msgspec import Struct

from pipeline.errors import UnsupportedError
from stages.arch import aarch64, loongarch64, ppc64, riscv64, s390x, x86_64
from stages.arch.layout import KernelLayout
from stages.formats.vmcoreinfo import VmcoreInfo
from stages.reader.image import ImageInfo


def _none(image: ImageInfo) -> Iterator[int]:
    del image
    return iter(())


class Arch(Struct, frozen=True):
    """What differs from one architecture to the next."""

    name: str
    """As `ImageInfo.machine` spells it."""
    byte_order: str
    """Of kernel data, as numpy spells it: ``<`` or ``>``."""
    layouts: Callable[[VmcoreInfo, ImageInfo], list[KernelLayout]]
    """Guesses at the page tables, best first; never empty."""
    sparse_bits: tuple[tuple[int, int], ...]
    """SECTION_SIZE_BITS and MAX_PHYSMEM_BITS of kernels, for those that tell none."""
    page_offsets: Callable[[ImageInfo], Iterator[int]] = _none
    """Guesses at the start of the direct map that the image's own headers suggest, where a layout
    leaves that open."""


ARCHES: Final = (
    Arch(
        x86_64.NAME,
        x86_64.BYTE_ORDER,
        x86_64.layouts,
        x86_64.SPARSE_BITS,
        x86_64.page_offsets,
    ),
    Arch(aarch64.NAME, aarch64.BYTE_ORDER, aarch64.layouts, aarch64.SPARSE_BITS),
    Arch(riscv64.NAME, riscv64.BYTE_ORDER, riscv64.layouts, riscv64.SPARSE_BITS),
    Arch(s390x.NAME, s390x.BYTE_ORDER, s390x.layouts, s390x.SPARSE_BITS),
    *(Arch(name, order, ppc64.layouts, ppc64.SPARSE_BITS) for name, order in ppc64.NAMES),
    Arch(loongarch64.NAME, loongarch64.BYTE_ORDER, loongarch64.layouts, loongarch64.SPARSE_BITS),
)
BIG_ENDIAN: Final = frozenset(arch.name for arch in ARCHES if arch.byte_order == ">")


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
