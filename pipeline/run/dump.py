"""One dump from beginning to end: settings, workers, pass 1, pass 2, commit, books, summary."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field
from msgspec.structs import replace

from pipeline.errors import (
    EXIT_DONE,
    IncompleteDumpError,
    OnlyLogError,
    PageCountError,
    full_text,
)
from pipeline.flow.items import HeadOrder, Receipt
from pipeline.memory.sizes import show_count
from pipeline.obs.counters import RunCounters
from pipeline.obs.log import log_event
from pipeline.obs.rss import MemorySampler
from pipeline.run import assemble

if TYPE_CHECKING:
    from pipeline.config.layers import LoadedSettings
    from pipeline.config.request import DumpRequest
    from pipeline.config.resolved import Resolved
    from pipeline.config.targets import TargetEntry
    from pipeline.flow.protocols import Sink
    from pipeline.obs.rss import PeakMemory
    from pipeline.obs.summary import Outcome
    from stages.compressor.pool import EncoderPool
    from stages.compressor.slots import SlotArena
    from stages.filter.stage import FilterResult
    from stages.reader.image import Image
    from stages.sink.journal import Journal


def _now() -> str:
    """RFC 3339, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class _Run(Struct):
    """Everything of one run that outlives a phase."""

    request: DumpRequest
    loaded: LoadedSettings
    resolved: Resolved
    image: Image
    level: int
    pool: EncoderPool
    arena: SlotArena
    counters: RunCounters
    sampler: MemorySampler = field(default_factory=MemorySampler)
    started: str = field(default_factory=_now)
    only_log: bool = False
    """No target took a dump; the last one has the kernel log."""
    left_behind: list[str] = field(default_factory=list)
    """Usable dumps, most of them incomplete, that attempts left which failed."""

    def leave(self, where: str | None) -> None:
        """Remember what an attempt left, if it left anything."""
        if where is not None and where not in self.left_behind:
            self.left_behind.append(where)


def run_dump(request: DumpRequest, loaded: LoadedSettings) -> int:
    """Make a dump; returns the process's exit code.

    Raises:
        IncompleteDumpError: the dump lacks pages, or the run ended early and left some of it.
        DumpError: what ended the run, when nothing usable was left.
    """
    from pipeline.config.auto import resolve
    from pipeline.config.machine import read_machine

    assemble.check_request(request, loaded)
    assemble.check_standard_output(request)
    counters = RunCounters()
    counters.begin_phase("open")
    with assemble.opened_source(request.source, loaded.settings) as image:
        facts = assemble.image_facts(image, request, loaded.settings)
        resolved = resolve(loaded.settings, read_machine(), facts)
        counters.page_size = image.info.page_size
        level = resolved.dump.level | image.info.dump_level
        pool, arena = assemble.make_pool(image, resolved, level)
        run = _Run(request, loaded, resolved, image, level, pool, arena, counters)
        with pool:  # forks, if it does, before there is any thread
            return _guarded(run)


def _guarded(run: _Run) -> int:
    import anyio

    try:
        receipt = anyio.run(_watched, run)
    except Exception as error:
        if not run.left_behind:
            raise
        left = ", ".join(run.left_behind)
        _report(run, Receipt(left, 0), complete=False)
        raise IncompleteDumpError(full_text(error), left) from error
    if run.only_log:
        left = ", ".join(run.left_behind)
        # An incomplete dump is worth more than the log, and what was counted is about it.
        _report(run, Receipt(left, 0) if left else receipt, complete=False, only_log=not left)
        raise OnlyLogError(receipt.target, left)
    reason = _what_is_missing(run)
    _report(run, receipt, complete=reason is None)
    if reason is not None:
        raise IncompleteDumpError(reason, receipt.target)
    return EXIT_DONE


def _what_is_missing(run: _Run) -> str | None:
    """Why a dump that was written to its end is not whole."""
    source, n_missing = run.request.source, run.counters.pages_missing
    if n_missing:
        return f"{show_count(n_missing, 'page')} of {source} could not be read"
    if run.image.info.has_lost_pages:
        return f"{source} has lost pages itself"  # opened_source adds why
    return None


async def _watched(run: _Run) -> Receipt:
    from pipeline.obs.progress import Progress
    from pipeline.run.runner import run_watched

    async def job() -> Receipt:
        return await _dump(run)

    progress = Progress(run.counters, run.resolved.run.progress, sys.stderr)
    return await run_watched(job, [progress.run, run.sampler.watch])


async def _dump(run: _Run) -> Receipt:
    """To the target, or to the first of the configured ones that takes it."""
    others = run.loaded.settings.targets
    if not others and "://" not in run.request.target:
        return await _attempt(run)
    return await assemble.deliver(
        run.request.target, others, run.loaded.settings, lambda entry: _attempt_at(run, entry)
    )


