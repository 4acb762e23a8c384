"""Second opinions on the filter: free pages as the kernel counts them, and pages that it is in.

References:
    include/linux/mmzone.h (struct zone, vm_stat), mm/vmstat.c (stat_threshold)

A filter that misreads struct pages drops the wrong pages, and nothing else would show it. Zones
count their free pages, unaccepted ones too, in vm_stat[NR_FREE_PAGES]. Every CPU may hold back a
little of each zone's counter, so the two numbers are close, not equal. And what VMCOREINFO gives
addresses of lies in the kernel's own text and data, which no dump level leaves out.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from pipeline.errors import DumpError
from pipeline.memory.bitmap import PageBitmap
from pipeline.memory.extents import ExtentSet
from stages.filter.kernel_words import KernelWords
from stages.filter.memory_model import MAX_NODES
from stages.filter.page_layout import PageLayout
from stages.translator.kernel import Kernel

_MAX_ZONES: Final = 16
"""MAX_NR_ZONES is 3 to 6."""
_STAT_THRESHOLD: Final = 125
"""Pages that one CPU may hold back of one zone's counter, at most."""
_MAX_NODE_BYTES: Final = 1 << 20
"""struct pglist_data has 20 to 200 KiB."""
_MAX_EXPECTED: Final = 16
"""Nodes fetched ahead."""
_MAX_NAMES: Final = 3
"""Symbols named in a warning."""
_TOLERANCE: Final = 0.02
"""Of the larger count: memory of a machine that ran on while it was read."""


async def check_free_count(
    kernel: Kernel, layout: PageLayout, n_free: int, n_cpus: int
) -> list[str]:
    """A warning when `n_free` pages of class FREE and the zones' counters cannot both be right.

    Nothing is said where the counters cannot be found: that is no reason to doubt the filter.
    """
    try:
        counted = await _zone_counters(KernelWords(kernel, layout.byte_order, layout.word))
    except DumpError:
        return []
    if not counted:
        return []
    n_counted = sum(counted)
    held_back = _STAT_THRESHOLD * max(n_cpus, 1) * len(counted)
    if abs(n_counted - n_free) <= held_back + _TOLERANCE * max(n_counted, n_free):
        return []
    warning = (
        f"struct pages say that {n_free} pages are free, the kernel's own counters say "
        f"{n_counted}: one of them is wrong, so pages may be missing from the dump"
    )
    return [warning]


async def check_kernel_pages(
    kernel: Kernel, ram: ExtentSet, saved: PageBitmap, kept: PageBitmap
) -> list[str]:
    """A warning when pages that VMCOREINFO's symbols are in are `saved`, but not `kept`.

    Those of `ram` past the end of `saved` were cut off, and count as well.
    """
    symbols = kernel.info.symbols()
    vaddrs = np.array(list(symbols.values()), dtype=np.uint64)
    try:
        paddrs, mapped = await kernel.translator.translate(vaddrs)
    except DumpError:
        return []
    pfns = paddrs // np.uint64(kernel.page_size)
    cut_off = ram.contains(pfns) & (pfns >= np.uint64(saved.n_pages))
    lost = mapped & (saved.contains(pfns) & ~kept.contains(pfns) | cut_off)
    if not lost.any():
        return []
    names = [name for name, is_lost in zip(symbols, lost.tolist(), strict=True) if is_lost]
    shown = ", ".join(names[:_MAX_NAMES]) + (", ..." if len(names) > _MAX_NAMES else "")
    warning = (
        f"the kernel's own pages were left out, such as those of {shown}: "
        "struct pages were misread, so pages may be missing from the dump"
    )
    return [warning]


async def expect_free_count(kernel: Kernel, layout: PageLayout) -> None:
    """Have what `check_free_count` will read fetched ahead, where reading takes time."""
    node_bytes = kernel.info.size("pglist_data")
    if node_bytes is None or not 0 < node_bytes <= _MAX_NODE_BYTES:
        return
    try:
        nodes = await _nodes(KernelWords(kernel, layout.byte_order, layout.word))
        for node in nodes[:_MAX_EXPECTED]:
            await kernel.expect(node, node_bytes)
    except DumpError:
        return  # the check will say nothing either


async def _zone_counters(words: KernelWords) -> list[int]:
    """vm_stat[NR_FREE_PAGES] of every zone that has ever been set up; none if that makes no sense.

    Raises:
        DumpError: VMCOREINFO or memory lack something.
    """
    info = words.kernel.info
    what = "the check of free pages"
    zones_off = info.need_offset("pglist_data.node_zones", what)
    count_off = info.need_offset("pglist_data.nr_zones", what)
    zone_bytes = info.need_size("zone", what)
    node_bytes = info.need_size("pglist_data", what)
    stat_off = info.need_offset("zone.vm_stat", what)
    stat_off += info.need_number("NR_FREE_PAGES", what) * words.word
    inside_zone = 0 <= stat_off <= zone_bytes - words.word
    if not (inside_zone and 0 <= zones_off < node_bytes and 0 <= count_off <= node_bytes - 4):
        return []
    out: list[int] = []
    for node in await _nodes(words):
        raw = await words.kernel.read(node + count_off, 4)
        n_zones = int(np.frombuffer(raw, dtype=f"{words.byte_order}u4")[0])
        for index in range(min(n_zones, _MAX_ZONES)):
            at = node + zones_off + index * zone_bytes + stat_off
            value = (await words.read(at, 1)).astype(np.int64)
            # A counter that CPUs still hold parts of may be below zero.
            out.append(max(int(value[0]), 0))
    return out


async def _nodes(words: KernelWords) -> list[int]:
    info = words.kernel.info
    symbol, length = info.symbol("node_data"), info.length("node_data")
    if symbol is not None and length is not None and 1 <= length <= MAX_NODES:
        return sorted({int(node) for node in await words.read(symbol, length) if node})
    single = info.symbol("contig_page_data")
    return [] if single is None else [single]
