"""Traces: what is written is read back, and what is broken is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import FormatError, TruncatedError
from stages.cache.trace import TraceReader, TraceWriter
from stages.inspect.trace import replay


def pfns_of(*pfns: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.array(pfns, dtype=np.uint64)


def written(path: Path, requests: list[tuple[tuple[int, ...], bool]]) -> Path:
    with path.open("wb") as file:
        trace = TraceWriter(file, 4096)
        for pfns, preferred in requests:
            trace.add(pfns_of(*pfns), preferred=preferred)
    return path


REQUESTS = [((1, 2, 3), True), ((), False), ((1 << 40,), False), ((2, 1), True)]


def test_round_trip(tmp_path: Path) -> None:
    """Requests come back in order, with their kind."""
    trace = TraceReader(str(written(tmp_path / "t", REQUESTS)))

    assert trace.page_size == 4096
    assert [(tuple(one.pfns.tolist()), one.preferred) for one in trace] == REQUESTS


def test_cut_and_foreign_files_are_refused(tmp_path: Path) -> None:
    """A file that ends inside a request, or is no trace, has one clear error."""
    whole = written(tmp_path / "t", REQUESTS).read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-8])
    (tmp_path / "other").write_bytes(b"\x7fELF" + bytes(100))
    (tmp_path / "long").write_bytes(whole[:16] + (1 << 50).to_bytes(8, "little"))

    with pytest.raises(TruncatedError):
        list(TraceReader(str(tmp_path / "cut")))
    with pytest.raises(FormatError, match="magic"):
        TraceReader(str(tmp_path / "other"))
    with pytest.raises(FormatError, match="pages"):
        list(TraceReader(str(tmp_path / "long")))


def test_replay_counts(tmp_path: Path) -> None:
    """Hits, requests and waiting time of a trace that is easy to follow by hand."""
    path = written(tmp_path / "t", [((1, 2, 9), False), ((1, 2), False), ((9,), False)])

    (row,) = replay(str(path), policies=["lru"], capacities=[8 * 4096], latency_ms=5, block_pages=1)

    assert (row.pages, row.hits, row.requests) == (6, 3, 2)
    assert row.wait_s == pytest.approx(0.010)
