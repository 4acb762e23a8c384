"""What an architecture tells about a kernel before any of its memory has been read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from stages.arch.paging import PagingForm, Window


class DirectWindow(NamedTuple):
    """Addresses `first` to `last`, both included, that no table maps: `first` lies at `paddr`."""

    first: int
    last: int
    paddr: int


class LinearMap(NamedTuple):
    """The direct map of physical memory, as VMCOREINFO states it: `vaddr` lies at `paddr`.

    `paddr` is taken modulo 2**64, for a map that starts before memory does.
    """

    vaddr: int
    paddr: int


@dataclass(frozen=True, slots=True)
class KernelLayout:
    """A guess at where the kernel's page tables are.

    Attributes:
        root: kernel-physical address of the top table.
        phys_base: how far the kernel text was moved in physical memory; may be negative. Where
            physical memory starts, on architectures whose dumps carry that instead.
        phys_base_from: where that number was found, for people.
        direct_map: virtual addresses among which the first that is mapped starts the direct map,
            or the direct map itself, None where there is no telling.
        direct: addresses that are translated by arithmetic, before tables are looked into.
    """

    form: PagingForm
    root: int
    phys_base: int
    phys_base_from: str
    direct_map: Window | LinearMap | None
    direct: tuple[DirectWindow, ...] = ()
