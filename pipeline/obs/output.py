"""Standard output that takes nothing: who is told, and how."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipeline.errors import ClosedOutputError, SinkError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def printing() -> Iterator[None]:
    """Around what writes to standard output, and to nothing else.

    Raises:
        ClosedOutputError: its reader went away.
        SinkError: it takes nothing for another reason, such as a full device.
    """
    try:
        yield
    except BrokenPipeError as error:
        raise ClosedOutputError("standard output was closed by its reader") from error
    except OSError as error:
        raise SinkError(f"standard output: {error.strerror or error}") from error