async def _attempt_at(run: _Run, entry: TargetEntry) -> Receipt:
    if entry.url != run.request.target:
        # The rest of a request is about its own target: a journal, and those beside it.
        run.request = replace(run.request, target=entry.url, also=(), journal=None)
    run.counters.channels.clear()  # those of an attempt that failed
    if entry.what == "dmesg":
        return await _save_log(run)
    return await _attempt(run)


async def _save_log(run: _Run) -> Receipt:
    """The kernel log alone; the run is not a dump, and says so with its exit code."""
    from pipeline.run.runner import run_flow

    if not run.left_behind:
        run.counters.forget_copy()
    sink = assemble.make_sink(run.request, run.resolved, run.loaded.settings, only_log=True)
    await sink.open()
    try:
        flow = await assemble.make_log_flow(run.image, sink)
        if run.request.encrypt_to:
            flow = assemble.encrypted(flow, run.request, None)
        assemble.describe_run(sink, run.image, _settings_in_force(run), run.counters, run.started)
        receipt = await run_flow(flow)
        await sink.commit()
    except BaseException:
        await sink.abort()
        raise
    run.only_log = True
    return receipt


async def _attempt(run: _Run) -> Receipt:
    journal = assemble.make_journal(run.request, run.resolved, run.loaded)
    sink = assemble.make_sink(run.request, run.resolved, run.loaded.settings, journal)
    await sink.open()
    try:
        receipt = await _both_passes(run, sink, journal)
        await sink.commit()
    except BaseException:
        run.leave(await sink.abort())
        raise
    return assemble.final_receipt(sink, receipt)


async def _both_passes(run: _Run, sink: Sink[Any], journal: Journal | None) -> Receipt:
    from pipeline.run.runner import run_flow

    counters, image = run.counters, run.image
    counters.begin_phase("filter", image.saved.n_pages)
    cache = assemble.make_cache(image, run.resolved)
    kernel = await assemble.find_kernel(image, cache, run.level)
    chosen = await assemble.filter_pages(image, kernel, run.level, run.resolved, counters)
    counters.pages_in = chosen.ram.count()
    if image.info.incomplete:
        log_event("source_incomplete", "warning", text=image.info.incomplete)
    counters.begin_phase("copy", chosen.kept.count())
    # A head that is encrypted twice gives its key stream away: it goes out once, last.
    order = HeadOrder.LAST if run.request.encrypt_to else sink.head_order
    flow = await assemble.make_flow(
        image, kernel, chosen, run.pool, run.arena, order, sink, run.resolved, counters
    )
    if run.request.encrypt_to:
        flow = assemble.encrypted(flow, run.request, journal)
        counters.channels.append(flow.channels[-1].stats)
    assemble.describe_run(sink, image, _settings_in_force(run), counters, run.started)
    receipt = await run_flow(flow)
    counters.end_phase()
    counters.add_stage_seconds("compressor", run.pool.worker_seconds())
    counters.add_stage_seconds("sync", receipt.seconds_syncing)
    assemble.book_cache(image, cache, counters)
    _check_books(counters, chosen)
    return receipt


def _settings_in_force(run: _Run) -> dict[str, Any]:
    from pipeline.config.show_plan import settings_in_force

    in_force = settings_in_force(run.resolved, run.loaded)
    return {key: value for key, (value, _) in in_force.items()}


def _check_books(counters: RunCounters, chosen: FilterResult) -> None:
    """Pages in == kept + excluded + missing; anything else is a defect, and must not be hidden."""
    n_in = counters.pages_in
    accounted = counters.pages_kept + counters.pages_excluded + chosen.n_missing
    if n_in != accounted:
        raise PageCountError(
            f"{n_in} pages in, but {counters.pages_kept} kept + {counters.pages_excluded} excluded "
            f"+ {chosen.n_missing} not in the image = {accounted}"
        )


def _report(run: _Run, receipt: Receipt, *, complete: bool, only_log: bool = False) -> None:
    from pipeline.obs.summary import Outcome, report

    run.counters.end_phase()
    outcome = Outcome(receipt.target, receipt.n_bytes, complete, only_log)
    stats = run.resolved.run.stats
    if stats is not None:
        run.sampler.sample_if_none()
    memory = run.sampler.peak()
    if stats is not None:
        _write_stats(run, stats, outcome, memory)
    report(run.counters, outcome, memory, run.resolved.run.log_format, sys.stderr)


def _write_stats(run: _Run, path: str, outcome: Outcome, memory: PeakMemory) -> None:
    """A dump without its statistics is still a dump: what goes wrong here is told, no more."""
    from pipeline.config.show_plan import settings_in_force
    from pipeline.obs.stats import build_stats, write_stats

    settings = settings_in_force(run.resolved, run.loaded)
    try:
        write_stats(path, build_stats(run.counters, outcome, memory, settings))
    except OSError as error:
        log_event("stats_not_written", "error", path=path, text=full_text(error))
