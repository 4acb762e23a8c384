"""makedumpfile 1.7.8: makes a dump and tells how many pages of each class it left out."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from tests.lab.commands import LabError, run
from tests.lab.tools import makedumpfile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CODEC_OPTIONS = {"none": (), "zlib": ("-c",), "lzo": ("-l",), "zstd": ("-z",)}
REPORT_MESSAGES = "20"  # --message-level: errors (4) and the report (16), no progress line
_COUNT = re.compile(r"^\s*(.+?)\s*: (0x[0-9a-f]+)$", re.MULTILINE)


class PageCounts(NamedTuple):
    """makedumpfile's own report, in pages; `remaining` are the pages in the dump."""

    original: int
    excluded: int
    zero: int
    cache: int
    cache_private: int
    user: int
    free: int
    hwpoison: int
    offline: int
    remaining: int


_LABELS = (
    "Original pages",
    "Excluded pages",
    "Pages filled with zero",
    "Non-private cache pages",
    "Private cache pages",
    "User process data pages",
    "Free pages",
    "Hwpoison pages",
    "Offline pages",
    "Remaining pages",
)


def parse_report(text: str) -> PageCounts:
    """Reads the counts from what makedumpfile printed.

    Raises:
        LabError: a count is missing.
    """
    counts = {label: int(value, 16) for label, value in _COUNT.findall(text)}
    missing = [label for label in _LABELS if label not in counts]
    if missing:
        raise LabError(f"makedumpfile's report has no {missing}:\n{text}")
    return PageCounts._make(counts[label] for label in _LABELS)


def makedumpfile_dump(
    image: Path,
    level: int,
    codec: str,
    out: Path,
    options: Sequence[str] = (),
    timeout_s: float = 600,
) -> PageCounts:
    """Dumps `image` into `out`, overwriting it.

    Args:
        image: what `build.ensure_oracle_image` returned.
        level: the dump level, 0 to 31.
        codec: a key of `CODEC_OPTIONS`; this build has no snappy.
        out: the file to write.
        options: more of makedumpfile's options, such as -E.
        timeout_s: how long it may take.

    Returns:
        What makedumpfile counted, zero pages left out while writing included.
    """
    out.unlink(missing_ok=True)
    words = [*CODEC_OPTIONS[codec], "-d", str(level), "--message-level", REPORT_MESSAGES, *options]
    return parse_report(run([*makedumpfile(), *words, image, out], timeout_s=timeout_s))
