"""From the result of pass 1 to a writer of ELF: loads, and room for their segments."""

from __future__ import annotations

from typing import Final

import numpy as np

from pipeline.errors import UnsupportedError
from pipeline.flow.items import HeadOrder
from pipeline.memory.addresses import PfnArray
from pipeline.memory.bitmap import PageBitmap
from pipeline.memory.extents import runs_of
from pipeline.obs.counters import RunCounters
from pipeline.obs.log import log_event
from stages.filter.stage import FilterResult
from stages.formats.elf import ELF64_LE, ElfForm
from stages.formats.notes import NT_ERASEINFO, pack_note, summarize_notes
from stages.reader.elf_head import MAX_HEADERS
from stages.reader.image import Image, ImageInfo
from stages.translator.kernel import Kernel
from stages.writer.elf_layout import ElfLayout
from stages.writer.elf_segments import Load
from stages.writer.elf_stage import ElfWriter

MAX_LOADS: Final = MAX_HEADERS - 1
"""Program headers that our own reader takes, PT_NOTE not counted."""
_FEW_LOADS: Final = 0xFFFE - 1
"""As many as e_phnum can count, beside PT_NOTE."""
_LEAST_SEGMENT_BYTES: Final = 4 << 20
"""What a run that goes on and on is cut into, so that a dump that is cut short has its pages."""
_MOST_PIECES: Final = 1024
_MARKS: Final = 2
_E_MACHINES: Final = {
    "x86_64": 62,
    "aarch64": 183,
    "riscv64": 243,
    "ppc64le": 21,
    "loongarch64": 258,
}
"""Of the machines whose kdump-compressed dumps are read."""


async def plan_elf(
    image: Image,
    kernel: Kernel | None,
    chosen: FilterResult,
    *,
    head_order: HeadOrder,
    missing_as_zero: bool,
    counters: RunCounters,
) -> ElfWriter:
    """A writer for the pages that pass 1 chose.

    Raises:
        UnsupportedError: more segments than anybody reads, a 32-bit dump of more than 4 GiB, or a
            source that does not say what machine it is from.
    """
    info = image.info
    form, e_machine = _form(info)
    page_size = info.page_size
    notes = _notes(info, form)
    loads = await _loads(image, kernel, form)
    n_kept = chosen.kept.count()
    most_bytes = max(_LEAST_SEGMENT_BYTES, n_kept * page_size // _MOST_PIECES)
    n_needed = _count_segments(chosen.kept, loads, page_size, most_bytes)
    left_out = n_kept // 2 if chosen.level & 1 or not missing_as_zero else 0
    limit = _FEW_LOADS if n_needed <= _FEW_LOADS // 2 else MAX_LOADS
    n_slots = max(n_needed, min(n_needed + left_out, limit))
    layout = ElfLayout(form, e_machine, page_size, n_slots, len(notes))
    end = layout.pages_start + n_kept * page_size
    if end > form.ones:
        raise UnsupportedError(
            f"a {form.bits}-bit ELF dump cannot hold {end} bytes, only {form.ones}"
        )
    return ElfWriter(
        layout=layout,
        notes=notes,
        loads=loads,
        n_kept=n_kept,
        n_spare=n_slots - n_needed,
        segment_bytes=most_bytes,
        leave_zeros_out=bool(chosen.level & 1),
        needs_pair=info.made_by == "qemu",
        head_order=head_order,
        missing_as_zero=missing_as_zero,
        source_incomplete=info.has_lost_pages,
        counters=counters,
    )


def _form(info: ImageInfo) -> tuple[ElfForm, int]:
    if info.elf is not None:
        return info.elf
    e_machine = _E_MACHINES.get(info.machine)
    if e_machine is None:
        raise UnsupportedError(
            f"an ELF dump of a machine called {info.machine!r} cannot be written: its number in "
            "ELF is not known"
        )
    return ELF64_LE, e_machine


def _notes(info: ImageInfo, form: ElfForm) -> bytes:
    """Those of the source; what was erased stands in a note here, beside them in kdump."""
    if not info.eraseinfo or summarize_notes(info.notes, form.order).eraseinfo:
        return info.notes
    padding = bytes(-len(info.notes) % 4)
    return info.notes + padding + pack_note(b"ERASEINFO", NT_ERASEINFO, info.eraseinfo, form.order)


async def _loads(image: Image, kernel: Kernel | None, form: ElfForm) -> list[Load]:
    """The source's own, else one for each extent of memory, mapped as the kernel maps it."""
    found = [
        Load(load.paddr, load.paddr + load.mem_size, load.vaddr)
        for load in image.info.loads
        if load.paddr is not None and load.mem_size
    ]
    if found:
        return found
    page_size = image.info.page_size
    base = 0 if kernel is None else await _direct_map(kernel)
    pairs = [(extent.start * page_size, extent.stop * page_size) for extent in image.ram]
    return [Load(start, stop, (base + start) & form.ones) for start, stop in pairs]


async def _direct_map(kernel: Kernel) -> int:
    """What the kernel adds to a physical address to map it, modulo the size of a word."""
    start = await kernel.find_page_offset()
    if start is None:
        log_event("direct_map_not_found", "warning", instead="segments have p_vaddr = p_paddr")
        return 0
    return start - kernel.memory_start


def _count_segments(kept: PageBitmap, loads: list[Load], page_size: int, most_bytes: int) -> int:
    """As many segments as there may be before any zero page is left out.

    Raises:
        UnsupportedError: more than `MAX_LOADS`.
    """
    starts, stops = _runs(kept, page_size)
    first = np.array([load.start for load in loads], dtype=np.uint64)
    last = np.array([load.stop for load in loads], dtype=np.uint64)
    n_runs = np.searchsorted(starts, last) - np.searchsorted(stops, first, side="right")
    # Two neighbouring pieces of a run together are longer than one segment may be.
    most = np.minimum(last - first, np.uint64(kept.count() * page_size))
    pieces = 2 * (most // np.uint64(most_bytes)).astype(np.int64) + 2
    total = int((n_runs + pieces).sum()) + _MARKS
    if total > MAX_LOADS:
        raise _too_many(total)
    return total


def _runs(kept: PageBitmap, page_size: int) -> tuple[PfnArray, PfnArray]:
    """uint64[n_runs] each: byte addresses where runs of kept pages start and end."""
    starts: list[PfnArray] = []
    stops: list[PfnArray] = []
    n_runs = 0
    for pfns in kept.iter_pfns():
        first, lengths = runs_of(pfns)
        n_runs += len(first)
        if n_runs > MAX_LOADS:
            raise _too_many(n_runs)
        starts.append(first)
        stops.append(first + lengths)
    if not starts:
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.uint64)
    size = np.uint64(page_size)
    return np.concatenate(starts) * size, np.concatenate(stops) * size


def _too_many(n_segments: int) -> UnsupportedError:
    return UnsupportedError(
        f"an ELF dump would have {n_segments} segments or more, too many for the {MAX_LOADS} that "
        "readers take: what is left out is too scattered; the kdump format has no such limit"
    )
