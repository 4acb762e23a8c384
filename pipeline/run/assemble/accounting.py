"""What is written down about a run: journal, manifest, counters of the cache."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pipeline.config.layers import LoadedSettings
    from pipeline.config.request import DumpRequest
    from pipeline.config.resolved import Resolved
    from pipeline.flow.protocols import Sink
    from pipeline.obs.counters import RunCounters
    from stages.cache.blocks import BlockCache
    from stages.cache.pages import PageCache
    from stages.reader.image import Image
    from stages.sink.journal import Journal

_ENCRYPT_TO: Final = "encrypt_to"


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
        "http.piece_bytes": resolved.http.piece_bytes,
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
