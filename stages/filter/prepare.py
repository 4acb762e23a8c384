"""What pass 1 will do on an image, decided before any struct page is read."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from pipeline.errors import DumpError, MissingInfoError, UsageError
from stages.filter.levels import MAX_LEVEL, needs_struct_pages
from stages.filter.memory_model import MemoryModel, read_memory_model
from stages.filter.page_layout import PageLayout
from stages.reader.image import Image
from stages.translator.kernel import Kernel

_EVERYTHING: Final = MemoryModel("none", ())


class FilterPlan(Struct, frozen=True):
    """Attributes:
    level: what the dump will lack: the level asked for and what the image lacks already.
    layout: of struct pages; None: they are not looked at, and everything saved is kept.
    model: where they are.
    max_mapnr: one past the highest pfn of the dump.
    warnings: sentences for people.
    """

    level: int
    layout: PageLayout | None
    model: MemoryModel
    max_mapnr: int
    warnings: tuple[str, ...] = ()


async def prepare_filter(image: Image, kernel: Kernel | None, level: int) -> FilterPlan:
    """Find layout and memory model for `level`.

    Levels 0 and 1 need neither: without them the plan keeps everything and says what is wrong.

    Raises:
        UsageError: not a dump level.
        MissingInfoError: VMCOREINFO, or keys of it, are missing.
        FormatError, TranslationError, MissingPageError: the kernel's tables make no sense.
    """
    if not 0 <= level <= MAX_LEVEL:
        raise UsageError(f"dump level {level} is not from 0 to {MAX_LEVEL}")
    effective = level | image.info.dump_level
    needs_pages = needs_struct_pages(level, image.info.dump_level)
    if kernel is None:
        if needs_pages:
            raise MissingInfoError("a VMCOREINFO note", f"dump level {level}")
        return FilterPlan(effective, None, _EVERYTHING, image.max_mapnr)
    try:
        layout = PageLayout.from_vmcoreinfo(kernel.info, byte_order=kernel.byte_order)
        model = await read_memory_model(kernel, layout, image.max_mapnr)
    except DumpError as error:
        if needs_pages:
            raise
        warning = f"struct pages are not looked at, hwpoison and offline pages are kept: {error}"
        return FilterPlan(effective, None, _EVERYTHING, image.max_mapnr, (warning,))
    warnings = [*model.warnings]
    if needs_pages:
        warnings += [f"cannot tell apart, so kept: {what}" for what in layout.unknown]
    return FilterPlan(
        level=effective,
        layout=layout if layout.is_needed(effective) else None,
        model=model,
        max_mapnr=model.lowered(image.max_mapnr),
        warnings=tuple(warnings),
    )
