"""A flattened stream kept in a file, read as the dump that it will be when rearranged.

Opening indexes the record headers (about 2 us each) and keeps 24 bytes for each record. Over a line
`flattened_walk` fetches them ahead.
"""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Final, cast

import numpy as np

from pipeline.errors import FormatError
from stages.formats.flattened import END_RECORD, HEADER_SIZE, RECORD, check_header
from stages.reader.file_io import ImageFile
from stages.reader.pieces import MAX_OFF, Pieces, make_disjoint
from stages.reader.rows import ReadBatch

MAX_RECORDS: Final = 1 << 23
"""192 MiB of index. makedumpfile's records are 64 KiB: enough for a dump of 512 GiB."""


class FlattenedFile:
    """The rearranged dump; an `ImageFile` on top of the stream's own."""

    has_holes = False

    def __init__(self, stream: ImageFile) -> None:
        """Index `stream`, which becomes this object's to close.

        Raises:
            FormatError: not a stream of type 1 and version 1, a record has an impossible place, or
                too many records overlap.
            TruncatedError: cut inside the header.
            OSError: the device failed.
        """
        self.path = stream.path
        self._stream = stream
        # As `RemoteFile.read_batch`, None where the stream answers at once.
        self.read_batch: ReadBatch | None = None
        self._read_stream: ReadBatch | None = getattr(stream, "read_batch", None)
        if self._read_stream is not None:
            self.read_batch = self._read_together
        self.incomplete: str | None = None
        check_header(stream.read(0, HEADER_SIZE), _size(stream))
        self._pieces = self._index()
        self.size: int | None = int(self._pieces.stops[-1]) if len(self._pieces.stops) else 0

    def _index(self) -> Pieces:
        """Where each byte of the dump lies in the stream, the last record winning."""
        columns = tuple(array("q") for _ in range(3))
        for off, n_bytes, at in self._iter_records():
            for column, value in zip(columns, (off, off + n_bytes, at), strict=True):
                column.append(value)
        starts, stops, offs = (np.array(column, dtype=np.int64) for column in columns)
        return make_disjoint(starts[::-1], stops[::-1], offs[::-1])

    def _iter_records(self) -> Iterator[tuple[int, int, int]]:
        """(offset in the dump, size, where the data starts in the stream) of every record."""
        at = HEADER_SIZE
        end = _size(self._stream)
        read_header = self._header_reader()
        for _ in range(MAX_RECORDS):
            head = read_header(at)
            if len(head) < RECORD.size:
                self.incomplete = f"the flattened stream was cut at {end} bytes, it has no end"
                return
            off, n_bytes = RECORD.unpack(head)
            if off < 0 or n_bytes <= 0:
                if head != END_RECORD:
                    self.incomplete = f"the flattened stream has a broken record at {at:#x}"
                return
            if off + n_bytes > MAX_OFF:
                raise FormatError("flattened", at, "offset", off, f"less than {MAX_OFF:#x}")
            at += RECORD.size
            if end > at:
                yield off, min(n_bytes, end - at), at
            at += n_bytes
        raise FormatError("flattened", at, "record", MAX_RECORDS, f"{MAX_RECORDS} at most")

    def _header_reader(self) -> Callable[[int], bytes]:
        if self._read_stream is None:
            return lambda at: self._stream.read(at, RECORD.size)
        from stages.reader.flattened_walk import BatchFile, HeaderWalk

        return HeaderWalk(cast("BatchFile", self._stream)).read

    def read(self, off: int, n_bytes: int) -> bytes:
        assert self.size is not None
        out = bytearray(max(min(n_bytes, self.size - off), 0))
        view = memoryview(out)
        for start, stop, at in self._parts(off, off + len(out)):
            part = self._stream.read(at, stop - start)
            view[start - off : start - off + len(part)] = part
        return bytes(out)

    def read_into(self, view: memoryview, off: int) -> int:
        """As `ImageFile.read_into`; a range that a cut stream lacks is an error, not zeros."""
        assert self.size is not None
        wanted = max(min(len(view), self.size - off), 0)
        done = off
        for start, stop, at in self._parts(off, off + wanted):
            self._fill_gap(view[done - off : start - off])
            got = self._stream.read_into(view[start - off : stop - off], at)
            done = start + got
            if done < stop:
                return done - off
        self._fill_gap(view[done - off : wanted])
        return wanted

    def _read_together(
        self, views: Sequence[memoryview], offs: Sequence[int]
    ) -> list[int | OSError]:
        """All parts of all `views` in one call of the stream; what is odd goes one by one."""
        assert self._read_stream is not None
        pieces: list[memoryview] = []
        places: list[int] = []
        counts: list[int] = []
        for view, off in zip(views, offs, strict=True):
            parts = list(self._parts(off, off + len(view)))
            whole = sum(stop - start for start, stop, _ in parts) == len(view)
            for start, stop, at in parts if whole else ():
                pieces.append(view[start - off : stop - off])
                places.append(at)
            counts.append(len(parts) if whole else 0)
        got = iter(self._read_stream(pieces, places))
        fetched = iter(pieces)
        out: list[int | OSError] = []
        for view, off, count in zip(views, offs, counts, strict=True):
            mine = [(next(fetched), next(got)) for _ in range(count)]
            good = mine and all(outcome == len(piece) for piece, outcome in mine)
            out.append(len(view) if good else self._read_alone(view, off))
        return out

    def _read_alone(self, view: memoryview, off: int) -> int | OSError:
        try:
            return self.read_into(view, off)
        except OSError as error:
            return error

    def _fill_gap(self, view: memoryview) -> None:
        if not len(view):
            return
        if self.incomplete is not None:
            raise OSError(errno.ENODATA, "not in the part of the stream that is there")
        view[:] = bytes(len(view))

    def _parts(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(first byte, end, place in the stream) of each recorded part of [start, stop)."""
        mine = self._pieces.overlapping(start, stop)
        for first, last, at in zip(
            *(column[mine].tolist() for column in self._pieces), strict=True
        ):
            begin = max(first, start)
            yield begin, min(last, stop), at + begin - first

    def holes(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        return iter(())

    def advise(self, start: int, stop: int) -> None:
        parts = list(self._parts(start, stop))
        if parts:
            first, last = parts[0], parts[-1]
            self._stream.advise(first[2], max(last[2] + last[1] - last[0], first[2]))

    def close(self) -> None:
        self._stream.close()


def _size(stream: ImageFile) -> int:
    """Bytes of the stream; one on something without a size can't be told whole or cut."""
    if stream.size is None:
        raise OSError(errno.ESPIPE, os.strerror(errno.ESPIPE), stream.path)
    return stream.size
