"""Builds the stages of a run from its resolved settings: the only module that names stages.

Imports are inside the functions: a command loads what it needs and no more.
"""

from __future__ import annotations

import os
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.config.request import STDOUT
from pipeline.errors import DumpError, UsageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from types import ModuleType

    from pipeline.config.layers import LoadedSettings
    from pipeline.config.request import DumpRequest
    from pipeline.config.resolved import ImageFacts, Resolved
    from pipeline.config.settings import Settings
    from pipeline.config.targets import TargetEntry
    from pipeline.flow.items import HeadOrder, Receipt
    from pipeline.flow.protocols import Sink, Stage
    from pipeline.obs.counters import RunCounters
    from pipeline.run.runner import Flow
    from stages.cache.blocks import BlockCache
    from stages.cache.pages import PageCache, PageReader
    from stages.compressor.pool import EncoderPool
    from stages.compressor.slots import SlotArena
    from stages.filter.stage import FilterResult
    from stages.reader.image import Image
    from stages.sink.journal import Journal
    from stages.sink.partial_file import PartialFile
    from stages.translator.kernel import Kernel

_HOLE_PAGES = 65536
"""Pages of a batch that is all hole: 1.5 MiB of descriptors, no data."""
_INSPECT_CACHE_BYTES = 8 << 20
_MIN_SPARE_SLOTS = 2
"""Slots beyond the workers' own: one being written, one waiting for its turn."""


def open_source(path: str, settings: Settings | None = None) -> Image:
    """The memory image at `path` or URL, by the first format that recognises it.

    Without `settings` a URL takes those of profile and environment.
    """
    if "://" in path and settings is None:
        import os

        from pipeline.config.layers import load_settings

        settings = load_settings(environ=os.environ).settings
    if settings is not None and ("://" in path or settings.source.latency.is_on):
        from stages.reader.remote_image import open_slow

        return open_slow(path, settings)
    from stages.reader.probe import open_image

    return open_image(path)


@contextmanager
def opened_source(path: str, settings: Settings | None = None) -> Iterator[Image]:
    """`open_source`, closed again; what fails on an image that is cut says so."""
    with closing(open_source(path, settings)) as image:
        try:
            yield image
        except DumpError as error:
            if image.info.incomplete:
                error.add_note(f"the image is incomplete: {image.info.incomplete}")
            raise


def image_facts(image: Image, request: DumpRequest) -> ImageFacts:
    """What the resolver of `auto` has to know of source and target."""
    from pipeline.config.resolved import ImageFacts

    return ImageFacts(
        page_size=image.info.page_size,
        fork_safe=image.fork_safe,
        n_pages=image.saved.n_pages,
        max_mapnr=image.max_mapnr,
        is_stream=request.is_stream,
        in_flight=_in_flight(image),
    )


def _in_flight(image: Image) -> int:
    link = getattr(image, "link", None)
    return 0 if link is None else int(link.max_in_flight)


def make_cache(image: Image, resolved: Resolved) -> PageCache | BlockCache:
    """The cache that every single-page read goes through; disabled, it still holds one page."""
    from stages.cache.pages import CacheOptions, make_cache

    cache, page_size = resolved.cache, image.info.page_size
    options = CacheOptions(
        capacity_bytes=cache.capacity if cache.enabled else page_size,
        block_bytes=cache.block if cache.enabled else page_size,
        prefetch=cache.prefetch and cache.enabled,
        depth=cache.depth,
        window_bytes=cache.window,
    )
    return make_cache(image, options)


def make_plain_cache(image: Image, capacity_bytes: int) -> PageCache | BlockCache:
    """A cache with usual settings, for whatever reads single pages and is no dump."""
    from stages.cache.pages import CacheOptions, make_cache

    return make_cache(image, CacheOptions(capacity_bytes))


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


def inspector(name: str) -> ModuleType:
    """The module of `stages.inspect` that answers the command `name`."""
    from importlib import import_module

    return import_module(f"stages.inspect.{name}")


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
    await run_flow(Flow(stage, [], collector, [verdicts]))
    chosen = collector.result
    for sentence in [*(kernel.warnings if kernel is not None else ()), *chosen.warnings]:
        log_event("filter_warning", "warning", text=sentence)
    counters.excluded = {name: n_pages for name, n_pages in chosen.counts.items() if n_pages}
    return chosen


