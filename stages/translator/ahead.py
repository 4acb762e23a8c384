"""What every command on a kernel reads first, asked for at once: for images behind a line.

Finding a kernel follows pointers: top table, next table, page, pointer, ... Each step waits for the
one before. But VMCOREINFO names the symbols at which those chains start, and they lie in the
kernel's own image, which is one piece of physical memory: as far from the top table, whose physical
address is known, as their addresses are apart. So they can be asked for before the first walk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.errors import DumpError

if TYPE_CHECKING:
    from stages.cache.pages import PageReader
    from stages.translator.kernel import Kernel

_TOP_TABLES: Final = ("swapper_pg_dir", "init_top_pgt", "init_level4_pgt")
_MAX_DISTANCE: Final = 256 << 20
"""A kernel image is smaller; what is further away lies elsewhere."""


async def look_ahead(kernel: Kernel, reader: PageReader) -> None:
    """Hint at the symbols' pages and at the upper tables; never fails, hints may be wrong."""
    hint = getattr(reader, "hint", None)
    if hint is None:
        return
    hint(_symbol_pfns(kernel))
    try:
        await kernel.translator.expect_tables()
    except DumpError:
        return  # whoever needs the table says so better


def _symbol_pfns(kernel: Kernel) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    symbols, root = kernel.info.symbols(), kernel.layout.root
    top = next((symbols[name] for name in _TOP_TABLES if name in symbols), None)
    if top is None:
        return np.zeros(0, dtype=np.uint64)
    near = {root + at - top for at in symbols.values() if abs(at - top) < _MAX_DISTANCE}
    pages = {paddr // kernel.page_size for paddr in near if 0 <= paddr < 1 << 63}
    return np.array(sorted(pages), dtype=np.uint64)
