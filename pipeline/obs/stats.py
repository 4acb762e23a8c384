"""``--stats FILE``: one JSON object about the run, complete or absent."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from pipeline.errors import ConfigError
from pipeline.flow.channel import ChannelStats
from pipeline.obs.counters import RunCounters
from pipeline.obs.plain import json_text
from pipeline.obs.rss import PeakMemory
from pipeline.obs.summary import Outcome, keys
from pipeline.obs.version import own_version


def build_stats(
    counters: RunCounters,
    outcome: Outcome,
    memory: PeakMemory,
    settings: Mapping[str, tuple[object, str]],
) -> dict[str, object]:
    """Everything that is known at the end.

    Args:
        counters: of the whole run.
        outcome: where the dump is.
        memory: of all processes.
        settings: value in force and its origin, by dotted key.
    """
    return {
        "version": own_version(),
        **keys(counters, outcome, memory),
        "pages_shared": counters.pages_shared,
        "pages_raw": counters.pages_raw,
        "pages_coded": counters.pages_coded,
        "seconds_by_stage": _rounded(counters.stage_seconds),
        "seconds_by_worker": _rounded({str(k): v for k, v in counters.worker_seconds.items()}),
        "cache": {
            **msgspec.structs.asdict(counters.cache),
            "hit_ratio": round(counters.cache.hit_ratio, 6),
        },
        "channels": [_channel(each) for each in counters.channels],
        "peak_rss_bytes": {
            "main": memory.self_rss,
            "largest_child": memory.children_rss,
            "all_pss": memory.total_pss,
        },
        "settings": {
            key: {"value": value, "origin": origin} for key, (value, origin) in settings.items()
        },
    }


def check_stats_path(path: str, in_use: Iterable[str] = ()) -> None:
    """Refuse a path that cannot be written before the run, not after it.

    Args:
        path: where the object shall be.
        in_use: what the run reads and writes; URLs among them are nobody's path.

    Raises:
        ConfigError: its folder is missing or not writable, it is no regular file, or it is in use.
    """
    target = Path(path)
    if not target.name:
        raise ConfigError("run.stats", repr(path), "is not the name of a file")
    if target.exists() and not target.is_file():
        # The file is replaced as a whole: root would turn /dev/null into one.
        raise ConfigError("run.stats", path, "exists and is not a regular file")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise ConfigError("run.stats", path, "its directory is missing or not writable")
    for other in in_use:
        if _is_same(target, Path(other)):
            raise ConfigError("run.stats", path, f"would replace {other}")


def write_stats(path: str, stats: Mapping[str, object]) -> None:
    """Write `stats` under its name in one step; nothing is left behind by a failure.

    Raises:
        OSError: with the path that could not be written.
    """
    text = json_text(stats)
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("xb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _is_same(one: Path, other: Path) -> bool:
    """By name where there is no file yet."""
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    with contextlib.suppress(OSError):
        return one.samefile(other)
    return False


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: round(spent, 6) for name, spent in seconds.items()}


def _channel(stats: ChannelStats) -> dict[str, object]:
    fill = stats.peak_bytes / stats.capacity_bytes
    return {**msgspec.structs.asdict(stats), "peak_fill": round(fill, 3)}
