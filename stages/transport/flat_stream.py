"""`dumpstream receive -`: a flattened stream on standard input becomes a directly readable file.

This is the remote end of ``ssh host dumpstream receive - FILE``: records are written where they
belong as they come, and the file gets its name only after the stream's end record. A stream that
is cut leaves ``FILE.partial``, marked incomplete when it is a dump that crash can open.
"""

from __future__ import annotations

import os
from typing import BinaryIO, Final

from pipeline.errors import FormatError, SinkError, TornStreamError
from stages.formats.flattened import HEADER_SIZE, RECORD, SIGNATURE, check_header
from stages.formats.kdump import MAIN_HEADER_SIZE, MainHeader, Status
from stages.formats.kdump import SIGNATURE as KDUMP_SIGNATURE
from stages.sink.partial_file import PartialFile
from stages.transport.messages import MAX_SIZE

_STEP: Final = 1 << 20
_END: Final = -1


def receive_stream(source: BinaryIO, file: PartialFile, *, max_bytes: int = MAX_SIZE) -> int:
    """Assemble `source` into `file`; returns its size. Blocks until the stream ends.

    Args:
        source: read to the end of the end record, and no further.
        file: not claimed yet.
        max_bytes: no byte of the file may lie beyond.

    Raises:
        SinkError: the file cannot be written.
        TornStreamError: the stream ends before its end record.
        FormatError: it is no flattened stream, or has a record that no dump has.
    """
    head = _read(source, HEADER_SIZE)
    if not head.startswith(SIGNATURE):
        raise FormatError("flattened", 0, "signature", head[:16], repr(SIGNATURE))
    check_header(head, len(head))
    file.claim()
    try:
        size = _write_records(source, file, max_bytes)
        file.sync()
    except BaseException:
        _leave(file)
        raise
    file.commit()
    return size


def _write_records(source: BinaryIO, file: PartialFile, max_bytes: int) -> int:
    end, n_read = 0, HEADER_SIZE
    while True:
        record = _read(source, RECORD.size)
        if len(record) < RECORD.size:
            raise TornStreamError(
                f"{file.path}: the stream was cut after {n_read + len(record)} bytes, before its "
                f"end record; {file.partial} is incomplete"
            )
        offset, size = RECORD.unpack(record)
        if (offset, size) == (_END, _END):
            return end
        if offset < 0 or size < 1 or offset + size > max_bytes:
            raise FormatError(
                "flattened", n_read, "record", f"{size} bytes at {offset}", f"0 to {max_bytes}"
            )
        _copy(source, file, offset, size)
        end = max(end, offset + size)
        n_read += RECORD.size + size


def _copy(source: BinaryIO, file: PartialFile, offset: int, size: int) -> None:
    stop = offset + size
    while offset < stop:
        data = memoryview(_read(source, min(stop - offset, _STEP)))
        if not data:
            raise TornStreamError(
                f"{file.path}: the stream was cut inside a record; {file.partial} is incomplete"
            )
        try:
            while data:
                done = os.pwrite(file.fd, data, offset)
                data, offset = data[done:], offset + done
        except OSError as error:
            raise file.failure(error) from error


def _read(source: BinaryIO, n_bytes: int) -> bytes:
    """`n_bytes`, fewer at the end only."""
    parts = bytearray()
    while len(parts) < n_bytes:
        try:
            data = source.read(n_bytes - len(parts))
        except OSError as error:
            raise SinkError(f"standard input: {error.strerror or error}") from error
        if not data:
            break
        parts += data
    return bytes(parts)


def _leave(file: PartialFile) -> None:
    """Keep what has a head, marked for what it is; without one it opens nowhere."""
    head = os.pread(file.fd, MAIN_HEADER_SIZE, 0)
    if len(head) < MAIN_HEADER_SIZE or not head.startswith(KDUMP_SIGNATURE):
        file.discard()
        return
    header = MainHeader.parse(head)
    honest = header._replace(status=header.status | Status.INCOMPLETE)
    os.pwrite(file.fd, honest.pack(), 0)
    file.keep()
