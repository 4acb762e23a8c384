"""Where the chunks of a dump may lie: the sender's promises, held to before anything is written.

A dump is a head, then bitmaps and descriptors up to `data_start`, then data. The latter two only
grow; the head may come twice, as a whole. Small gaps (alignment) below the data read as zeros.
"""

from __future__ import annotations

from typing import Final

from pipeline.flow.items import ChunkKind
from stages.transport.errors import ProtocolError

MAX_HEAD: Final = 16 << 20
"""Notes of 40,000 CPUs; it is kept in memory until the end."""
MAX_GAP: Final = 1 << 20


class Cursors:
    """Ends of the three runs of bytes."""

    def __init__(self, data_start: int, max_bytes: int) -> None:
        self._data_start = data_start
        self._max_bytes = max_bytes
        self._head_end = 0
        self._low_start: int | None = None
        self._low_end = 0
        self._data_end = data_start

    @property
    def size(self) -> int:
        """Bytes of the dump, holes included; final once it has ended."""
        return self._data_end

    @property
    def n_bytes(self) -> int:
        """Bytes placed so far, a head once, and small gaps."""
        low_start = self._low_end if self._low_start is None else self._low_start
        return self._head_end + self._low_end - low_start + self._data_end - self._data_start

    def advance(self, kind: ChunkKind, offset: int, length: int) -> None:
        """Place a chunk.

        Raises:
            ProtocolError: it does not go on where the last of its kind ended, or leaves its area.
        """
        end = offset + length
        if kind is ChunkKind.HEAD:
            is_right = offset in (0, self._head_end) and end <= min(MAX_HEAD, self._data_start)
            self._head_end = end
        elif kind is ChunkKind.DATA:
            is_right = offset == self._data_end and end <= self._max_bytes
            self._data_end = end
        else:
            start = offset if self._low_start is None else self._low_end
            is_right = start <= offset <= start + MAX_GAP and end <= self._data_start
            self._low_start = start if self._low_start is None else self._low_start
            self._low_end = end
        if not is_right:
            raise ProtocolError(f"{kind.name} of {length} bytes at {offset} is out of place")

    def finish(self) -> None:
        """The dump has ended.

        Raises:
            ProtocolError: the areas overlap, or something large is missing between them.
        """
        low_start = self._data_start if self._low_start is None else self._low_start
        low_end = self._data_start if self._low_start is None else self._low_end
        gaps = (low_start - self._head_end, self._data_start - low_end)
        if not all(0 <= gap <= MAX_GAP for gap in gaps):
            raise ProtocolError(
                f"the head ends at {self._head_end}, bitmaps and descriptors are {low_start} to "
                f"{low_end}, data starts at {self._data_start}: that is no dump"
            )
