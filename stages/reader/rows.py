"""Whole pages at known file offsets, read into rows of a buffer: where EIO is met."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.flow.items import PageState
from pipeline.memory.addresses import ByteArray, PfnArray
from stages.reader.file_io import ImageFile
from stages.reader.pieces import IntArray
from stages.reader.read_errors import ReadErrors, reason_of

# What only a mistake of ours brings about: these are not the image's fault.
_BUGS: Final = frozenset({errno.EBADF, errno.EINVAL})
PAST_END: Final = "past the end of the file"

ReadBatch = Callable[[Sequence[memoryview], Sequence[int]], "list[int | OSError]"]


class RowReader:
    """Reads pages of one image; bad ones are marked MISSING and noted in `errors`."""

    def __init__(self, file: ImageFile, page_size: int, errors: ReadErrors) -> None:
        self._file = file
        self._page_size = page_size
        self._errors = errors
        # Files behind a line take many reads at once; see `remote_file`.
        self._read_batch: ReadBatch | None = getattr(file, "read_batch", None)

    def read_rows(
        self,
        offs: IntArray,
        rows: NDArray[np.intp],
        pfns: PfnArray,
        out: ByteArray,
        states: NDArray[np.uint8],
    ) -> None:
        """Read the page at `offs[i]` into row `rows[i]`; neighbours in both become one read.

        Args:
            offs: int64[n] bytes in the file.
            rows: intp[n] ascending rows of `out`, `pfns` and `states`.
            pfns: uint64[n_rows], of all rows.
            out: uint8[n_rows, page_size].
            states: uint8[n_rows]; only MISSING is ever written.
        """
        if not len(rows):
            return
        page_size, read_into = self._page_size, self._file.read_into
        breaks = np.flatnonzero((np.diff(offs) != page_size) | (np.diff(rows) != 1)) + 1
        heads = np.concatenate(([0], breaks))
        starts = rows[heads]
        stops = starts + np.diff(np.append(heads, len(rows)))
        flat = out.data.cast("B")
        runs = zip(
            (starts * page_size).tolist(),
            (stops * page_size).tolist(),
            offs[heads].tolist(),
            strict=True,
        )
        if self._read_batch is not None:
            self._read_together(list(runs), flat, pfns, states)
            return
        for start, stop, off in runs:
            try:
                got = read_into(flat[start:stop], off)
            except OSError:
                got = 0
            if got != stop - start:
                mine = slice(start // page_size, stop // page_size)
                self.finish_run(flat[start:stop], off, got, pfns[mine], states[mine])

    def _read_together(
        self,
        runs: list[tuple[int, int, int]],
        flat: memoryview,
        pfns: PfnArray,
        states: NDArray[np.uint8],
    ) -> None:
        assert self._read_batch is not None
        views = [flat[start:stop] for start, stop, _ in runs]
        outcomes = self._read_batch(views, [off for _, _, off in runs])
        for (start, stop, off), view, outcome in zip(runs, views, outcomes, strict=True):
            got = 0 if isinstance(outcome, OSError) else outcome
            if got != stop - start:
                mine = slice(start // self._page_size, stop // self._page_size)
                self.finish_run(view, off, got, pfns[mine], states[mine])

    def finish_run(
        self,
        view: memoryview,
        off: int,
        done: int,
        pfns: PfnArray,
        states: NDArray[np.uint8],
    ) -> None:
        """Go on where a read of consecutive pages stopped short, `done` bytes in.

        After an error the rest is read page by page, so that only the bad pages are lost.
        """
        page_size = self._page_size
        while done < len(view):
            try:
                got = self._file.read_into(view[done:], off + done)
            except OSError as error:
                if error.errno in _BUGS:
                    raise
                self._read_singly(view, off, done // page_size, pfns, states)
                return
            if got == 0:
                states[done // page_size :] = PageState.MISSING
                self._errors.add(pfns[done // page_size :].tolist(), PAST_END)
                return
            done += got

    def read_part(self, view: memoryview, off: int, pfn: int) -> bool:
        """Read part of page `pfn`; False, and noted, when it can't be had."""
        try:
            got = self._fill(view, off)
            why = PAST_END
        except OSError as error:
            got = 0
            why = reason_of(error)
        if got != len(view):
            self._errors.add([pfn], why)
        return got == len(view)

    def _fill(self, view: memoryview, off: int) -> int:
        """How many bytes came, fewer than `view` takes at the end of the file only."""
        done = 0
        while done < len(view) and (got := self._file.read_into(view[done:], off + done)):
            done += got
        return done

    def _read_singly(
        self, view: memoryview, off: int, first: int, pfns: PfnArray, states: NDArray[np.uint8]
    ) -> None:
        bad: dict[str, list[int]] = {}
        page_size = self._page_size
        for row in range(first, len(pfns)):
            page = view[row * page_size : (row + 1) * page_size]
            try:
                got = self._fill(page, off + row * page_size)
                why = PAST_END
            except OSError as error:
                got = 0
                why = reason_of(error)
            if got != page_size:
                states[row] = PageState.MISSING
                bad.setdefault(why, []).append(int(pfns[row]))
        for why, lost in bad.items():
            self._errors.add(lost, why)
