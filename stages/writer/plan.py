"""From the result of pass 1 to a writer: the head's contents and where everything will lie."""

from __future__ import annotations

from pipeline.errors import DumpError, UnsupportedError
from pipeline.flow.items import HeadOrder
from pipeline.obs.counters import RunCounters
from pipeline.obs.log import log_event
from stages.arch.select import BIG_ENDIAN
from stages.compressor.codecs import codec_named
from stages.filter.stage import FilterResult
from stages.formats.kdump import (
    MAX_MAPNR,
    UTSNAME_BYTES,
    UTSNAME_FIELD,
    KdumpHead,
    KdumpLayout,
    Status,
)
from stages.reader.image import Image, ImageInfo
from stages.translator.kernel import Kernel
from stages.writer.stage import KdumpWriter


async def plan_kdump(
    image: Image,
    kernel: Kernel | None,
    chosen: FilterResult,
    *,
    codec: str,
    head_order: HeadOrder,
    missing_as_zero: bool,
    descriptor_bytes: int,
    counters: RunCounters,
) -> KdumpWriter:
    """A writer for the pages that pass 1 chose.

    Without a kernel (no VMCOREINFO) the head says what the image itself carries, else zeros: dump
    level 0 and 1 work on anything.

    Raises:
        UnsupportedError: a big-endian or 32-bit machine, whose dumps have fields of its kind; or
            memory so far up that the bitmaps would be larger than any dump.
    """
    info = image.info
    _require_kdump(info, chosen.max_mapnr)
    flag = int(codec_named(codec).flag)
    layout = KdumpLayout(
        block_size=info.page_size,
        max_mapnr=chosen.max_mapnr,
        notes_size=len(info.notes),
        n_dumped=chosen.kept.count(),
        eraseinfo_size=len(info.eraseinfo),
    )
    head = KdumpHead(
        utsname=await _utsname(image, kernel),
        timestamp=_timestamp(image, kernel),
        # What the source has lost is not among the pages that are kept, so nobody counts it.
        status=flag | (Status.INCOMPLETE if info.has_lost_pages else 0),
        block_size=info.page_size,
        max_mapnr=chosen.max_mapnr,
        nr_cpus=info.nr_cpus,
        phys_base=kernel.phys_base if kernel is not None else info.phys_base or 0,
        dump_level=chosen.level,
        notes=info.notes,
        vmcoreinfo=_vmcoreinfo(image),
        eraseinfo=info.eraseinfo,
    )
    return KdumpWriter(
        head=head,
        layout=layout,
        ram=chosen.ram,
        kept=chosen.kept,
        page_flag=flag,
        zero_page=bool(chosen.level & 1) or missing_as_zero,
        head_order=head_order,
        missing_as_zero=missing_as_zero,
        descriptor_bytes=descriptor_bytes,
        counters=counters,
    )


def _require_kdump(info: ImageInfo, max_mapnr: int) -> None:
    bits = 64 if info.elf is None else info.elf[0].bits
    if info.machine in BIG_ENDIAN or bits != 64:
        what = f"big-endian machines ({info.machine})"
        if bits != 64:
            what = f"{bits}-bit machines ({info.machine})"
        raise UnsupportedError(
            f"kdump-compressed dumps of {what} cannot be written; --format elf writes them as ELF"
        )
    if max_mapnr > MAX_MAPNR:
        raise UnsupportedError(
            f"a kdump-compressed dump cannot hold memory up to {max_mapnr * info.page_size:#x}, "
            f"only up to {MAX_MAPNR * info.page_size:#x}; --format elf can"
        )


async def _utsname(image: Image, kernel: Kernel | None) -> bytes:
    """The kernel's own, else the image's, else what little VMCOREINFO tells."""
    if kernel is None:
        return image.info.utsname or bytes(UTSNAME_BYTES)
    try:
        return await kernel.utsname()
    except DumpError as error:
        log_event("utsname_unreadable", "warning", text=str(error))
    if image.info.utsname is not None:
        return image.info.utsname
    machine = image.info.machine
    strings = ("Linux", "", kernel.info.osrelease, "", machine, "")
    return b"".join(
        text.encode("ascii", "replace")[: UTSNAME_FIELD - 1].ljust(UTSNAME_FIELD, b"\0")
        for text in strings
    )


def _timestamp(image: Image, kernel: Kernel | None) -> int:
    if image.info.timestamp is not None:
        return image.info.timestamp
    return (kernel.info.crashtime or 0) if kernel is not None else 0


def _vmcoreinfo(image: Image) -> tuple[int, int] | None:
    info = image.info
    if info.vmcoreinfo is None or info.vmcoreinfo_off is None:
        return None
    return info.vmcoreinfo_off, len(info.vmcoreinfo)
