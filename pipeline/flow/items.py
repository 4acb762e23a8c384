"""What moves between stages. A batch belongs to its receiver once it has been sent."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from pipeline.memory.addresses import PfnArray


class PageState(IntEnum):
    """What became of a page; values of the `states` arrays (uint8)."""

    DATA = 0
    """Content is there."""
    ZERO = 1
    """All zero, or a hole in the image file that reads as zero."""
    MISSING = 2
    """Should be there and could not be read: EIO, or past the end of a cut file."""


class PageBatch(Struct):
    """Pages to copy, in ascending pfn order.

    Attributes:
        seq: consecutive number from 0; the writer sees batches in this order.
        pfns: uint64[n_pages], ascending.
        data: n_pages * page_size bytes, or None when whoever encodes the batch reads the pages
            itself (a local file that worker processes share).
        states: uint8[n_pages] of `PageState` that goes with `data`, None with data None.
        hole: every page is known to be zero without reading; `data` is None.
    """

    seq: int
    pfns: PfnArray
    page_size: int
    data: memoryview | None = None
    states: NDArray[np.uint8] | None = None
    hole: bool = False

    @property
    def n_pages(self) -> int:
        return len(self.pfns)

    @property
    def n_bytes(self) -> int:
        """What the batch weighs in a channel: the memory it holds while it waits there."""
        held = self.pfns.nbytes
        return held if self.data is None else held + self.data.nbytes


class CodedBatch(Struct):
    """Encoded pages in ascending pfn order, and where each lies inside `data`.

    Attributes:
        states: uint8[n_pages] of `PageState`; only DATA pages have bytes.
        offsets: int64[n_pages], first byte of the page in `data`; pages may share one.
        sizes: uint32[n_pages], bytes of the page in `data`; meaningless unless DATA.
        coded: bool[n_pages]; True compressed, False raw (compression did not make it smaller).
        data: the bytes, contiguous; borrowed until `release` is called, once.
    """

    seq: int
    pfns: PfnArray
    states: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.uint32]
    coded: NDArray[np.bool_]
    data: memoryview
    release: Callable[[], None]
    bytes_in: int = 0
    """Read from the image for it; 0 for a hole."""
    n_shared: int = 0
    """Pages that share the bytes of an identical page of the batch."""

    @property
    def n_pages(self) -> int:
        return len(self.pfns)

    @property
    def n_bytes(self) -> int:
        arrays = self.pfns.nbytes + self.states.nbytes + self.offsets.nbytes
        return arrays + self.sizes.nbytes + self.coded.nbytes + self.data.nbytes


class ChunkKind(IntEnum):
    """Which part of the dump a chunk belongs to."""

    HEAD = 0
    """Main header, sub header and notes: until it is there the file is no dump."""
    BITMAP = 1
    DESCRIPTORS = 2
    DATA = 3


class HeadOrder(IntEnum):
    """When a sink wants the HEAD chunk."""

    FIRST = 0
    """A stream: later bytes cannot change earlier ones, and its end record is what makes it whole.
    """
    BOTH = 1
    """Random writes: first marked incomplete, so that what a crash leaves is readable and honest,
    and again at the end."""
    LAST = 2
    """Parts in any order: once, when everything else is there."""


class Chunk(Struct):
    """Bytes for one place of the output.

    Chunks of one kind come in ascending offsets without gaps (two append-only cursors); only HEAD
    may come twice.
    """

    kind: ChunkKind
    offset: int
    data: memoryview | bytes
    release: Callable[[], None] | None = None

    @property
    def n_bytes(self) -> int:
        return len(self.data)


class Outline(Struct, frozen=True):
    """What is known of the output before its first byte; the first item that a sink receives.

    Attributes:
        data_start: bytes before the page data: head, bitmaps and descriptors, sizes all known.
        most_bytes: size of the output if no page compressed at all.
    """

    data_start: int
    most_bytes: int

    @property
    def n_bytes(self) -> int:
        return 0


class Totals(Struct):
    """What went through; the books must balance at the end of a run."""

    n_pages: int = 0
    zero_pages: int = 0
    missing_pages: int = 0
    shared_pages: int = 0
    raw_pages: int = 0
    coded_pages: int = 0
    bytes_out: int = 0
    """Bytes of page data after encoding."""
    missing_extents: list[tuple[int, int]] = field(default_factory=list)
    """The first few runs of missing pfns, half open, for the log."""


class EndOfDump(Struct):
    """The last item. A channel that closes without it was torn by a failure upstream."""

    totals: Totals

    @property
    def n_bytes(self) -> int:
        return 0


class Receipt(Struct, frozen=True):
    """What a sink has after the end; nothing has its final name before the commit."""

    target: str
    n_bytes: int
    """Size of the output, holes included."""
    seconds_syncing: float = 0.0
