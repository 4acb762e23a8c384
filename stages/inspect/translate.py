"""What `dumpstream translate` shows: every step of a walk, and whether the image has the page."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from pipeline.errors import UsageError
from pipeline.memory.sizes import show_size
from stages.arch.paging import ADDRESS_LIMIT, EntryKind
from stages.reader.image import Image
from stages.translator.explain import Walk, WalkStep
from stages.translator.kernel import Kernel

_HEXADECIMAL: Final = re.compile(r"(0[xX])?[0-9a-fA-F]+")


def parse_address(text: str) -> int:
    """A hexadecimal address, with or without 0x.

    Raises:
        UsageError: not hexadecimal, or more than 64 bits.
    """
    if not _HEXADECIMAL.fullmatch(text):  # int() would take 1_0, too
        raise UsageError(f"{text!r} is not a hexadecimal address")
    address = int(text, 16)
    if address >= ADDRESS_LIMIT:
        raise UsageError(f"{text!r} is not a 64-bit address")
    return address


@dataclass(frozen=True, slots=True)
class Translation:
    """One address, taken apart. `where` is None when the address maps nothing."""

    walk: Walk
    page_size: int
    where: str | None

    @property
    def found(self) -> bool:
        return self.walk.paddr is not None

    def lines(self) -> list[str]:
        """Text for people, one step a line."""
        out = [f"vaddr {self.walk.vaddr:#x}"]
        out += [f"  {_show_step(step)}" for step in self.walk.steps]
        if self.walk.paddr is None:
            return [*out, f"not mapped: {self.walk.problem}"]
        pfn = self.walk.paddr // self.page_size
        return [*out, f"paddr {self.walk.paddr:#x}  pfn {pfn:#x}  {self.where}"]

    def as_dict(self) -> dict[str, Any]:
        """The same for programs; addresses are hexadecimal text, as JSON numbers lose bits."""
        paddr = self.walk.paddr
        return {
            "vaddr": hex(self.walk.vaddr),
            "paddr": None if paddr is None else hex(paddr),
            "pfn": None if paddr is None else paddr // self.page_size,
            "page": self.where,
            "problem": None if self.walk.problem is None else str(self.walk.problem),
            "steps": [_step_dict(step) for step in self.walk.steps],
        }


async def translate(kernel: Kernel, image: Image, vaddr: int) -> Translation:
    """Walk the kernel's page tables for `vaddr`; what is not mapped is an answer, not an error."""
    walk = await kernel.translator.explain(vaddr)
    where = None
    if walk.paddr is not None:
        where = _where(image, walk.paddr // kernel.page_size)
    return Translation(walk, kernel.page_size, where)


def _where(image: Image, pfn: int) -> str:
    pfns = np.array([pfn], dtype=np.uint64)
    if image.saved.contains(pfns)[0]:
        return "in the image"
    return "left out of the image" if image.ram.contains(pfns)[0] else "not memory of the image"


def _show_step(step: WalkStep) -> str:
    seen = "unreadable" if step.entry is None else f"{step.entry:#x}"
    text = f"{step.level}[{step.index}] at {step.entry_paddr:#x} = {seen}  {_meaning(step)}"
    return f"{text}  {'|'.join(step.flags)}" if step.flags else text


def _meaning(step: WalkStep) -> str:
    match step.kind:
        case EntryKind.TABLE:
            return f"table {step.target:#x}"
        case EntryKind.LEAF:
            return f"{show_size(1 << step.span_bits).replace('.0', '')} leaf {step.target:#x}"
        case _:
            return step.kind.name.lower()


def _step_dict(step: WalkStep) -> dict[str, Any]:
    return {
        "level": step.level,
        "index": step.index,
        "entry_paddr": hex(step.entry_paddr),
        "entry": None if step.entry is None else hex(step.entry),
        "kind": step.kind.name.lower(),
        "target": None if step.target is None else hex(step.target),
        "span_bytes": 1 << step.span_bits,
        "flags": list(step.flags),
    }
