"""What is logged during a test."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.obs.log import configure_log


@contextmanager
def captured_log() -> Iterator[io.StringIO]:
    """Events as JSON lines, from the lowest level on."""
    stream = io.StringIO()
    configure_log("json", "debug", stream)
    try:
        yield stream
    finally:
        configure_log()
