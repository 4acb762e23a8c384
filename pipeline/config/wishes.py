"""What would run if memory were no question: the sizes that `budget.fit` starts from."""

from __future__ import annotations

from typing import Final

from pipeline.config import budget as division
from pipeline.config.budget import Sizes
from pipeline.config.reasons import Reasons
from pipeline.config.resolved import ImageFacts, MachineFacts
from pipeline.config.settings import MIB, Settings
from pipeline.config.target_buffers import TargetBuffer
from pipeline.config.workers import choose_batch_pages, choose_mode, choose_workers

MAX_READ_AHEAD: Final = 32 * MIB
WINDOW_BYTES: Final = 2 * MIB  # stays in a core's cache while its fields are taken apart
CACHE_BYTES: Final = 8 * MIB
_LINE_WORKERS: Final = 4
AHEAD_BYTES: Final = 20 * MIB
DESCRIPTOR_BYTES: Final = 1 * MIB
_PFN_CHANNEL_BYTES: Final = 1 * MIB


def make_wish(
    settings: Settings,
    machine: MachineFacts,
    image: ImageFacts,
    budget: int,
    targets: tuple[TargetBuffer, ...],
    reasons: Reasons,
) -> Sizes:
    """What would run if memory were no question."""
    batch_pages = choose_batch_pages(settings, image, reasons)
    mode = choose_mode(settings, machine, image, batch_pages, reasons)
    workers = choose_workers(settings, machine, image, mode, batch_pages, reasons)
    batch = batch_pages * image.page_size
    # Workers, or the main process in their place, read for themselves where the image allows.
    sends_data = not image.fork_safe
    feed = 2 * batch if sends_data else min(_PFN_CHANNEL_BYTES, budget // 32)
    feed_least = batch if sends_data else batch_pages * division.PFN_BYTES
    window = size_or(settings.filter.window_bytes, min(WINDOW_BYTES, budget // 32))
    return Sizes(
        page_size=image.page_size,
        sends_data=sends_data,
        mode=mode,
        workers=workers,
        batch_pages=batch_pages,
        reader_channel=max(size_or(settings.reader.channel_bytes, feed), feed_least),
        filter_channel=size_or(settings.filter.channel_bytes, window),
        compressor_channel=max(size_or(settings.compressor.channel_bytes, 2 * batch), batch),
        writer_channel=max(size_or(settings.writer.channel_bytes, 2 * batch), batch),
        sink_channel=max(size_or(settings.sink.channel_bytes, 2 * batch), batch),
        cache=_cache(settings, budget),
        ahead=_ahead(settings, image, budget),
        filter_workers=_filter_workers(settings, image, reasons),
        window=window,
        descriptors=size_or(settings.writer.descriptor_bytes, min(DESCRIPTOR_BYTES, budget // 32)),
        bitmaps=division.estimate_bitmaps(image.max_mapnr, budget),
        targets=targets,
        n_sinks=len(image.schemes),
        encrypts=image.encrypts,
    )


def size_or(wanted: int | str, auto: int) -> int:
    return wanted if isinstance(wanted, int) else auto


def _cache(settings: Settings, budget: int) -> int:
    if not settings.cache.enabled:
        return 0
    return size_or(settings.cache.capacity, min(CACHE_BYTES, budget // 8))


def _ahead(settings: Settings, image: ImageFacts, budget: int) -> int:
    """What may be read ahead of its use over a slow line; local files need none."""
    if not image.in_flight or not settings.cache.prefetch:
        return 0
    return size_or(settings.cache.window, min(AHEAD_BYTES, budget * 5 // 16))


def _filter_workers(settings: Settings, image: ImageFacts, reasons: Reasons) -> int:
    if settings.filter.workers != "auto":
        return settings.filter.workers
    if image.in_flight and settings.cache.prefetch:
        reasons.say("filter.workers", _LINE_WORKERS, "they wait for the line, not for each other")
        return _LINE_WORKERS
    reasons.say("filter.workers", 1, "one core classifies as fast as struct pages can be read")
    return 1
