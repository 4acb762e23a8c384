"""The one thing every run says at its end: a few lines for people, or one event."""

from __future__ import annotations

from typing import TextIO

from msgspec import Struct

from pipeline.memory.sizes import show_count, show_size
from pipeline.obs.counters import RunCounters
from pipeline.obs.log import Format, log_event, shown_format
from pipeline.obs.plain import printable
from pipeline.obs.rss import PeakMemory


class Outcome(Struct, frozen=True):
    """What came of the run.

    Attributes:
        target: where the dump is.
        size_bytes: size of the output as the sink reported it, 0 when unknown: the run ended early,
            and part of what was counted may not have reached the target.
        complete: False for a dump that is usable but not whole.
        only_log: there is no dump at all; `target` has the kernel log.
    """

    target: str
    size_bytes: int
    complete: bool = True
    only_log: bool = False


def report(
    counters: RunCounters, outcome: Outcome, memory: PeakMemory, form: Format, stream: TextIO
) -> None:
    """Write the summary: lines at a terminal, else the event ``dump_finished``."""
    if not (stream.isatty() and shown_format(form, stream) == "console"):
        event = "dump_finished" if outcome.complete else "dump_incomplete"
        log_event(
            event, "info" if outcome.complete else "warning", **keys(counters, outcome, memory)
        )
        return
    text = "".join(f"{line}\n" for line in lines(counters, outcome, memory))
    try:
        stream.write(text)
        stream.flush()
    except (OSError, ValueError):
        return  # the terminal is gone; the dump is not


def keys(counters: RunCounters, outcome: Outcome, memory: PeakMemory) -> dict[str, object]:
    """Keys of the event, units in their names; also the start of ``--stats``."""
    return {
        "target": outcome.target,
        "complete": outcome.complete,
        "only_log": outcome.only_log,
        "pages_in": counters.pages_in,
        "pages_kept": counters.pages_kept,
        "pages_zero": counters.pages_zero,
        "pages_missing": counters.pages_missing,
        "pages_excluded": dict(sorted(counters.excluded.items())),
        "bytes_in": counters.bytes_in,
        "bytes_out": counters.bytes_out,
        "size_bytes": outcome.size_bytes,
        "ratio": _ratio(counters),
        "seconds": round(counters.elapsed_s, 3),
        "seconds_by_phase": {k: round(v, 3) for k, v in counters.phase_seconds.items()},
        "peak_memory_bytes": memory.total,
        "peak_channel_fill": round(counters.peak_channel_fill, 3),
    }


def lines(counters: RunCounters, outcome: Outcome, memory: PeakMemory) -> list[str]:
    """The same for people, most wanted first."""
    size = show_size(outcome.size_bytes or counters.bytes_out)
    most = "" if outcome.complete or outcome.size_bytes else "at most "
    head = "dump" if outcome.complete else "INCOMPLETE dump"
    if outcome.only_log:
        head = "NO DUMP, only the kernel log"
    phases = ", ".join(f"{name} {spent:.1f} s" for name, spent in counters.phase_seconds.items())
    fill = counters.peak_channel_fill
    out = [
        f"{head}: {printable(outcome.target)} ({most}{size})",
        f"pages: {most}{_kept(counters)}",
        f"excluded: {_classes(counters.excluded)}",
        f"time: {counters.elapsed_s:.1f} s{f' ({phases})' if phases else ''}",
        f"memory: {_memory(memory)}, fullest channel {fill * 100:.0f} %",
    ]
    out += _source_lines(counters)
    ratio = _ratio(counters)
    if ratio is not None:
        out[1] += f", 1 byte for every {ratio:.1f} kept"
    if outcome.only_log:
        del out[1:3]
    return out


def _memory(memory: PeakMemory) -> str:
    """Of a run that was too short to be looked at, only the main process is known."""
    where = "" if memory.total_pss is not None else " in the main process"
    return f"{show_size(memory.total)}{where} at most"


def _source_lines(counters: RunCounters) -> list[str]:
    """Of a source that was waited for; local files are not worth a line."""
    cache = counters.cache
    if not cache.source_requests:
        return []
    asked = f"{show_count(cache.source_requests, 'request')}, {show_size(cache.source_bytes)}"
    waits = f"waited {cache.waited_s:.1f} s, about {cache.hidden_s:.1f} s hidden"
    used = f"prefetches used {cache.prefetches_used} of {cache.prefetches}"
    hits = f"cache hits {cache.hit_ratio * 100:.1f} %"
    return [f"source: {asked}; {waits}; {hits}, {used}"]


def _kept(counters: RunCounters) -> str:
    said = f"{counters.pages_kept} of {counters.pages_in} kept, {counters.pages_zero} of them zero"
    if counters.pages_missing:
        said += f", {counters.pages_missing} NOT READABLE"
    return said


def _classes(excluded: dict[str, int]) -> str:
    if not excluded:
        return "none"
    ordered = sorted(excluded.items(), key=lambda item: -item[1])
    return ", ".join(f"{n_pages} {name}" for name, n_pages in ordered)


def _ratio(counters: RunCounters) -> float | None:
    """Bytes of pages kept for each byte put out, None before anything was."""
    if not counters.bytes_out:
        return None
    return round(counters.pages_kept * counters.page_size / counters.bytes_out, 3)
