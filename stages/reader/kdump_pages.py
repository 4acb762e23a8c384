"""Page data of a kdump-compressed dump: read in large spans, decoded page by page.

Raw pages go straight into the caller's rows. Compressed ones are taken in the order in which they
lie in the file; what is close together is read at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.flow.items import PageState
from pipeline.memory.addresses import ByteArray, PfnArray
from stages.compressor.codecs import codec_of_flags
from stages.compressor.decode import DecodeError, Decoder, make_decoder
from stages.reader.file_io import ImageFile
from stages.reader.kdump_descriptors import DescArray, iter_problems, usable
from stages.reader.read_errors import ReadErrors, reason_of
from stages.reader.rows import PAST_END, ReadBatch, RowReader

_SPAN_BYTES: Final = 1 << 20
"""Read at once at most, apart from the last page's end."""
_MAX_GAP: Final = 1 << 14
"""Bytes read for nothing rather than starting another read: 3 us against 2 us and a seek."""
_TOGETHER_BYTES: Final = 8 << 20
"""Read over a line at once at most, apart from the last span."""
LOST: Final = "lost: its descriptor is empty"


class PageDecoder:
    """Turns descriptors into pages; bad ones become MISSING, with the reason in `errors`."""

    def __init__(self, file: ImageFile, page_size: int, errors: ReadErrors) -> None:
        self._file = file
        self._page_size = page_size
        self._errors = errors
        self._rows = RowReader(file, page_size, errors)
        # Files behind a line take many reads at once; see `remote_file`.
        self._read_batch: ReadBatch | None = getattr(file, "read_batch", None)
        self._decoders: dict[int, Decoder] = {}

    def decode(
        self, pfns: PfnArray, table: DescArray, out: ByteArray, states: NDArray[np.uint8]
    ) -> None:
        """Fill the rows of `out` with the pages that `table` describes.

        Args:
            pfns: uint64[n], for the reasons.
            table: `PAGE_DESC`[n], as read: nothing in it is trusted.
            out: uint8[n, page_size].
            states: uint8[n]; only rows that are DATA are filled, bad ones become MISSING.
        """
        wanted = states == PageState.DATA
        good = wanted & usable(table, self._page_size, self._file.size)
        if not np.array_equal(good, wanted):
            bad = wanted & ~good
            states[bad] = PageState.MISSING
            self._explain(pfns[bad], table[bad])
        raw = np.flatnonzero(good & (table["flags"] == 0))
        self._rows.read_rows(table["offset"][raw], raw, pfns, out, states)
        coded = np.flatnonzero(good & (table["flags"] != 0))
        if len(coded):
            order = coded[np.argsort(table["offset"][coded], kind="stable")]
            self._decode_coded(order, pfns, table, out, states)

    def _explain(self, pfns: PfnArray, table: DescArray) -> None:
        lost = pfns[table["offset"] == 0]
        if len(lost):
            self._errors.add(lost.tolist(), LOST)
        for problem in iter_problems(pfns, table, self._page_size, self._file.size):
            past_end = problem.field == "offset" and problem.value > 0
            why = PAST_END if past_end else f"bad descriptor: {problem.field}"
            self._errors.add([problem.pfn], why)

    def _decode_coded(
        self,
        order: NDArray[np.intp],
        pfns: PfnArray,
        table: DescArray,
        out: ByteArray,
        states: NDArray[np.uint8],
    ) -> None:
        """Decode rows `order`, which ascend in the file."""
        page_size, flat = self._page_size, out.data.cast("B")
        starts = table["offset"][order].tolist()
        stops = (table["offset"][order] + table["size"][order]).tolist()
        flags = table["flags"][order].tolist()
        rows = order.tolist()
        spans = _plan_spans(starts, stops)
        for first, last, span in self._read_spans(spans, starts, stops):
            low = starts[first]
            for at in range(first, last):
                start, stop, row = starts[at], stops[at], rows[at]
                try:
                    data = self._piece(span, low, start, stop)
                    page = self._decoder(flags[at])(data)
                except (DecodeError, OSError) as error:
                    states[row] = PageState.MISSING
                    why = reason_of(error) if isinstance(error, OSError) else str(error)
                    self._errors.add([int(pfns[row])], why)
                else:
                    flat[row * page_size : (row + 1) * page_size] = page

    def _read_spans(
        self, spans: Iterator[tuple[int, int]], starts: list[int], stops: list[int]
    ) -> Iterator[tuple[int, int, memoryview | None]]:
        """Each span with its bytes, None where they can't be read at once."""
        if self._read_batch is None:
            for first, last in spans:
                yield first, last, self._read_span(starts[first], max(stops[first:last]))
            return
        waiting: list[tuple[int, int, memoryview]] = []
        n_bytes = 0
        for first, last in spans:
            view = memoryview(bytearray(max(stops[first:last]) - starts[first]))
            waiting.append((first, last, view))
            n_bytes += len(view)
            if n_bytes >= _TOGETHER_BYTES:
                yield from self._fetch(waiting, starts)
                waiting, n_bytes = [], 0
        yield from self._fetch(waiting, starts)

    def _fetch(
        self, spans: list[tuple[int, int, memoryview]], starts: list[int]
    ) -> Iterator[tuple[int, int, memoryview | None]]:
        """The same for spans that are under way together."""
        assert self._read_batch is not None
        outcomes = self._read_batch(
            [view for _, _, view in spans], [starts[first] for first, _, _ in spans]
        )
        for (first, last, view), outcome in zip(spans, outcomes, strict=True):
            yield first, last, None if isinstance(outcome, OSError) else view[:outcome]

    def _piece(self, span: memoryview | None, low: int, start: int, stop: int) -> memoryview:
        """Bytes [start, stop) out of the span that begins at `low`, or on their own."""
        return self.read(start, stop) if span is None else span[start - low : stop - low]

    def read(self, start: int, stop: int) -> memoryview:
        """Bytes [start, stop), fewer at the end of the file.

        Raises:
            OSError: the device failed, or a cut stream lacks some of them.
        """
        view = memoryview(bytearray(stop - start))
        done = 0
        while done < len(view) and (got := self._file.read_into(view[done:], start + done)):
            done += got
        return view[:done]

    def _read_span(self, start: int, stop: int) -> memoryview | None:
        """The same; None when that failed, so that each page is tried alone."""
        try:
            return self.read(start, stop)
        except OSError:
            return None

    def _decoder(self, flags: int) -> Decoder:
        decoder = self._decoders.get(flags)
        if decoder is None:
            codec = codec_of_flags(flags)
            assert codec is not None, "usable() lets known flags pass only"
            decoder = self._decoders[flags] = make_decoder(codec, self._page_size)
        return decoder


def _plan_spans(starts: list[int], stops: list[int]) -> Iterator[tuple[int, int]]:
    """Index ranges of pages to read at once; `starts` ascend."""
    first, reach = 0, stops[0]
    for at in range(1, len(starts)):
        if starts[at] > reach + _MAX_GAP or reach - starts[first] > _SPAN_BYTES:
            yield first, at
            first, reach = at, stops[at]
        else:
            reach = max(reach, stops[at])
    yield first, len(starts)