def make_pool(image: Image, resolved: Resolved, level: int) -> tuple[EncoderPool, SlotArena]:
    """Workers and the slots they share; not started yet."""
    from stages.compressor.encode import BatchWorker, EncodeSettings
    from stages.compressor.slots import SlotArena

    wanted = resolved.compressor
    is_elf = resolved.dump.format == "elf"
    encode = EncodeSettings(
        codec=wanted.codec,
        level=wanted.level,
        page_size=image.info.page_size,
        capacity=wanted.batch_pages,
        # In ELF a page has a place of its own; which zero pages get one is for the writer to say.
        drop_zero=bool(level & 1) or is_elf,
        share_identical=wanted.share_identical and not is_elf,
        on_read_error=resolved.reader.on_read_error,
    )

    def make_worker() -> BatchWorker:
        return BatchWorker(image, encode)

    in_processes = wanted.mode == "processes"
    n_slots = wanted.workers * wanted.slots_per_worker
    arena = SlotArena(
        max(n_slots, _MIN_SPARE_SLOTS),
        wanted.batch_pages,
        image.info.page_size,
        with_input=in_processes and not image.fork_safe,
    )
    if in_processes:
        from stages.compressor.pool_processes import ProcessPool

        return ProcessPool(make_worker, arena, wanted.workers), arena
    from stages.compressor.pool_local import LocalPool

    return LocalPool(make_worker, wanted.workers if wanted.mode == "threads" else 0), arena


def make_sink(
    request: DumpRequest, resolved: Resolved, settings: Settings, journal: Journal | None = None
) -> Sink[Any]:
    """The sink for the request's target, or for all of them at once.

    Raises:
        UsageError: a target is no name of a file, is the source, or is a URL that nobody serves.
    """
    if not request.also:
        return _one_sink(request, request.target, resolved, settings, journal)
    from stages.sink.fallback import show_target
    from stages.sink.fanout import FanOutSink

    sinks = [
        (show_target(target), _one_sink(request, target, resolved, settings, None))
        for target in request.targets
    ]
    return FanOutSink(sinks, buffer_bytes=resolved.sink.channel_bytes)


def _one_sink(
    request: DumpRequest,
    target: str,
    resolved: Resolved,
    settings: Settings,
    journal: Journal | None,
) -> Sink[Any]:
    if target == STDOUT:
        from stages.sink.flattened import FlattenedSink, StdoutStream

        return FlattenedSink(StdoutStream())
    if "://" in target:
        from stages.sink.targets import make_remote_sink

        encrypted = bool(request.encrypt_to)
        return make_remote_sink(target, settings, journal, encrypted=encrypted)
    from stages.sink.partial_file import PartialFile

    file = PartialFile(target, overwrite=resolved.dump.overwrite, fsync=resolved.sink.fsync)
    if file.would_replace(request.source):
        raise UsageError(f"{target}: would replace the source, {request.source}")
    if resolved.dump.flatten:
        from stages.sink.flattened import FileStream, FlattenedSink

        return FlattenedSink(FileStream(file))
    return _file_sink(file, resolved)


def _file_sink(file: PartialFile, resolved: Resolved) -> Sink[Any]:
    from stages.sink.file import FileSink, PwriteWriter

    if resolved.sink.write_mode == "aiofiles":
        from stages.sink.aio import AiofilesWriter

        return FileSink(file, AiofilesWriter())
    return FileSink(file, PwriteWriter())


