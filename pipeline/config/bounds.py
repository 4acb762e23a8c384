"""Bounds of settings as annotations: what msgspec checks, and how errors put it into words."""

from __future__ import annotations

from msgspec import Meta

from pipeline.memory.sizes import show_size

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40


def whole(low: int, high: int) -> Meta:
    """A whole number, both bounds included."""
    return Meta(ge=low, le=high, description=f"a whole number from {low} to {high}")


def seconds(low: float, high: float) -> Meta:
    """A duration; fractions are allowed."""
    return Meta(ge=low, le=high, description=f"seconds from {low:g} to {high:g}")


def size(low: int, high: int) -> Meta:
    """A number of bytes, which may be spelt ``64MiB``."""
    example = f"{min(64 * MIB, high) // MIB}MiB"
    said = f"a size from {show_size(low)} to {show_size(high)} (such as {example})"
    return Meta(ge=low, le=high, description=said, extra={"size": True})
