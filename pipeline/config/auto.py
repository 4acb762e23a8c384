"""Resolves every ``auto`` from facts, without looking at the machine itself.

`resolve` is pure: the same settings and facts give the same result, so `dumpstream plan` shows what
`dumpstream dump` does. A setting that cannot be had (processes over an image that must not be
forked, more than the memory holds) is replaced, with a reason; it never fails the run.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from pipeline.config import budget as division
from pipeline.config.budget import Sizes, pages_of
from pipeline.config.resolved import (
    ImageFacts,
    MachineFacts,
    Reason,
    Resolved,
    ResolvedCache,
    ResolvedCompressor,
    ResolvedFilter,
    ResolvedReader,
    ResolvedSink,
    ResolvedWriter,
)
from pipeline.config.settings import KIB, MIB, Codec, DumpSettings, Mode, Settings
from pipeline.memory.sizes import show_size

MODE_BY_CODEC: Final[dict[Codec, tuple[Mode, ...]]] = {
    # In order of preference; processes need an image that a forked child may read.
    "none": ("processes", "inline"),
    "zlib": ("processes", "threads"),
    "zstd": ("processes", "threads"),
    # One call a page: the hand-over of the interpreter lock eats what a second thread gains.
    "lzo": ("processes", "inline"),
    "snappy": ("processes", "inline"),
}
LEVELS: Final[dict[Codec, tuple[int, int, int]]] = {
    # lowest, highest, and what `auto` takes: the fastest, since the machine waits to reboot
    "none": (0, 0, 0),
    "zlib": (0, 9, 1),
    "lzo": (0, 0, 0),
    "snappy": (0, 0, 0),
    "zstd": (1, 22, 1),
}
MAX_AUTO_WORKERS: Final = 32

_BATCH_BYTES: Final = 2 * MIB
_AUTO_BUDGET: Final = 64 * MIB
_WINDOW_BYTES: Final = 2 * MIB  # stays in a core's cache while its fields are taken apart
_CACHE_BYTES: Final = 8 * MIB
_LINE_WORKERS: Final = 4
_SLOW_BLOCK: Final = 64 * KIB
_AHEAD_BYTES: Final = 20 * MIB
_DESCRIPTOR_BYTES: Final = 1 * MIB
_MAX_READ_AHEAD: Final = 32 * MIB
_PFN_CHANNEL_BYTES: Final = 1 * MIB


class _Reasons:
    """Collects why; the last reason for a setting is the one that holds."""

    def __init__(self) -> None:
        self._by_setting: dict[str, Reason] = {}

    def say(self, setting: str, value: bool | int | str, why: str) -> None:
        self._by_setting[setting] = Reason(setting, value, why)

    def has(self, setting: str) -> bool:
        return setting in self._by_setting

    def all(self) -> tuple[Reason, ...]:
        return tuple(self._by_setting.values())


def resolve(settings: Settings, machine: MachineFacts, image: ImageFacts) -> Resolved:
    """What will run, why, and what each consumer may hold."""
    reasons = _Reasons()
    settings = _fit_format(settings, reasons)
    budget = _budget(settings, machine, reasons)
    wish = _wish(settings, machine, image, budget, reasons)
    sizes = division.fit(wish, budget)
    if sizes.workers == 1 and sizes.mode != "inline" and settings.compressor.mode == "auto":
        inline = replace(settings, compressor=replace(settings.compressor, mode="inline"))
        wish = _wish(inline, machine, image, budget, reasons)
        sizes = division.fit(wish, budget)
        why = f"memory.budget of {show_size(budget)} holds one worker, which gains nothing"
        reasons.say("compressor.mode", "inline", why)
    _explain_shrinking(wish, sizes, budget, reasons)
    return _assemble(settings, image, budget, sizes, reasons)


def _fit_format(settings: Settings, reasons: _Reasons) -> Settings:
    """ELF pages are stored as they are, each in its own place."""
    if settings.dump.format != "elf" or settings.compressor.codec == "none":
        return settings
    reasons.say("compressor.codec", "none", "ELF dumps hold no compressed pages")
    compressor = replace(settings.compressor, codec="none", level="auto")
    return replace(settings, compressor=compressor)


def _budget(settings: Settings, machine: MachineFacts, reasons: _Reasons) -> int:
    wanted = settings.memory.budget
    available = machine.available_bytes
    if available is None:
        budget = _AUTO_BUDGET if wanted == "auto" else wanted
        reasons.say("memory.budget", budget, machine.memory_why)
        return budget
    if wanted == "auto":
        budget = max(min(available // 4, _AUTO_BUDGET), division.MIN_BUDGET)
        why = f"a quarter of {show_size(available)} ({machine.memory_why})"
        why += f", between {show_size(division.MIN_BUDGET)} and {show_size(_AUTO_BUDGET)}"
        reasons.say("memory.budget", budget, why)
        return budget
    # More than there is would end in the out-of-memory killer, and so without a dump.
    most = max(available * 3 // 4, division.MIN_BUDGET)
    if wanted > most:
        why = f"{show_size(wanted)} asked for, three quarters of what {machine.memory_why} gives"
        reasons.say("memory.budget", most, why)
    return min(wanted, most)


def _wish(
    settings: Settings, machine: MachineFacts, image: ImageFacts, budget: int, reasons: _Reasons
) -> Sizes:
    """What would run if memory were no question."""
    batch_pages = _batch_pages(settings, image, reasons)
    mode = _mode(settings, machine, image, batch_pages, reasons)
    workers = _workers(settings, machine, image, mode, batch_pages, reasons)
    batch = batch_pages * image.page_size
    # Workers, or the main process in their place, read for themselves where the image allows.
    sends_data = not image.fork_safe
    feed = 2 * batch if sends_data else min(_PFN_CHANNEL_BYTES, budget // 32)
    feed_least = batch if sends_data else batch_pages * division.PFN_BYTES
    window = _size(settings.filter.window_bytes, min(_WINDOW_BYTES, budget // 32))
    return Sizes(
        page_size=image.page_size,
        sends_data=sends_data,
        mode=mode,
        workers=workers,
        batch_pages=batch_pages,
        reader_channel=max(_size(settings.reader.channel_bytes, feed), feed_least),
        filter_channel=_size(settings.filter.channel_bytes, window),
        compressor_channel=max(_size(settings.compressor.channel_bytes, 2 * batch), batch),
        writer_channel=max(_size(settings.writer.channel_bytes, 2 * batch), batch),
        sink_channel=max(_size(settings.sink.channel_bytes, 2 * batch), batch),
        cache=_cache(settings, budget),
        ahead=_ahead(settings, image, budget),
        filter_workers=_filter_workers(settings, image, reasons),
        window=window,
        descriptors=_size(settings.writer.descriptor_bytes, min(_DESCRIPTOR_BYTES, budget // 32)),
        bitmaps=division.estimate_bitmaps(image.max_mapnr, budget),
    )


def _size(wanted: int | str, auto: int) -> int:
    return wanted if isinstance(wanted, int) else auto


def _cache(settings: Settings, budget: int) -> int:
    if not settings.cache.enabled:
        return 0
    return _size(settings.cache.capacity, min(_CACHE_BYTES, budget // 8))


def _ahead(settings: Settings, image: ImageFacts, budget: int) -> int:
    """What may be read ahead of its use over a slow line; local files need none."""
    if not image.in_flight or not settings.cache.prefetch:
        return 0
    return _size(settings.cache.window, min(_AHEAD_BYTES, budget * 5 // 16))


def _filter_workers(settings: Settings, image: ImageFacts, reasons: _Reasons) -> int:
    if settings.filter.workers != "auto":
        return settings.filter.workers
    if image.in_flight and settings.cache.prefetch:
        reasons.say("filter.workers", _LINE_WORKERS, "they wait for the line, not for each other")
        return _LINE_WORKERS
    reasons.say("filter.workers", 1, "one core classifies as fast as struct pages can be read")
    return 1


def _batch_pages(settings: Settings, image: ImageFacts, reasons: _Reasons) -> int:
    """Reader and compressor pass the same batches: the smaller wish counts."""
    wishes = (settings.reader.batch_pages, settings.compressor.batch_pages)
    numbers = [wish for wish in wishes if wish != "auto"]
    if not numbers:
        n_pages = pages_of(_BATCH_BYTES, image.page_size)
        why = f"{show_size(_BATCH_BYTES)} at {image.page_size} bytes a page"
        reasons.say("reader.batch_pages", n_pages, why)
        reasons.say("compressor.batch_pages", n_pages, why)
        return n_pages
    n_pages = min(numbers)
    for key, wish in zip(("reader", "compressor"), wishes, strict=True):
        if wish != n_pages:
            why = "reader and compressor pass the same batches, the smaller counts"
            reasons.say(f"{key}.batch_pages", n_pages, why)
    return n_pages


def _mode(
    settings: Settings,
    machine: MachineFacts,
    image: ImageFacts,
    batch_pages: int,
    reasons: _Reasons,
) -> Mode:
    codec, wanted = settings.compressor.codec, settings.compressor.mode
    if wanted == "processes" and not image.fork_safe:
        fallback: Mode = "threads" if "threads" in MODE_BY_CODEC[codec] else "inline"
        reasons.say("compressor.mode", fallback, "forked workers cannot read this image")
        return fallback
    if wanted != "auto":
        return wanted
    mode, why = _auto_mode(codec, machine, image, batch_pages, settings.compressor.workers)
    reasons.say("compressor.mode", mode, why)
    return mode


def _auto_mode(
    codec: Codec, machine: MachineFacts, image: ImageFacts, batch_pages: int, workers: int | str
) -> tuple[Mode, str]:
    if machine.n_cpus == 1:
        return "inline", f"one CPU ({machine.cpus_why})"
    if workers == 1:
        return "inline", "a single worker gains nothing over none"
    if image.n_pages is not None and image.n_pages <= batch_pages:
        return "inline", f"{image.n_pages} pages are a single batch"
    mode = next(m for m in MODE_BY_CODEC[codec] if m != "processes" or image.fork_safe)
    if mode == "processes":
        return mode, f"fastest for {codec}, and forked workers can read the image"
    return mode, f"best for {codec} where forked workers cannot read the image"


def _workers(
    settings: Settings,
    machine: MachineFacts,
    image: ImageFacts,
    mode: Mode,
    batch_pages: int,
    reasons: _Reasons,
) -> int:
    wanted = settings.compressor.workers
    if mode == "inline":
        reasons.say("compressor.workers", 1, "inline: the main process itself")
        return 1
    workers = min(machine.n_cpus, MAX_AUTO_WORKERS) if wanted == "auto" else wanted
    if wanted == "auto":
        reasons.say(
            "compressor.workers", workers, f"{machine.cpus_why}, {MAX_AUTO_WORKERS} at most"
        )
    if image.n_pages is not None:
        n_batches = max(-(-image.n_pages // batch_pages), 1)
        if workers > n_batches:
            reasons.say("compressor.workers", n_batches, f"{image.n_pages} pages, no more batches")
        workers = min(workers, n_batches)
    return workers


def _level(settings: Settings, reasons: _Reasons) -> int:
    codec, wanted = settings.compressor.codec, settings.compressor.level
    low, high, auto = LEVELS[codec]
    if wanted == "auto":
        why = f"the fastest {codec} has" if high else f"{codec} has no levels"
        reasons.say("compressor.level", auto, why)
        return auto
    level = min(max(wanted, low), high)
    if level != wanted:
        # A level left over from another codec must not cost the dump.
        why = f"{codec} has levels {low} to {high}" if high else f"{codec} has no levels"
        reasons.say("compressor.level", level, f"{wanted} asked for, but {why}")
    return level


def _explain_shrinking(wish: Sizes, sizes: Sizes, budget: int, reasons: _Reasons) -> None:
    why = f"does not fit memory.budget of {show_size(budget)}"
    for name, key in _KEYS.items():
        wanted, got = getattr(wish, name), getattr(sizes, name)
        if got != wanted:
            shown = str(wanted) if name in _COUNTS else show_size(wanted)
            reasons.say(key, got, f"{shown} {why}")
    if wish.batch_pages != sizes.batch_pages:
        reasons.say("reader.batch_pages", sizes.batch_pages, f"{wish.batch_pages} {why}")


_COUNTS: Final = frozenset({"workers", "batch_pages", "filter_workers"})
_KEYS: Final = {
    "workers": "compressor.workers",
    "batch_pages": "compressor.batch_pages",
    "reader_channel": "reader.channel_bytes",
    "filter_channel": "filter.channel_bytes",
    "compressor_channel": "compressor.channel_bytes",
    "writer_channel": "writer.channel_bytes",
    "sink_channel": "sink.channel_bytes",
    "cache": "cache.capacity",
    "ahead": "cache.window",
    "filter_workers": "filter.workers",
    "window": "filter.window_bytes",
    "descriptors": "writer.descriptor_bytes",
}


def _assemble(
    settings: Settings, image: ImageFacts, budget: int, sizes: Sizes, reasons: _Reasons
) -> Resolved:
    compressor = ResolvedCompressor(
        codec=settings.compressor.codec,
        level=_level(settings, reasons),
        workers=sizes.workers,
        mode=sizes.mode,
        batch_pages=sizes.batch_pages,
        channel_bytes=sizes.compressor_channel,
        share_identical=settings.compressor.share_identical,
        slots_per_worker=division.SLOTS_PER_WORKER,
        slot_bytes=sizes.slot_bytes,
    )
    read_ahead = min(2 * sizes.workers * sizes.batch_bytes, _MAX_READ_AHEAD)
    sink = _sink(settings, image, sizes, reasons)
    dump = _dump(settings, image, reasons)
    resolved = Resolved(
        memory_budget=budget,
        reader=ResolvedReader(
            batch_pages=sizes.batch_pages,
            channel_bytes=sizes.reader_channel,
            read_ahead=_size(settings.reader.read_ahead, read_ahead),
            on_read_error=settings.reader.on_read_error,
        ),
        source=settings.source,
        cache=_resolved_cache(settings, image, sizes, reasons),
        filter=ResolvedFilter(sizes.filter_workers, sizes.filter_channel, sizes.window),
        compressor=compressor,
        writer=ResolvedWriter(sizes.writer_channel, sizes.descriptors),
        sink=sink,
        dump=dump,
        run=settings.run,
        net=settings.net,
        s3=settings.s3,
        azure=settings.azure,
        ssh=settings.ssh,
        http=settings.http,
        tcp=settings.tcp,
        reasons=(),
        shares=division.shares(sizes),
    )
    _explain_the_rest(settings, resolved, reasons)
    return replace(resolved, reasons=reasons.all())


def _resolved_cache(
    settings: Settings, image: ImageFacts, sizes: Sizes, reasons: _Reasons
) -> ResolvedCache:
    cache = settings.cache
    block = _slow_block(image, sizes.cache) if image.in_flight else image.page_size
    if cache.block != "auto":
        most = max(sizes.cache // 4, image.page_size)
        block = min(max(1 << (cache.block.bit_length() - 1), image.page_size), most)
    if block != cache.block:
        if cache.block != "auto":
            why = "a power of two, at least a page, at most a quarter of the cache"
        elif image.in_flight:
            why = "a request costs as much as many pages"
        else:
            why = "a page: nothing is waited for"
        reasons.say("cache.block", block, why)
    in_flight = max(image.in_flight, 1)
    if in_flight != cache.in_flight:
        why = "what the line takes" if image.in_flight else "a local file answers at once"
        reasons.say("cache.in_flight", in_flight, why)
    return ResolvedCache(
        enabled=cache.enabled,
        capacity=sizes.cache,
        block=block,
        prefetch=cache.prefetch,
        depth=cache.depth,
        window=sizes.ahead,
        in_flight=in_flight,
    )


def _slow_block(image: ImageFacts, capacity: int) -> int:
    """A power of two, with room for 16 of them in the cache."""
    most = max(min(_SLOW_BLOCK, capacity // 16), image.page_size)
    return 1 << (most.bit_length() - 1)


def _sink(settings: Settings, image: ImageFacts, sizes: Sizes, reasons: _Reasons) -> ResolvedSink:
    fsync = settings.sink.fsync and not image.is_stream
    if fsync != settings.sink.fsync:
        reasons.say("sink.fsync", fsync, "the target is a stream")
    mode = settings.sink.write_mode
    return ResolvedSink(sizes.sink_channel, fsync, "pwrite" if mode == "auto" else mode)


def _dump(settings: Settings, image: ImageFacts, reasons: _Reasons) -> DumpSettings:
    if image.is_stream and not settings.dump.flatten:
        reasons.say("dump.flatten", True, "the target is a stream")
        return replace(settings.dump, flatten=True)
    return settings.dump


_WHY_AUTO: Final = {
    "reader.channel_bytes": "two batches, of page numbers only when workers read for themselves",
    "reader.read_ahead": f"two batches for each worker, {show_size(_MAX_READ_AHEAD)} at most",
    "cache.window": f"5/16 of the budget, {show_size(_AHEAD_BYTES)} at most; none locally",
    "cache.capacity": f"an eighth of the budget, {show_size(_CACHE_BYTES)} at most",
    "filter.channel_bytes": "one window",
    "filter.window_bytes": f"stays in a core's cache: {show_size(_WINDOW_BYTES)} at most",
    "compressor.channel_bytes": "two batches",
    "writer.channel_bytes": "two batches",
    "writer.descriptor_bytes": f"few writes: {show_size(_DESCRIPTOR_BYTES)} at most",
    "sink.channel_bytes": "two batches",
    "sink.write_mode": "positioned writes need no seek and no event loop",
}


def _explain_the_rest(settings: Settings, resolved: Resolved, reasons: _Reasons) -> None:
    """Every value that differs from what was set has a reason; these have the usual one."""
    for key, why in _WHY_AUTO.items():
        section, name = key.split(".")
        wanted = getattr(getattr(settings, section), name)
        got = getattr(getattr(resolved, section), name)
        if wanted != got and not reasons.has(key):
            passes = "a batch passes whatever the capacity"
            reasons.say(key, got, why if wanted == "auto" else passes)
