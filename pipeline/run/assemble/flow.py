"""Pass 2: workers, and the stages that copy, with the channels between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pipeline.run.assemble.first_pass import need_kernel

if TYPE_CHECKING:
    from pipeline.config.request import DumpRequest
    from pipeline.config.resolved import Resolved
    from pipeline.flow.items import HeadOrder
    from pipeline.flow.protocols import Sink, Stage
    from pipeline.obs.counters import RunCounters
    from pipeline.run.runner import Flow
    from stages.compressor.pool import EncoderPool
    from stages.compressor.slots import SlotArena
    from stages.filter.stage import FilterResult
    from stages.reader.image import Image
    from stages.sink.journal import Journal
    from stages.translator.kernel import Kernel

_HOLE_PAGES: Final = 65536
"""Pages of a batch that is all hole: 1.5 MiB of descriptors, no data."""
_MIN_SPARE_SLOTS: Final = 2
"""Slots beyond the workers' own: one being written, one waiting for its turn."""
_LOG_CHANNEL_BYTES: Final = 8 << 20


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

        return await plan_elf(
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


def encrypted(flow: Flow, request: DumpRequest, journal: Journal | None) -> Flow:
    """`flow` with a stage before the sink that encrypts to the request's keys."""
    from msgspec.structs import replace

    from pipeline.flow.channel import Channel
    from stages.crypt.dump_key import make_dump_key
    from stages.crypt.stage import EncryptStage

    stage = EncryptStage(make_dump_key(request.encrypt_to, journal))
    channel: Channel[Any] = Channel("encrypt", flow.channels[-1].stats.capacity_bytes)
    return replace(flow, stages=[*flow.stages, stage], channels=[*flow.channels, channel])


async def make_log_flow(image: Image, sink: Sink[Any]) -> Flow:
    """The kernel log straight to `sink`.

    Raises:
        MissingInfoError: no VMCOREINFO, so no log.
    """
    from pipeline.flow.channel import Channel
    from pipeline.run.runner import Flow
    from stages.writer.log_source import LogSource

    source = LogSource(await need_kernel(image))
    return Flow(source, [], sink, [Channel("log", _LOG_CHANNEL_BYTES)])