async def deliver(
    target: str,
    others: Sequence[TargetEntry],
    settings: Settings,
    attempt: Callable[[TargetEntry], Awaitable[Receipt]],
) -> Receipt:
    """Attempt `target` and then `others` until one has the dump, each within its deadline."""
    from pipeline.config.targets import TargetEntry
    from pipeline.obs.log import log_event
    from stages.sink.fallback import TargetPlan, dump_to_first, show_target

    plan = TargetPlan([TargetEntry(target), *others], restart_s=settings.net.retry_deadline_s)
    done = await dump_to_first(plan, attempt)
    if done.failures:
        failed = [f"{failure.target}: {failure.reason}" for failure in done.failures]
        log_event("target_used", "warning", target=show_target(done.entry.url), failed=failed)
    return done.receipt


async def make_log_flow(image: Image, sink: Sink[Any]) -> Flow:
    """The kernel log straight to `sink`.

    Raises:
        MissingInfoError: no VMCOREINFO, so no log.
    """
    from pipeline.flow.channel import Channel
    from pipeline.run.runner import Flow
    from stages.writer.log_source import LogSource

    source = LogSource(await need_kernel(image))
    return Flow(source, [], sink, [Channel("log", _INSPECT_CACHE_BYTES)])


def stored_dump(target: str, settings: Settings) -> Any:
    """The dump at `target`, to be verified where it is."""
    from stages.sink.stored import find_stored

    return find_stored(target, settings)


async def measure_target(target: str, settings: Settings) -> Any:
    """Speed of and room at `target`, as far as that can be told."""
    from stages.sink.measure import measure_target

    return await measure_target(target, settings)


def transport() -> ModuleType:
    """What `receive` runs."""
    from importlib import import_module

    return import_module("stages.transport.receive")


def crypt() -> ModuleType:
    """What `keygen` and `decrypt` run."""
    from importlib import import_module

    return import_module("stages.crypt.commands")


_ENCRYPT_TO = "encrypt_to"


def read_journal(path: str) -> tuple[str, str, dict[str, Any], tuple[str, ...]]:
    """Source, target, settings by dotted key, and keys, of the upload that `path` is about."""
    from pathlib import Path

    from stages.sink.journal import Journal

    header = Journal.open(Path(path)).header
    settings = dict(header.settings)
    keys = settings.pop(_ENCRYPT_TO, "")
    return header.source.path, header.target, settings, tuple(str(keys).split())


def make_journal(
    request: DumpRequest, resolved: Resolved, loaded: LoadedSettings
) -> Journal | None:
    """Where the upload is written down, so that another process can go on with it.

    None for targets that cannot be gone on with, and where `net.journal_dir` says so.

    Raises:
        SinkError: the journal to go on with is of another source.
    """
    from stages.sink.targets import is_journalled

    wanted = loaded.settings.net.journal_dir
    if request.also or not is_journalled(request.target) or "://" in request.source:
        return None
    from pathlib import Path

    from stages.sink.journal import Journal, identify_source

    if request.journal is not None:
        journal = Journal.open(Path(request.journal))
        journal.require_source(identify_source(request.source))
        return journal
    if wanted == "none":
        return None
    from pipeline.config.layers import settings_values

    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    folder = Path(state) / "dumpstream" if wanted == "auto" else Path(wanted)
    shaping = {
        # What `auto` became shapes the bytes, and may become something else another time.
        "compressor.batch_pages": resolved.compressor.batch_pages,
        "compressor.level": resolved.compressor.level,
    }
    return Journal.create(
        folder,
        target=request.target,
        source=identify_source(request.source),
        settings={
            **settings_values(loaded.settings),
            **shaping,
            **({_ENCRYPT_TO: " ".join(request.encrypt_to)} if request.encrypt_to else {}),
        },
    )


def encrypted(flow: Flow, request: DumpRequest, journal: Journal | None) -> Flow:
    """`flow` with a stage before the sink that encrypts to the request's keys."""
    from dataclasses import replace

    from pipeline.flow.channel import Channel
    from stages.crypt.dump_key import make_dump_key
    from stages.crypt.stage import EncryptStage

    stage = EncryptStage(make_dump_key(request.encrypt_to, journal))
    channel: Channel[Any] = Channel("encrypt", flow.channels[-1].stats.capacity_bytes)
    return replace(flow, stages=[*flow.stages, stage], channels=[*flow.channels, channel])


