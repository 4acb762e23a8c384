"""A file behind a line: few large requests, many of them under way at once.

`RemoteFile` decides what to ask for; a `Transport` moves bytes (HTTP, or a local file made slow).
Reads that are close together travel in one request, long ones are cut into parts, and all of them
are handed to the transport together::

    wanted      [a] [b]                    [c.............................]
    requests    [a-b  ]                    [part      ][part      ][part  ]
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import add, sub
from typing import Final, Protocol

from stages.reader.pieces import MAX_OFF
from stages.reader.remote_link import Link

HEAD_BLOCK: Final = 64 << 10
"""Headers, notes and tables of a format are read in blocks of this size, and kept."""
_HEAD_BLOCKS: Final = 64


Request = tuple[memoryview, int]
"""Fill the view with the bytes from the offset on; plain, for there are thousands at a time."""

Outcome = int | OSError
"""Bytes that came, fewer at the end of the file only; or why none did."""


class Transport(Protocol):
    """Moves bytes. Safe from several threads."""

    path: str
    size: int | None
    has_holes: bool
    link: Link
    head: bytes
    """The first `HEAD_BLOCK` bytes where opening brought them anyway, else nothing."""

    def fetch(self, requests: Sequence[Request]) -> list[Outcome]:
        """Make all requests, side by side as far as `link.max_in_flight` allows.

        Raises:
            SourceError: the source can't be reached, or is not what it was.
        """

    def holes(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """As `ImageFile.holes`."""

    def close(self) -> None:
        """Release connections and files; calling it twice is fine."""


@dataclass(slots=True)
class _Joined:
    """Wanted reads, by their index, that one stretch of the file [start, stop) answers."""

    start: int
    stop: int
    indices: list[int]


class RemoteFile:
    """`ImageFile` over a transport, with `read_batch` for many reads at once."""

    incomplete: str | None = None

    def __init__(self, transport: Transport) -> None:
        self.path = transport.path
        self.size = transport.size
        self.has_holes = transport.has_holes
        self.link = transport.link
        self._transport = transport
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()
        if transport.head:
            self._blocks[0] = transport.head

    def read(self, off: int, n_bytes: int) -> bytes:
        """Small reads come out of blocks that are kept: headers lie side by side."""
        n_bytes = max(min(n_bytes, self._end - off), 0)
        if n_bytes <= HEAD_BLOCK:
            try:
                return self._read_kept(off, n_bytes)
            except OSError:  # maybe of a part of the block that is not wanted
                pass
        return self._read_whole(off, n_bytes)

    def _read_kept(self, off: int, n_bytes: int) -> bytes:
        pieces: list[bytes] = []
        while n_bytes > 0:
            number, skip = divmod(off, HEAD_BLOCK)
            piece = self._block(number)[skip : skip + n_bytes]
            if not piece:
                break
            pieces.append(piece)
            off += len(piece)
            n_bytes -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _block(self, number: int) -> bytes:
        with self._lock:
            block = self._blocks.get(number)
            if block is not None:
                self._blocks.move_to_end(number)
                return block
        start = number * HEAD_BLOCK
        block = self._read_whole(start, min(HEAD_BLOCK, self._end - start))
        with self._lock:
            self._blocks[number] = block
            while len(self._blocks) > _HEAD_BLOCKS:
                self._blocks.popitem(last=False)
        return block

    @property
    def _end(self) -> int:
        return MAX_OFF if self.size is None else self.size

    def _read_whole(self, off: int, n_bytes: int) -> bytes:
        """Bytes from `off` on, fewer at the end only: a bad sector must not look like one."""
        view = memoryview(bytearray(n_bytes))
        done = 0
        while done < n_bytes and (got := self.read_into(view[done:], off + done)):
            done += got
        return bytes(view[:done])

    def read_into(self, view: memoryview, off: int) -> int:
        (outcome,) = self.read_batch([view], [off])
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    def read_batch(self, views: Sequence[memoryview], offs: Sequence[int]) -> list[Outcome]:
        """Fill each of `views` (flat bytes) from its offset; all are under way together."""
        if not views:
            return []
        gap, part_bytes = self.link.gap_bytes, self.link.part_bytes
        sizes = list(map(len, views))
        if _stand_alone(sizes, offs, gap, part_bytes):
            return self._fetch(list(zip(views, offs, strict=True)), sum(sizes))
        groups = list(_join(views, offs, gap=gap, most=max(part_bytes, gap)))
        self.link.book_joined(len(views) - len(groups))
        return self._read_groups(groups, views, offs)

    def _fetch(self, requests: list[Request], n_bytes: int) -> list[Outcome]:
        began = time.perf_counter()
        with self.link.waiting():
            out = self._transport.fetch(requests)
        self.link.book_transfer(n_bytes, time.perf_counter() - began)
        return out

    def _read_groups(
        self, groups: list[_Joined], views: Sequence[memoryview], offs: Sequence[int]
    ) -> list[Outcome]:
        requests: list[Request] = []
        buffers: list[memoryview] = []
        firsts: list[int] = []
        for group in groups:
            alone = len(group.indices) == 1
            buffer = (
                views[group.indices[0]]
                if alone
                else memoryview(bytearray(group.stop - group.start))
            )
            firsts.append(len(requests))
            buffers.append(buffer)
            requests += _parts(buffer, group.start, self.link.part_bytes)
        firsts.append(len(requests))
        outcomes = self._fetch(requests, sum(map(len, buffers)))
        out: list[Outcome] = [0] * len(views)
        for at, group in enumerate(groups):
            mine = range(firsts[at], firsts[at + 1])
            got = _together([requests[each] for each in mine], [outcomes[each] for each in mine])
            if len(group.indices) == 1:
                out[group.indices[0]] = got
            else:
                _hand_out(group, buffers[at], got, views, offs, out)
        return out

    def holes(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        return self._transport.holes(start, stop)

    def advise(self, start: int, stop: int) -> None:
        """Nothing: whoever reads ahead here reads."""

    def close(self) -> None:
        self._transport.close()


def _stand_alone(sizes: Sequence[int], offs: Sequence[int], gap: int, part_bytes: int) -> bool:
    """Whether reads ascend, and each is a request of its own: the usual case, met quickly."""
    if max(sizes) > part_bytes:
        return False
    gaps = map(sub, offs[1:], map(add, offs, sizes))  # no loop of ours: 16,000 times in a pass 1
    return min(gaps, default=gap + 1) > gap


def _join(
    views: Sequence[memoryview], offs: Sequence[int], *, gap: int, most: int
) -> Iterator[_Joined]:
    """Reads whose gaps are at most `gap` bytes, together while they span at most `most`."""
    group: _Joined | None = None
    for index in sorted(range(len(offs)), key=offs.__getitem__):
        start = offs[index]
        stop = start + len(views[index])
        if group is not None and start - group.stop <= gap and stop - group.start <= most:
            group.stop = max(group.stop, stop)
            group.indices.append(index)
            continue
        if group is not None:
            yield group
        group = _Joined(start, stop, [index])
    if group is not None:
        yield group


def _parts(buffer: memoryview, off: int, part_bytes: int) -> list[Request]:
    if len(buffer) <= part_bytes:
        return [(buffer, off)]
    return [(buffer[at : at + part_bytes], off + at) for at in range(0, len(buffer), part_bytes)]


def _together(parts: list[Request], outcomes: list[Outcome]) -> Outcome:
    """Bytes of the stretch that came without a break from its start."""
    total = 0
    for part, got in zip(parts, outcomes, strict=True):
        if isinstance(got, OSError):
            return total or got
        total += got
        if got < len(part[0]):
            break
    return total


def _hand_out(
    group: _Joined,
    buffer: memoryview,
    got: Outcome,
    views: Sequence[memoryview],
    offs: Sequence[int],
    out: list[Outcome],
) -> None:
    """Copy from the stretch's buffer into the reads that it answers."""
    for index in group.indices:
        if isinstance(got, OSError):
            out[index] = got
            continue
        skip = offs[index] - group.start
        n_bytes = max(min(len(views[index]), got - skip), 0)
        views[index][:n_bytes] = buffer[skip : skip + n_bytes]
        out[index] = n_bytes
