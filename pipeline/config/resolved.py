"""Settings without `auto`: what a run really uses, why, and what each consumer may hold.

Sections and fields are named as in `pipeline.config.settings`, so a dotted key means the same in
both; what only exists after resolving (slots) stands at the end of its section.
"""

from __future__ import annotations

from msgspec import Struct

from pipeline.config.settings import (
    Codec,
    DumpSettings,
    Mode,
    ReadErrorPolicy,
    RunSettings,
    SourceSettings,
    WriteMode,
)
from pipeline.config.targets import (
    AzureSettings,
    HttpSettings,
    NetSettings,
    S3Settings,
    SshSettings,
    TcpSettings,
)


class MachineFacts(Struct, frozen=True):
    """What the process may use.

    Attributes:
        n_cpus: at least 1.
        cpus_why: where the number comes from, for people.
        available_bytes: memory that can be had without swapping, None when nobody says.
        memory_why: where that comes from.
    """

    n_cpus: int
    cpus_why: str
    available_bytes: int | None
    memory_why: str


class ImageFacts(Struct, frozen=True):
    """What the source and the target allow.

    Attributes:
        page_size: bytes.
        fork_safe: a forked worker may read the image by itself.
        n_pages: pages that may be copied at most, None when not known yet.
        max_mapnr: bits in each bitmap, None when not known yet.
        is_stream: the target takes bytes in order only.
        in_flight: requests under way at once over the line that the image comes by, 0 for a local
            file, which is not waited for.
        schemes: of the targets that are written to at once, empty for a path or standard output.
        next_schemes: of those that are tried alone when these fail.
        encrypts: the dump is encrypted on its way.
    """

    page_size: int = 4096
    fork_safe: bool = False
    n_pages: int | None = None
    max_mapnr: int | None = None
    is_stream: bool = False
    in_flight: int = 0
    schemes: tuple[str, ...] = ("",)
    next_schemes: tuple[str, ...] = ()
    encrypts: bool = False

    @property
    def most_bytes(self) -> int:
        """Of page data, 0 when that is not known."""
        return (self.n_pages or 0) * self.page_size


class ResolvedReader(Struct, frozen=True):
    batch_pages: int
    channel_bytes: int
    read_ahead: int
    on_read_error: ReadErrorPolicy


class ResolvedCache(Struct, frozen=True):
    enabled: bool
    capacity: int
    block: int
    prefetch: bool
    depth: int
    window: int
    in_flight: int


class ResolvedFilter(Struct, frozen=True):
    workers: int
    channel_bytes: int
    window_bytes: int


class ResolvedCompressor(Struct, frozen=True):
    """`mode` inline: no worker is started and `workers` is 1, the main process itself.

    Attributes:
        slots_per_worker: output buffers of each worker.
        slot_bytes: size of one; holds a batch that does not compress at all.
    """

    codec: Codec
    level: int
    workers: int
    mode: Mode
    batch_pages: int
    channel_bytes: int
    share_identical: bool
    slots_per_worker: int
    slot_bytes: int


class ResolvedWriter(Struct, frozen=True):
    channel_bytes: int
    descriptor_bytes: int


class ResolvedSink(Struct, frozen=True):
    channel_bytes: int
    fsync: bool
    write_mode: WriteMode


class Reason(Struct, frozen=True):
    """Why `setting` (dotted key) has `value`."""

    setting: str
    value: bool | int | str
    why: str


class MemoryShare(Struct, frozen=True):
    """What one consumer may hold at its peak.

    Attributes:
        counted: part of `memory.budget`; False for the interpreter and its libraries.
    """

    consumer: str
    n_bytes: int
    counted: bool = True


class Resolved(Struct, frozen=True):
    """`dump.flatten` is final here: a target that is a stream turns it on."""

    memory_budget: int
    reader: ResolvedReader
    source: SourceSettings
    cache: ResolvedCache
    filter: ResolvedFilter
    compressor: ResolvedCompressor
    writer: ResolvedWriter
    sink: ResolvedSink
    dump: DumpSettings
    run: RunSettings
    net: NetSettings
    s3: S3Settings
    azure: AzureSettings
    ssh: SshSettings
    http: HttpSettings
    tcp: TcpSettings
    reasons: tuple[Reason, ...]
    shares: tuple[MemoryShare, ...]

    @property
    def counted_bytes(self) -> int:
        """Sum of the shares inside the budget; never above `memory_budget`."""
        return sum(share.n_bytes for share in self.shares if share.counted)
