"""From runs of written pages to PT_LOADs. Pure; addresses and sizes are bytes.

Every load of the source becomes a row of segments that cover it without a gap. What was left out
lies in the tail of the segment before it, so the next one goes on exactly where a tail ends::

    source load   |---------------------------------------------|
    written            [ run 1 ][ run 2 ]          [ run 3 ]
    segments      |~~~~|========================~~~|=========~~~|     ~ p_memsz beyond p_filesz

Pages that several loads describe (the kernel's text, as a rule) are written once, and the segments
of all of them point there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from stages.formats.elf import PT_LOAD, ProgramHeader

PF_RWX: Final = 7
"""What /proc/vmcore has, and nobody looks at."""


class Load(NamedTuple):
    """Memory [start, stop) as the source describes it, and the virtual address of its start."""

    start: int
    stop: int
    vaddr: int


class Run(NamedTuple):
    """Written pages: memory [start, stop) is at `off` of the file."""

    start: int
    stop: int
    off: int


def split_loads(loads: Iterable[Load]) -> tuple[list[Load], list[Load]]:
    """Disjoint loads, ascending, and those that overlap one of them, in the order they came.

    Large loads come first: what remains is short.
    """
    starts: list[int] = []
    disjoint: list[Load] = []
    others: list[Load] = []
    for load in sorted(loads, key=lambda one: one.start - one.stop):
        at = bisect_left(starts, load.start)
        is_free = (at == 0 or disjoint[at - 1].stop <= load.start) and (
            at == len(starts) or load.stop <= starts[at]
        )
        if is_free:
            starts.insert(at, load.start)
            disjoint.insert(at, load)
        else:
            others.append(load)
    return disjoint, others


class _Row:
    """The segments of one load, made as runs come; ascending."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self._start = load.start
        self._off = 0
        self._file_size = 0

    def add(self, run: Run) -> Iterator[ProgramHeader]:
        """A run that overlaps the load; what it completes."""
        start = max(run.start, self.load.start)
        if self._file_size == 0:
            # crash takes the first p_offset for the end of the headers, so it must not be 0.
            self._off = run.off
        if start > self._start:
            yield self._segment(start)
        self._start, self._off = start, run.off + start - run.start
        self._file_size = min(run.stop, self.load.stop) - start

    def settle(self) -> Iterator[ProgramHeader]:
        """The segment so far, which a run follows that is not here yet."""
        if self._file_size:
            stop = self._start + self._file_size
            yield self._segment(stop)
            self._start, self._file_size = stop, 0

    def finish(self, end_off: int) -> ProgramHeader:
        """The last segment, whose tail reaches the load's end."""
        if self._file_size == 0:
            self._off = end_off  # any place inside the file does
        return self._segment(self.load.stop)

    def _segment(self, stop: int) -> ProgramHeader:
        load = self.load
        return ProgramHeader(
            p_type=PT_LOAD,
            p_flags=PF_RWX,
            p_offset=self._off,
            p_vaddr=load.vaddr + self._start - load.start,
            p_paddr=self._start,
            p_filesz=self._file_size,
            p_memsz=stop - self._start,
            p_align=0,
        )


