"""Every setting there is: its type, its bounds and its built-in default, one section a consumer.

``auto`` is a value of its own: `pipeline.config.auto` turns it into a number from what the machine
has. The shipped ``default.toml`` repeats these defaults with the reason beside each.
"""

# No `from __future__ import annotations` here: msgspec reads the annotations at every start, and as
# text it would have to compile each of them first, which is 2 ms of 6.

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from pipeline.config.bounds import size as _size
from pipeline.config.bounds import whole as _whole
from pipeline.config.targets import (
    AzureSettings,
    HttpSettings,
    NetSettings,
    S3Settings,
    SshSettings,
    TargetEntry,
    TcpSettings,
)

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40


def _number(low: float, high: float) -> Meta:
    return Meta(ge=low, le=high, description=f"a number from {low:.9g} to {high:.9g}")


Auto: TypeAlias = Literal["auto"]
Workers: TypeAlias = Annotated[int, _whole(1, 256)]
BatchPages: TypeAlias = Annotated[int, _whole(1, 65536)]
ChannelBytes: TypeAlias = Annotated[int, _size(4 * KIB, 16 * GIB)]

Codec: TypeAlias = Literal["none", "zlib", "lzo", "snappy", "zstd"]
Mode: TypeAlias = Literal["inline", "threads", "processes"]
ReadErrorPolicy: TypeAlias = Literal["zero", "skip", "fail"]
WriteMode: TypeAlias = Literal["pwrite", "aiofiles"]
ProgressMode: TypeAlias = Literal["auto", "bar", "json", "none"]
LogFormat: TypeAlias = Literal["auto", "console", "json"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]


class MemorySettings(Struct, frozen=True, forbid_unknown_fields=True):
    """What the run may use on top of the interpreter and its libraries."""

    budget: Annotated[int, _size(8 * MIB, 1 * TIB)] | Auto = "auto"


class ReaderSettings(Struct, frozen=True, forbid_unknown_fields=True):
    batch_pages: BatchPages | Auto = "auto"
    """Pages that move as one; the smaller of this and `compressor.batch_pages` counts."""
    channel_bytes: ChannelBytes | Auto = "auto"
    """Batches waiting for the compressor."""
    read_ahead: Annotated[int, _size(0, 16 * GIB)] | Auto = "auto"
    """How far ahead of the copy the kernel is told to read; its page cache, not our memory."""
    on_read_error: ReadErrorPolicy = "zero"


class CacheSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Page tables and small structures; bulk reads never come here."""

    enabled: bool = True
    capacity: Annotated[int, _size(64 * KIB, 64 * GIB)] | Auto = "auto"
    block: Annotated[int, _size(4 * KIB, 16 * MIB)] | Auto = "auto"
    """What one miss reads; rounded to a power of two pages."""
    prefetch: bool = True
    """Read what the page walk will want next; only over a line that is slow."""
    depth: Annotated[int, _whole(1, 64)] = 8
    """Blocks that a recognised stride is followed ahead, and hints waiting for each request."""
    window: Annotated[int, _size(256 * KIB, 16 * GIB)] | Auto = "auto"
    """Most bytes read ahead of their use, whatever latency and bandwidth would allow."""
    in_flight: Annotated[int, _whole(1, 4096)] | Auto = "auto"
    """Requests under way at once."""


class LatencySettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Makes a local source slow, for tests and measurements."""

    per_request_ms: Annotated[float, _number(0, 60_000)] = 0.0
    jitter_ms: Annotated[float, _number(0, 60_000)] = 0.0
    """Up to this much more, at random."""
    bandwidth_mib_s: Annotated[float, _number(0, 1 << 20)] = 0.0
    """Of all requests together; 0 is no limit."""

    @property
    def is_on(self) -> bool:
        return bool(self.per_request_ms or self.jitter_ms or self.bandwidth_mib_s)


class SourceSettings(Struct, frozen=True, forbid_unknown_fields=True):
    latency: LatencySettings = LatencySettings()


class FilterSettings(Struct, frozen=True, forbid_unknown_fields=True):
    workers: Workers | Auto = "auto"
    channel_bytes: ChannelBytes | Auto = "auto"
    """Struct pages read ahead of the classification."""
    window_bytes: Annotated[int, _size(64 * KIB, 1 * GIB)] | Auto = "auto"
    """Struct pages classified at once."""


class CompressorSettings(Struct, frozen=True, forbid_unknown_fields=True):
    codec: Codec = "zstd"
    level: Annotated[int, _whole(0, 22)] | Auto = "auto"
    workers: Workers | Auto = "auto"
    mode: Mode | Auto = "auto"
    batch_pages: BatchPages | Auto = "auto"
    channel_bytes: ChannelBytes | Auto = "auto"
    """Encoded batches waiting for the writer."""
    share_identical: bool | Auto = "auto"
    """Identical pages of a batch share their bytes."""


class WriterSettings(Struct, frozen=True, forbid_unknown_fields=True):
    channel_bytes: ChannelBytes | Auto = "auto"
    """Pieces of the output waiting for the sink."""
    descriptor_bytes: Annotated[int, _size(4 * KIB, 64 * MIB)] | Auto = "auto"
    """Page descriptors gathered before they are written; files get theirs with the pages."""


class SinkSettings(Struct, frozen=True, forbid_unknown_fields=True):
    channel_bytes: ChannelBytes | Auto = "auto"
    """Bytes the sink itself may have under way (parts, unanswered writes)."""
    fsync: bool = True
    write_mode: WriteMode | Auto = "auto"


class DumpSettings(Struct, frozen=True, forbid_unknown_fields=True):
    level: Annotated[int, _whole(0, 31)] = 31
    """makedumpfile's five bits: 1 zero, 2 cache, 4 cache private, 8 user, 16 free."""
    format: Literal["kdump", "elf"] = "kdump"
    flatten: bool = False
    overwrite: bool = False


class RunSettings(Struct, frozen=True, forbid_unknown_fields=True):
    progress: ProgressMode = "auto"
    log_format: LogFormat = "auto"
    log_level: LogLevel = "info"
    stats: str | None = None
    """Path of the JSON file that describes the run; none is written without it."""


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """All sections; an instance without arguments is the built-in defaults."""

    memory: MemorySettings = MemorySettings()
    reader: ReaderSettings = ReaderSettings()
    source: SourceSettings = SourceSettings()
    cache: CacheSettings = CacheSettings()
    filter: FilterSettings = FilterSettings()
    compressor: CompressorSettings = CompressorSettings()
    writer: WriterSettings = WriterSettings()
    sink: SinkSettings = SinkSettings()
    dump: DumpSettings = DumpSettings()
    run: RunSettings = RunSettings()
    net: NetSettings = NetSettings()
    s3: S3Settings = S3Settings()
    azure: AzureSettings = AzureSettings()
    ssh: SshSettings = SshSettings()
    http: HttpSettings = HttpSettings()
    tcp: TcpSettings = TcpSettings()
    targets: tuple[TargetEntry, ...] = ()
    """``[[targets]]``: where the dump goes, one after the other, when TARGET can't take it."""


NETWORK_SECTIONS = ("net", "s3", "azure", "ssh", "http", "tcp")
"""Sections that only targets with a URL read; documented in docs/targets.md."""
