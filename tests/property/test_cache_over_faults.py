"""A cache over a line that loses things: every page is the file's own, or nobody gets it."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import anyio
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.cache.blocks import BlockCache
from stages.cache.pages import CacheOptions
from stages.reader.probe import open_file
from stages.reader.remote_file import Outcome, RemoteFile, Request
from stages.reader.remote_image import RemoteImage
from stages.reader.remote_link import Link, SourceError
from tests.support.vmcore_writer import PAGE, VmcoreWriter, described, prstatus

N_PAGES: Final = 48
"""In two loads, the second of which starts and ends inside a page."""
_LAST: Final = 3 * PAGE // 2
BLOB: Final = (
    VmcoreWriter()
    .note("CORE", 1, prstatus())
    .load(paddr=0, data=described(0, 40))
    .load(paddr=44 * PAGE + 512, data=described(44, 2)[512 : 512 + _LAST])
    .pack()
)
DATA_START: Final = len(BLOB) - 40 * PAGE - _LAST


@dataclass
class FaultyTransport:
    """Bytes of `BLOB`: `bad` ranges of them answer EIO, and `broken` calls fail as a whole."""

    link: Link
    bad: list[tuple[int, int]]
    broken: set[int]
    size: int | None = len(BLOB)
    path: str = "faulty"
    has_holes: bool = False
    head: bytes = b""
    n_calls: int = field(default=0, init=False)
    is_armed: bool = field(default=False, init=False)

    def fetch(self, requests: Sequence[Request]) -> list[Outcome]:
        self.n_calls += self.is_armed
        if self.is_armed and self.n_calls in self.broken:
            raise SourceError("the line is cut")
        return [self._read(view, off) for view, off in requests]

    def _read(self, view: memoryview, off: int) -> Outcome:
        """As preadv does: what lies before a bad sector, and an error for the sector itself."""
        stop = min(off + len(view), len(BLOB))
        for start, end in self.bad if self.is_armed else ():
            if off < end and start < stop:
                stop = max(start, off)
        if stop == off < len(BLOB):
            return OSError(errno.EIO, "Input/output error")
        view[: max(stop - off, 0)] = BLOB[off:stop]
        return max(stop - off, 0)

    def holes(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        return iter(())

    def close(self) -> None:
        """Nothing is open."""


def content(pfn: int) -> bytes | None:
    """What the page holds, None when it is not in the image."""
    if pfn < 40:
        return described(pfn)
    memory = bytearray(2 * PAGE)
    memory[512 : 512 + _LAST] = described(44, 2)[512 : 512 + _LAST]
    return bytes(memory[(pfn - 44) * PAGE :][:PAGE]) if 44 <= pfn < 46 else None


def is_bad(pfn: int, bad: list[tuple[int, int]]) -> bool:
    """Whether a byte of the page lies in a bad range."""
    start, stop = pfn * PAGE, (pfn + 1) * PAGE
    if pfn >= 40:
        base = 44 * PAGE + 512
        start, stop = max(start - base, 0) + 40 * PAGE, min(stop - base, _LAST) + 40 * PAGE
    return any(start + DATA_START < end and first < stop + DATA_START for first, end in bad)


@dataclass(frozen=True)
class Step:
    """Requests that are made at the same time, after some hints."""

    hints: list[int]
    requests: list[list[int]]
    preferred: bool


pfns = st.one_of(st.integers(0, N_PAGES + 2), st.just(2**52 - 1))
steps = st.builds(
    Step,
    hints=st.lists(pfns, max_size=6),
    requests=st.lists(st.lists(pfns, min_size=1, max_size=12), min_size=1, max_size=4),
    preferred=st.booleans(),
)
bad_ranges = st.lists(
    st.tuples(st.integers(DATA_START, len(BLOB) - 1), st.integers(1, 2 * PAGE)).map(
        lambda pair: (pair[0], pair[0] + pair[1])
    ),
    max_size=3,
)


@settings(deadline=None, max_examples=60)
@given(
    todo=st.lists(steps, min_size=1, max_size=6),
    bad=bad_ranges,
    broken=st.sets(st.integers(1, 12), max_size=3),
    block_pages=st.sampled_from([1, 2, 4, 8]),
    n_blocks=st.integers(1, 16),
    latency_s=st.sampled_from([0.0, 1e-4, 1e-2]),
)
def test_pages_are_the_files_or_nobodys(
    todo: list[Step],
    bad: list[tuple[int, int]],
    broken: set[int],
    block_pages: int,
    n_blocks: int,
    latency_s: float,
) -> None:
    """Any requests at once, any faults: content, "not there" for what is bad, or the error."""
    link = Link(max_in_flight=4, part_bytes=3 * PAGE)
    link.latency_s = latency_s
    transport = FaultyTransport(link, sorted(bad, reverse=True), broken)
    image = RemoteImage(open_file(RemoteFile(transport)), link)
    transport.is_armed = True
    block = block_pages * PAGE
    options = CacheOptions(n_blocks * block, block_bytes=block, depth=3, window_bytes=4 * block)
    cache = BlockCache(image, link, options)

    async def ask(wanted: list[int], *, preferred: bool) -> None:
        try:
            rows, good = await cache.get(np.array(wanted, dtype=np.uint64), preferred=preferred)
        except SourceError as error:
            assert "the line is cut" in str(error)  # noqa: PT017  # others may have got theirs
            assert broken
            return
        for pfn, row, is_good in zip(wanted, rows, good, strict=True):
            if is_good:
                assert row.tobytes() == content(pfn)
            else:
                assert not row.any()
                assert content(pfn) is None or is_bad(pfn, bad)

    async def go() -> None:
        for step in todo:
            cache.hint(np.array(step.hints, dtype=np.uint64), preferred=step.preferred)
            async with anyio.create_task_group() as group:
                for wanted in step.requests:
                    group.start_soon(partial(ask, wanted, preferred=step.preferred))
            assert cache.n_bytes <= n_blocks * block
        cache.close()

    anyio.run(go)
