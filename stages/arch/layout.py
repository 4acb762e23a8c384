"""What an architecture tells about a kernel before any of its memory has been read."""

from __future__ import annotations

from dataclasses import dataclass

from stages.arch.paging import PagingForm, Window


@dataclass(frozen=True, slots=True)
class KernelLayout:
    """A guess at where the kernel's page tables are.

    Attributes:
        root: kernel-physical address of the top table.
        phys_base: how far the kernel text was moved in physical memory; may be negative.
        phys_base_from: where that number was found, for people.
        direct_map: virtual addresses among which the first that is mapped starts the direct map.
    """

    form: PagingForm
    root: int
    phys_base: int
    phys_base_from: str
    direct_map: Window