def describe_run(
    sink: Sink[Any], image: Image, run_settings: dict[str, Any], counters: RunCounters, started: str
) -> None:
    """Give a sink that writes a manifest what only the run knows."""
    describe = getattr(sink, "describe", None)
    if describe is None:
        return
    from stages.formats.vmcoreinfo import VmcoreInfo
    from stages.sink.journal import identify_source
    from stages.sink.manifest import DumpFacts

    text = image.info.vmcoreinfo
    describe(
        DumpFacts(
            source=None if "://" in image.path else identify_source(image.path),
            kernel_release=None if text is None else VmcoreInfo.parse(text).osrelease,
            settings=run_settings,
            excluded=counters.excluded,
            started=started,
        )
    )


async def make_flow(
    image: Image,
    kernel: Kernel | None,
    chosen: FilterResult,
    pool: EncoderPool,
    arena: SlotArena,
    head_order: HeadOrder,
    sink: Sink[Any],
    resolved: Resolved,
    counters: RunCounters,
) -> Flow:
    """Pass 2: reader, compressor, writer and sink, with the channels between them."""
    from pipeline.flow.channel import Channel
    from pipeline.run.runner import Flow
    from stages.compressor.stage import CompressorStage
    from stages.reader.stage import ReaderStage

    # The writer of ELF makes zeros by itself, where it wants any.
    drop_zero = bool(chosen.level & 1) or resolved.dump.format == "elf"
    reader = ReaderStage(
        image=image,
        kept=chosen.kept,
        batch_pages=resolved.compressor.batch_pages,
        hole_pages=_HOLE_PAGES if drop_zero else resolved.compressor.batch_pages,
        read_here=not image.fork_safe,
        read_ahead_pages=resolved.reader.read_ahead // image.info.page_size,
        ahead_bytes=resolved.cache.window,
    )
    compressor = CompressorStage(pool, arena, keep_holes=not drop_zero)
    writer = await _make_writer(image, kernel, chosen, head_order, resolved, counters)
    channels: list[Channel[Any]] = [
        Channel("reader", resolved.reader.channel_bytes),
        Channel("compressor", resolved.compressor.channel_bytes),
        Channel("writer", resolved.writer.channel_bytes),
    ]
    counters.channels += [channel.stats for channel in channels]
    return Flow(reader, [compressor, writer], sink, channels)


async def _make_writer(
    image: Image,
    kernel: Kernel | None,
    chosen: FilterResult,
    head_order: HeadOrder,
    resolved: Resolved,
    counters: RunCounters,
) -> Stage[Any, Any]:
    missing_as_zero = resolved.reader.on_read_error == "zero"
    if resolved.dump.format == "elf":
        from stages.writer.elf_plan import plan_elf

        return plan_elf(
            image,
            kernel,
            chosen,
            head_order=head_order,
            missing_as_zero=missing_as_zero,
            counters=counters,
        )
    from stages.writer.plan import plan_kdump

    return await plan_kdump(
        image,
        kernel,
        chosen,
        codec=resolved.compressor.codec,
        head_order=head_order,
        missing_as_zero=missing_as_zero,
        descriptor_bytes=resolved.writer.descriptor_bytes,
        counters=counters,
    )


def book_cache(image: Image, cache: PageCache | BlockCache, counters: RunCounters) -> None:
    """Close the cache, and carry its statistics and those of the line over to the run's."""
    cache.close()
    stats, counts = cache.stats, counters.cache
    counts.hits, counts.misses = stats.hits, stats.misses
    counts.reads, counts.bytes_read, counts.evicted = stats.reads, stats.bytes_read, stats.evicted
    counts.prefetches, counts.prefetches_used = stats.prefetched, stats.used
    counts.prefetches_wasted, counts.prefetches_dropped = stats.wasted, stats.dropped
    link = getattr(image, "link", None)
    if link is not None:
        counts.source_requests, counts.source_bytes = link.stats.requests, link.stats.bytes
        counts.joined = link.stats.joined
        counts.waited_s = round(link.stats.waited_s, 6)
        counts.hidden_s = round(link.stats.hidden_s, 6)
