"""What an architecture tells about a kernel before any of its memory has been read."""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Struct

from stages.arch.paging import PagingForm, Window
from stages.reader.image import ImageInfo


class DirectWindow(NamedTuple):
    """Addresses `first` to `last`, both included, that no table maps: `first` lies at `paddr`."""

    first: int
    last: int
    paddr: int


class LinearMap(Struct, frozen=True):
    """The direct map of physical memory, as VMCOREINFO states it: `vaddr` lies at `paddr`.

    `paddr` is taken modulo 2**64, for a map that starts before memory does.
    """

    vaddr: int
    paddr: int


class KernelLayout(Struct, frozen=True):
    """A guess at where the kernel's page tables are.

    Attributes:
        root: kernel-physical address of the top table.
        phys_base: how far the kernel text was moved in physical memory. Where the direct map of
            memory starts, on architectures whose dumps carry that instead. Either may be negative.
        phys_base_from: where that number was found, for people.
        direct_map: virtual addresses among which the first that is mapped starts the direct map,
            or the direct map itself, None where there is no telling.
        direct: addresses that are translated by arithmetic, before tables are looked into.
        mapped: an address that tables must map if the guess is right, None where none is known.
    """

    form: PagingForm
    root: int
    phys_base: int
    phys_base_from: str
    direct_map: Window | LinearMap | None
    direct: tuple[DirectWindow, ...] = ()
    mapped: int | None = None


def level_names(n_levels: int) -> tuple[str, ...]:
    """What the kernel calls that many levels of tables, last level first."""
    middle = ("pmd", "pud", "p4d")[: n_levels - 2]
    return ("pte", *middle, "pgd")


def loaded_at(image: ImageInfo, vaddr: int) -> int | None:
    """The physical address of `vaddr` by the image's PT_LOADs; None when they do not say.

    QEMU writes p_vaddr 0, or p_paddr again: such loads say nothing.
    """
    for load in image.loads:
        if load.paddr is not None and load.paddr != load.vaddr:
            inside = vaddr - load.vaddr
            if load.vaddr > 0 and 0 <= inside < load.mem_size:
                return load.paddr + inside
    return None