class SegmentBuilder:
    """Takes runs in ascending order of memory; gives program headers as they become final."""

    def __init__(self, loads: Sequence[Load], most_bytes: int) -> None:
        """A segment gets no run added that would take it beyond `most_bytes`.

        A header can be written when the next segment begins: without a limit that might be never.
        """
        self._disjoint, self._others = split_loads(loads)
        self._most_bytes = most_bytes
        self._open: Run | None = None
        self._row: _Row | None = None
        self._next = 0
        # Runs that the other loads will need in the end.
        self._shared: list[Run] = []
        self._other_starts = sorted(load.start for load in self._others)
        self._other_reach = max((load.stop for load in self._others), default=0)
        self.n_tails = 0
        self.has_pair = False
        """A segment goes on exactly where the tail of the one before it ends."""
        self._tail_end: int | None = None

    @property
    def n_others(self) -> int:
        return len(self._others)

    def is_shared(self, start: int, stop: int) -> bool:
        """Whether memory [start, stop) may be described by more than one load."""
        return bool(self._others) and self._other_starts[0] < stop and start < self._other_reach

    def add(self, run: Run) -> list[ProgramHeader]:
        """One more run, above all before; the headers that it completes."""
        last = self._open
        if last is not None and (last.stop, last.off + last.stop - last.start) == (
            run.start,
            run.off,
        ):
            joined = Run(last.start, run.stop, last.off)
            if joined.stop - joined.start <= self._most_bytes:
                self._open = joined
                return []
        done = self._close()
        if last is not None and last.stop == run.start and self._row is not None:
            done += self._noted(self._row.settle())
        self._open = run
        return done

    def finish(self, end_off: int) -> list[ProgramHeader]:
        """Everything that is left; pages end at `end_off` of the file."""
        done = self._close()
        done += self._noted(self._leave(end_off))
        while self._next < len(self._disjoint):
            self._enter()
            done += self._noted(self._leave(end_off))
        for load in self._others:
            done += self._noted(_describe(load, self._shared, end_off))
        return done

    def _close(self) -> list[ProgramHeader]:
        run, self._open = self._open, None
        if run is None:
            return []
        if self.is_shared(run.start, run.stop):
            self._shared.append(run)
        return self._noted(self._place(run))

    def _place(self, run: Run) -> Iterator[ProgramHeader]:
        """Segments of the disjoint loads that end because of `run`."""
        while True:
            if self._row is not None and self._row.load.stop <= run.start:
                yield from self._leave(run.off)
            if self._row is None:
                if self._next == len(self._disjoint) or (
                    self._disjoint[self._next].start >= run.stop
                ):
                    return
                self._enter()
                continue
            yield from self._row.add(run)
            if self._row.load.stop > run.stop:
                return
            yield from self._leave(run.off)

    def _enter(self) -> None:
        self._row = _Row(self._disjoint[self._next])
        self._next += 1

    def _leave(self, end_off: int) -> Iterator[ProgramHeader]:
        row, self._row = self._row, None
        if row is not None:
            yield row.finish(end_off)

    def _noted(self, headers: Iterable[ProgramHeader]) -> list[ProgramHeader]:
        out = list(headers)
        for header in out:
            self.has_pair |= self._tail_end == header.p_paddr
            has_tail = header.p_filesz < header.p_memsz
            self.n_tails += has_tail
            self._tail_end = header.p_paddr + header.p_memsz if has_tail else None
        return out


def _describe(load: Load, runs: Sequence[Run], end_off: int) -> Iterator[ProgramHeader]:
    """The segments of a load whose pages have all been written."""
    row = _Row(load)
    at = bisect_left(runs, load.start, key=lambda run: run.stop - 1)
    for run in runs[at:]:
        if run.start >= load.stop:
            break
        yield from row.add(run)
    yield row.finish(end_off)


def mark_pair(tail: ProgramHeader) -> tuple[ProgramHeader, ProgramHeader]:
    """The tail of a segment described once more, as two segments without any bytes.

    Images with notes of QEMU are read as having zeros in their tails, unless a load goes on where a
    tail ends: a dump where none does needs this to be read right.
    """
    start = tail.p_paddr + tail.p_filesz
    stop = tail.p_paddr + tail.p_memsz
    middle = start + (stop - start) // 2
    vaddr = tail.p_vaddr + tail.p_filesz
    first = tail._replace(p_paddr=start, p_vaddr=vaddr, p_filesz=0, p_memsz=middle - start)
    second = first._replace(p_paddr=middle, p_vaddr=vaddr + middle - start, p_memsz=stop - middle)
    return first, second
