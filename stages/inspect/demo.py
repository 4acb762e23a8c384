"""The demo: a small image with a whole kernel in it, and what a dump of it has to contain."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import numpy as np

from pipeline.errors import DumpError
from pipeline.memory.sizes import show_count, show_size
from stages.demo.build import DemoFacts, build_demo_image
from stages.reader.probe import open_image

PAGE_SIZE = 4096
_NEEDED_BYTES = 72 << 20
"""Image and dump. The image is written through a mapping, where a full disk is a SIGBUS."""


def build(path: Path) -> DemoFacts:
    """Write the demo image to `path`.

    Raises:
        DumpError: there is no room for it and its dump.
        OSError: the file cannot be written.
    """
    free = shutil.disk_usage(path.parent).free
    if free < _NEEDED_BYTES:
        raise DumpError(
            f"{path.parent}: {show_size(free)} free, the demo takes {show_size(_NEEDED_BYTES)}"
        )
    return build_demo_image(path)


def check_page_set(dump: Path, facts: DemoFacts, level: int) -> list[str]:
    """Sentences about pages that the dump should have and has not, or the other way round.

    The builder knows what it put where, without asking the filter.
    """
    with closing(open_image(str(dump))) as image:
        held = np.zeros(facts.max_mapnr, dtype=np.bool_)
        for pfns in image.saved_bitmap().iter_pfns():
            held[pfns.astype(np.intp)] = True
    wanted = facts.kept(level)
    problems = []
    for name, wrong in (("missing from", wanted & ~held), ("wrongly in", held & ~wanted)):
        if wrong.any():
            first = int(np.flatnonzero(wrong)[0])
            pages = show_count(int(np.count_nonzero(wrong)), "page")
            problems.append(f"{pages} {name} the dump, first {first:#x}")
    return problems


def table(facts: DemoFacts, level: int) -> list[str]:
    """Pages by what becomes of them at `level`."""
    kept = facts.kept(level)
    rows = [(f"left out: {name}", n_pages) for name, n_pages in facts.counts(level).items()]
    rows.append(("kept: zero", int(np.count_nonzero(kept & facts.zero))))
    rows.append(("kept: with content", int(np.count_nonzero(kept & ~facts.zero))))
    rows.append(("in all", int(np.count_nonzero(facts.ram))))
    return [f"{name:<24}{n:>8} pages {show_size(n * PAGE_SIZE):>11}" for name, n in rows]
