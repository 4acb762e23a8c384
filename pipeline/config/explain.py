"""Puts into words why `auto`, and what does not fit the budget, became what it is."""

from __future__ import annotations

from typing import Final

from pipeline.config.budget import Sizes
from pipeline.config.reasons import Reasons
from pipeline.config.resolved import Resolved
from pipeline.config.settings import Settings
from pipeline.config.wishes import (
    AHEAD_BYTES,
    CACHE_BYTES,
    DESCRIPTOR_BYTES,
    MAX_READ_AHEAD,
    WINDOW_BYTES,
)
from pipeline.memory.sizes import show_size

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
_TARGET_KEYS: Final = (
    "s3.buffer_bytes",
    "azure.buffer_bytes",
    "http.buffer_bytes",
    "http.piece_bytes",
    "ssh.window_bytes",
    "tcp.window_bytes",
)
_WHY_AUTO: Final = {
    "reader.channel_bytes": "two batches, of page numbers only when workers read for themselves",
    "reader.read_ahead": f"two batches for each worker, {show_size(MAX_READ_AHEAD)} at most",
    "cache.window": f"5/16 of the budget, {show_size(AHEAD_BYTES)} at most; none locally",
    "cache.capacity": f"an eighth of the budget, {show_size(CACHE_BYTES)} at most",
    "filter.channel_bytes": "one window",
    "filter.window_bytes": f"stays in a core's cache: {show_size(WINDOW_BYTES)} at most",
    "compressor.channel_bytes": "two batches",
    "writer.channel_bytes": "two batches",
    "writer.descriptor_bytes": f"few writes: {show_size(DESCRIPTOR_BYTES)} at most",
    "sink.channel_bytes": "two batches",
    "sink.write_mode": "positioned writes need no seek and no event loop",
}


def explain_shrinking(wish: Sizes, sizes: Sizes, budget: int, reasons: Reasons) -> None:
    why = f"does not fit memory.budget of {show_size(budget)}"
    for name, key in _KEYS.items():
        wanted, got = getattr(wish, name), getattr(sizes, name)
        if got != wanted:
            shown = str(wanted) if name in _COUNTS else show_size(wanted)
            reasons.say(key, got, f"{shown} {why}")
    if wish.batch_pages != sizes.batch_pages:
        reasons.say("reader.batch_pages", sizes.batch_pages, f"{wish.batch_pages} {why}")


def explain_targets(settings: Settings, fitting: Settings, budget: int, reasons: Reasons) -> None:
    """Buffers of targets that became smaller, or larger because the dump's parts are large."""
    for key in _TARGET_KEYS:
        section, name = key.split(".")
        wanted = getattr(getattr(settings, section), name)
        got = getattr(getattr(fitting, section), name)
        if got < wanted:
            why = f"{show_size(wanted)} does not fit memory.budget of {show_size(budget)}"
            if key == "http.piece_bytes":
                why = "five pieces may be open at once, and fit http.buffer_bytes"
            reasons.say(key, got, why)
        elif got > wanted:
            reasons.say(
                key, got, "five parts may be open at once, and so large a dump has large ones"
            )


def explain_the_rest(settings: Settings, resolved: Resolved, reasons: Reasons) -> None:
    """Every value that differs from what was set has a reason; these have the usual one."""
    for key, why in _WHY_AUTO.items():
        section, name = key.split(".")
        wanted = getattr(getattr(settings, section), name)
        got = getattr(getattr(resolved, section), name)
        if wanted != got and not reasons.has(key):
            passes = "a batch passes whatever the capacity"
            reasons.say(key, got, why if wanted == "auto" else passes)
