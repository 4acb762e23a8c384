"""Resolves every ``auto`` from facts, without looking at the machine itself.

`resolve` is pure: the same settings and facts give the same result, so `dumpstream plan` shows what
`dumpstream dump` does. A setting that cannot be had (processes over an image that must not be
forked, more than the memory holds) is replaced, with a reason; it never fails the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from pipeline.config import budget as division
from pipeline.config.budget import Sizes
from pipeline.config.explain import explain_shrinking, explain_targets, explain_the_rest
from pipeline.config.reasons import Reasons
from pipeline.config.resolved import (
    ImageFacts,
    MachineFacts,
    Resolved,
    ResolvedCache,
    ResolvedCompressor,
    ResolvedFilter,
    ResolvedReader,
    ResolvedSink,
    ResolvedWriter,
)
from pipeline.config.settings import KIB, MIB, DumpSettings, Settings
from pipeline.config.target_buffers import TargetBuffer, fit_targets, most_demanding
from pipeline.config.wishes import MAX_READ_AHEAD, make_wish, size_or
from pipeline.config.workers import (
    LEVELS,
    MAX_AUTO_WORKERS,
    MODE_BY_CODEC,
    choose_level,
    choose_sharing,
)
from pipeline.memory.sizes import show_size

__all__ = ["LEVELS", "MAX_AUTO_WORKERS", "MODE_BY_CODEC", "resolve"]

_AUTO_BUDGET: Final = 64 * MIB
_SLOW_BLOCK: Final = 64 * KIB


def resolve(settings: Settings, machine: MachineFacts, image: ImageFacts) -> Resolved:
    """What will run, why, and what each consumer may hold."""
    reasons = Reasons()
    settings = _fit_format(settings, reasons)
    targets = most_demanding(settings, image)
    budget = _budget(settings, machine, image, targets, reasons)
    # Shares of the budget are shares of what targets do not need in any case.
    own = budget - division.least_budget(image, targets) + division.MIN_BUDGET
    wish = make_wish(settings, machine, image, own, targets, reasons)
    sizes = division.fit(wish, budget)
    if sizes.workers == 1 and sizes.mode != "inline" and settings.compressor.mode == "auto":
        inline = replace(settings, compressor=replace(settings.compressor, mode="inline"))
        wish = make_wish(inline, machine, image, own, targets, reasons)
        sizes = division.fit(wish, budget)
        why = f"memory.budget of {show_size(budget)} holds one worker, which gains nothing"
        reasons.say("compressor.mode", "inline", why)
    explain_shrinking(wish, sizes, budget, reasons)
    fitting = fit_targets(settings, image, sizes.targets)
    explain_targets(settings, fitting, budget, reasons)
    return _assemble(fitting, image, budget, sizes, reasons)


def _fit_format(settings: Settings, reasons: Reasons) -> Settings:
    """ELF pages are stored as they are, each in its own place."""
    if settings.dump.format != "elf" or settings.compressor.codec == "none":
        return settings
    reasons.say("compressor.codec", "none", "ELF dumps hold no compressed pages")
    compressor = replace(settings.compressor, codec="none", level="auto")
    return replace(settings, compressor=compressor)


def _budget(
    settings: Settings,
    machine: MachineFacts,
    image: ImageFacts,
    targets: Sequence[TargetBuffer],
    reasons: Reasons,
) -> int:
    buffers = sum(each.total for each in targets)
    budget = _available_budget(settings, machine, _AUTO_BUDGET + buffers, reasons)
    least = division.least_budget(image, targets)
    if budget < least:
        why = f"{show_size(budget)} would do, but targets and what feeds them need this much"
        reasons.say("memory.budget", least, why)
    return max(budget, least)


def _available_budget(
    settings: Settings, machine: MachineFacts, most_auto: int, reasons: Reasons
) -> int:
    wanted = settings.memory.budget
    available = machine.available_bytes
    if available is None:
        budget = most_auto if wanted == "auto" else wanted
        reasons.say("memory.budget", budget, machine.memory_why)
        return budget
    if wanted == "auto":
        budget = max(min(available // 4, most_auto), division.MIN_BUDGET)
        why = f"a quarter of {show_size(available)} ({machine.memory_why})"
        why += f", between {show_size(division.MIN_BUDGET)} and {show_size(most_auto)}"
        reasons.say("memory.budget", budget, why)
        return budget
    # More than there is would end in the out-of-memory killer, and so without a dump.
    most = max(available * 3 // 4, division.MIN_BUDGET)
    if wanted > most:
        why = f"{show_size(wanted)} asked for, three quarters of what {machine.memory_why} gives"
        reasons.say("memory.budget", most, why)
    return min(wanted, most)


def _assemble(
    settings: Settings, image: ImageFacts, budget: int, sizes: Sizes, reasons: Reasons
) -> Resolved:
    compressor = ResolvedCompressor(
        codec=settings.compressor.codec,
        level=choose_level(settings, reasons),
        workers=sizes.workers,
        mode=sizes.mode,
        batch_pages=sizes.batch_pages,
        channel_bytes=sizes.compressor_channel,
        share_identical=choose_sharing(settings, reasons),
        slots_per_worker=division.SLOTS_PER_WORKER,
        slot_bytes=sizes.slot_bytes,
    )
    read_ahead = min(2 * sizes.workers * sizes.batch_bytes, MAX_READ_AHEAD)
    sink = _sink(settings, image, sizes, reasons)
    dump = _dump(settings, image, reasons)
    resolved = Resolved(
        memory_budget=budget,
        reader=ResolvedReader(
            batch_pages=sizes.batch_pages,
            channel_bytes=sizes.reader_channel,
            read_ahead=size_or(settings.reader.read_ahead, read_ahead),
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
    explain_the_rest(settings, resolved, reasons)
    return replace(resolved, reasons=reasons.all())


def _resolved_cache(
    settings: Settings, image: ImageFacts, sizes: Sizes, reasons: Reasons
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


def _sink(settings: Settings, image: ImageFacts, sizes: Sizes, reasons: Reasons) -> ResolvedSink:
    fsync = settings.sink.fsync and not image.is_stream
    if fsync != settings.sink.fsync:
        reasons.say("sink.fsync", fsync, "the target is a stream")
    mode = settings.sink.write_mode
    return ResolvedSink(sizes.sink_channel, fsync, "pwrite" if mode == "auto" else mode)


def _dump(settings: Settings, image: ImageFacts, reasons: Reasons) -> DumpSettings:
    if image.is_stream and not settings.dump.flatten:
        reasons.say("dump.flatten", True, "the target is a stream")
        return replace(settings.dump, flatten=True)
    return settings.dump
