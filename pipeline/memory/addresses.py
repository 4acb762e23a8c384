"""Addresses and frame numbers, each with its own type, and the spaces they live in."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple, NewType, TypeAlias

import numpy as np
from numpy.typing import NDArray

Pfn = NewType("Pfn", int)
PhysAddr = NewType("PhysAddr", int)
VirtAddr = NewType("VirtAddr", int)
FileOff = NewType("FileOff", int)

PfnArray: TypeAlias = NDArray[np.uint64]
AddrArray: TypeAlias = NDArray[np.uint64]
BoolArray: TypeAlias = NDArray[np.bool_]
ByteArray: TypeAlias = NDArray[np.uint8]


class AddressSpace(Enum):
    """The space an address belongs to; two physical spaces differ under Xen and SME."""

    KPHYS = "kphys"
    """What the kernel calls physical."""
    MACHPHYS = "machphys"
    """What the machine calls physical."""
    KVIRT = "kvirt"
    """Kernel virtual."""


class FullAddress(NamedTuple):
    """An address that travels with its space."""

    space: AddressSpace
    addr: int

    def __str__(self) -> str:
        return f"{self.space.value}:{self.addr:#x}"
