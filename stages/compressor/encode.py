"""Encode one batch: read its pages, find zeros and copies, compress the rest, fill in the tables.

This is the whole work of a worker. It is synchronous, knows no channel and no process, and runs
unchanged inline, in a thread, or in a forked worker.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pipeline.errors import MissingPageError
from pipeline.flow.items import PageState
from pipeline.memory.addresses import ByteArray
from stages.compressor.kernels import BatchEncoder, make_encoder
from stages.compressor.slots import Slot
from stages.compressor.zero import first_copies, zero_rows
from stages.reader.image import Image


class EncodeSettings(Struct, frozen=True):
    """What every worker of a run is told."""

    codec: str
    level: int
    page_size: int
    capacity: int
    """Pages a batch at most."""
    drop_zero: bool
    """Zero pages carry no data (dump level 1); otherwise they are pages like any other."""
    share_identical: bool
    on_read_error: str = "zero"
    """``zero``: a missing page becomes a zero page and is counted; ``skip``: it has no data;
    ``fail``: the run ends with `MissingPageError`."""


class Encoded(Struct, frozen=True):
    """What came of a batch, beside the slot's tables."""

    n_pages: int
    n_bytes: int
    n_shared: int


class BatchWorker:
    """An encoder and its read buffer, for one thread or process."""

    def __init__(self, image: Image, settings: EncodeSettings) -> None:
        self._image = image
        self._settings = settings
        self._encoder: BatchEncoder = make_encoder(
            settings.codec, settings.level, settings.page_size
        )
        self._pages: ByteArray | None = None

    def run(self, slot: Slot, n_pages: int, pages: ByteArray | None) -> Encoded:
        """Encode the batch whose pfns are in `slot`; fills the slot's tables and data.

        Args:
            slot: tables and output.
            n_pages: pages of the batch.
            pages: uint8[n_pages, page_size] when the batch brought its data (`slot.states` is
                filled in then), None to read it from the image.

        Raises:
            MissingPageError: a page could not be read and the policy is ``fail``.
        """
        if pages is None:
            pages = self._buffer(slot)[:n_pages]
            slot.states[:n_pages] = self._image.read_pages(slot.pfns[:n_pages], pages)
        states = slot.states[:n_pages]
        self._check_missing(slot, states)
        known = states == PageState.DATA
        zero = zero_rows(pages) & known
        states[zero] = PageState.ZERO
        wanted = np.flatnonzero(states == PageState.DATA)
        if not self._settings.drop_zero:
            return self._encode_all(slot, pages, states, wanted)
        return self._encode_rows(slot, pages, wanted, n_pages)

    def _buffer(self, slot: Slot) -> ByteArray:
        if self._encoder.in_place:
            return slot.data.reshape(-1, self._settings.page_size)
        if self._pages is None:
            self._pages = np.empty(
                (self._settings.capacity, self._settings.page_size), dtype=np.uint8
            )
        return self._pages

    def _check_missing(self, slot: Slot, states: NDArray[np.uint8]) -> None:
        if self._settings.on_read_error == "fail":
            missing = np.flatnonzero(states == PageState.MISSING)
            if len(missing):
                pfn = int(slot.pfns[missing[0]])
                raise MissingPageError(pfn, "could not be read", page_size=self._settings.page_size)

    def _encode_rows(
        self, slot: Slot, pages: ByteArray, rows: NDArray[np.intp], n_pages: int
    ) -> Encoded:
        """Encode `rows`, once for each distinct content if copies are to be shared."""
        if len(rows) == 0:
            return Encoded(n_pages, 0, 0)
        heads = first_copies(pages, rows) if self._settings.share_identical else rows
        own = rows[heads == rows]
        sizes, coded = self._encoder.encode(pages, own, slot.data)
        ends = np.cumsum(sizes)
        slot.offsets[own] = ends - sizes
        slot.sizes[own] = sizes
        slot.coded[own] = coded
        if len(own) < len(rows):
            for table in (slot.offsets, slot.sizes, slot.coded):
                table[rows] = table[heads]
        return Encoded(n_pages, int(ends[-1]), len(rows) - len(own))

    def _encode_all(
        self,
        slot: Slot,
        pages: ByteArray,
        states: NDArray[np.uint8],
        wanted: NDArray[np.intp],
    ) -> Encoded:
        """Zero pages are stored too: one of them is encoded, the others share it."""
        zero = np.flatnonzero(states == PageState.ZERO)
        states[zero] = PageState.DATA
        if len(zero) == 0:
            return self._encode_rows(slot, pages, wanted, len(states))
        pages[zero[0]] = 0
        rows = np.sort(np.append(wanted, zero[0]))
        done = self._encode_rows(slot, pages, rows, len(states))
        for table in (slot.offsets, slot.sizes, slot.coded):
            table[zero] = table[zero[0]]
        return Encoded(done.n_pages, done.n_bytes, done.n_shared + len(zero) - 1)
