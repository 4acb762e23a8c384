"""From record to record of a flattened stream behind a line, without a wait for each of them.

A record's size is known from its header only, so the headers are a chain. Two ways lead along it,
and what the line is like says which is shorter::

    hop       [h]......[h]......[h]......[h]    headers only, at places guessed from the last step
    stream    [hdddddddhddhddddddhdddd........]  all bytes, as many at once as the line takes

Hopping costs a request a record where sizes differ, and several records a request where they do
not. Streaming costs the bytes. makedumpfile's records are 30 KiB on average: they are streamed.
"""

from __future__ import annotations

from typing import Final, Protocol

from stages.formats.flattened import RECORD
from stages.reader.remote_file import Outcome
from stages.reader.remote_link import Link

_STREAM_BYTES: Final = 8 << 20
"""Fetched at once and held; 400 MB/s at 20 ms."""
_MOST_GUESSES: Final = 256
_WEIGHT: Final = 0.25
"""Of the newest record in the running mean of sizes."""


class BatchFile(Protocol):
    """What `RemoteFile` has beyond an `ImageFile`."""

    link: Link
    size: int | None

    def read_batch(self, views: list[memoryview], offs: list[int]) -> list[Outcome]:
        """As `RemoteFile.read_batch`."""


class HeaderWalk:
    """Reads headers at ascending places; what is fetched for nothing is dropped."""

    def __init__(self, stream: BatchFile) -> None:
        self._stream = stream
        self._guesses: dict[int, bytes] = {}
        self._n_guesses = 1
        self._span_at = 0
        self._span: memoryview = memoryview(b"")
        self._last: int | None = None
        self._step = 0
        self._mean_step = 0.0

    def read(self, at: int) -> bytes:
        """The header at `at`, shorter at the end of the stream.

        Raises:
            OSError: the range can't be read.
        """
        if self._last is not None:
            self._step = at - self._last
            known = self._mean_step or self._step
            self._mean_step = known + _WEIGHT * (self._step - known)
        self._last = at
        skip = at - self._span_at
        if 0 <= skip <= len(self._span) - RECORD.size:
            return bytes(self._span[skip : skip + RECORD.size])
        found = self._guesses.pop(at, None)
        return self._fetch(at) if found is None else found

    def _fetch(self, at: int) -> bytes:
        link = self._stream.link
        if self._mean_step and self._mean_step < link.latency_s * link.bandwidth:
            return self._fetch_span(at)
        return self._fetch_guesses(at)

    def _fetch_span(self, at: int) -> bytes:
        left = _STREAM_BYTES if self._stream.size is None else max(self._stream.size - at, 0)
        buffer = memoryview(bytearray(min(left, _STREAM_BYTES)))
        (got,) = self._read([buffer], [at])
        self._span_at, self._span = at, buffer[:got]
        return bytes(self._span[: RECORD.size])

    def _fetch_guesses(self, at: int) -> bytes:
        """The header at `at`, and those that follow it if records go on being of the same size."""
        self._n_guesses = 1 if self._guesses else min(2 * self._n_guesses, _MOST_GUESSES)
        places = [at]
        if self._step > 0:
            places = [at + nth * self._step for nth in range(self._n_guesses)]
        if self._stream.size is not None:
            places = [place for place in places if place < self._stream.size] or [at]
        views = [memoryview(bytearray(RECORD.size)) for _ in places]
        sizes = self._read(views, places)
        headers = [bytes(view[:got]) for view, got in zip(views, sizes, strict=True)]
        self._guesses = dict(zip(places[1:], headers[1:], strict=True))
        return headers[0]

    def _read(self, views: list[memoryview], offs: list[int]) -> list[int]:
        out: list[int] = []
        for outcome in self._stream.read_batch(views, offs):
            if isinstance(outcome, OSError):
                raise outcome
            out.append(outcome)
        return out
