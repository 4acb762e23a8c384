"""What can go wrong between the two ends of the dump protocol."""

from __future__ import annotations

from typing import Final

import anyio

from pipeline.errors import DumpError

LOST: Final = (
    OSError,
    anyio.EndOfStream,
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
)
"""What a byte stream raises when the connection is gone."""


class ProtocolError(DumpError):
    """The other end broke the rules.

    Args:
        text: what was seen, in one line.
        corrupt: a checksum was wrong: the line is to blame, and another connection may do better.
    """

    def __init__(self, text: str, *, corrupt: bool = False) -> None:
        self.corrupt = corrupt
        super().__init__(text)


class RefusedError(DumpError):
    """The receiver does not take what it was offered.

    Args:
        text: why, in one line, without secrets.
        retry: the same may work later, on another connection.
    """

    def __init__(self, text: str, *, retry: bool = False) -> None:
        self.retry = retry
        super().__init__(text)
