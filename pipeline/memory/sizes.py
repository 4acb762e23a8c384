"""Sizes and counts as people write them: ``64MiB``, ``1.5G``, plain bytes; ``1 page``."""

from __future__ import annotations

import re
from typing import Final

_UNITS: Final = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
_SIZE = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgtp]?)(?:i?b)?\s*$", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes in `text`; units are powers of 1024 whether spelt K, KB or KiB.

    Raises:
        ValueError: not a size.
    """
    found = _SIZE.match(text)
    if found is None:
        raise ValueError(f"{text!r} is not a size such as 64MiB")
    number, unit = found.groups()
    return int(float(number) * (1 << _UNITS[unit.lower()]))


def show_count(n: int, noun: str) -> str:
    """`n` and what there are so many of; `noun` is the singular, and takes an s."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def show_size(n_bytes: float) -> str:
    """`n_bytes` with one decimal in the largest unit that keeps it at 1 or more."""
    value = float(n_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
