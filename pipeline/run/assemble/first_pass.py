"""Pass 1: the kernel in the image, and which pages are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import DumpError, FormatError, MissingInfoError, StageError
from pipeline.run.assemble.source import make_plain_cache

if TYPE_CHECKING:
    from pipeline.config.resolved import Resolved
    from pipeline.obs.counters import RunCounters
    from stages.cache.pages import PageReader
    from stages.filter.stage import FilterResult
    from stages.reader.image import Image
    from stages.translator.kernel import Kernel

_INSPECT_CACHE_BYTES: Final = 8 << 20
_WAY_OUT: Final = "-d 1 and -d 0 look at no kernel"


async def find_kernel(image: Image, cache: PageReader, level: int) -> Kernel | None:
    """The kernel in `image`; None without VMCOREINFO, or where dump `level` can do without one.

    Raises:
        DumpError: it can't be found, and `level` needs its struct pages.
    """
    if image.info.vmcoreinfo is None:
        return None
    from pipeline.obs.log import log_event
    from stages.filter.levels import needs_struct_pages
    from stages.translator.kernel import open_kernel

    try:
        return await open_kernel(image, cache)
    except DumpError as error:
        if needs_struct_pages(level, image.info.dump_level):
            error.add_note(_WAY_OUT)
            raise
        log_event("kernel_not_found", "warning", text=str(error))
        return None


async def need_kernel(image: Image) -> Kernel:
    """The kernel in `image`, for commands that are of no use without one.

    Raises:
        MissingInfoError: no VMCOREINFO.
    """
    from stages.translator.kernel import open_kernel

    return await open_kernel(image, make_plain_cache(image, _INSPECT_CACHE_BYTES))


async def filter_pages(
    image: Image,
    kernel: Kernel | None,
    level: int,
    resolved: Resolved,
    counters: RunCounters,
) -> FilterResult:
    """Pass 1: which pages are kept. Its warnings are logged, its counts are booked."""
    from pipeline.flow.channel import Channel
    from pipeline.obs.log import log_event
    from pipeline.run.runner import Flow, run_flow
    from stages.filter.collector import FilterCollector
    from stages.filter.stage import FilterStage

    verdicts: Channel[Any] = Channel("filter", resolved.filter.channel_bytes)
    counters.channels.append(verdicts.stats)
    collector = FilterCollector(counters)
    stage = FilterStage(
        image, kernel, level, resolved.filter.window_bytes, workers=resolved.filter.workers
    )
    for sentence in kernel.warnings if kernel is not None else ():  # why it may fail
        log_event("filter_warning", "warning", text=sentence)
    try:
        await run_flow(Flow(stage, [], collector, [verdicts]))
    except StageError as error:
        if isinstance(error.cause, (MissingInfoError, FormatError)):
            error.add_note(_WAY_OUT)
        raise
    chosen = collector.result
    for sentence in chosen.warnings:
        log_event("filter_warning", "warning", text=sentence)
    counters.excluded = {name: n_pages for name, n_pages in chosen.counts.items() if n_pages}
    return chosen
