"""Flattened and compressed dumps behind a line: how they are indexed, and how pages travel."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from pipeline.flow.items import PageState
from stages.formats.flattened import END_RECORD, HEADER, record_header
from stages.reader.file_io import PlainFile
from stages.reader.flattened_file import FlattenedFile
from stages.reader.flattened_walk import HeaderWalk
from stages.reader.kdump_image import KdumpImage
from stages.reader.latency import Slowness, SlowTransport
from stages.reader.remote_file import RemoteFile
from stages.reader.remote_link import Link
from tests.support.kdump_writer import KdumpWriter, flatten

FAR = 0.02
"""Seconds: what the link is told that a request takes; nobody waits for it here."""


def behind_a_line(path: Path, latency_s: float = FAR) -> RemoteFile:
    """The file, as if each request took `latency_s`."""
    link = Link(max_in_flight=32, part_bytes=1 << 20)
    file = RemoteFile(SlowTransport(PlainFile(str(path)), Slowness(0.0), link))
    file.link.latency_s = latency_s
    return file


def stream_of(sizes: list[int]) -> bytes:
    """Records of these sizes, one behind the other, each filled from its number."""
    out = bytearray(HEADER)
    at = 0
    for nth, size in enumerate(sizes):
        out += record_header(at, size) + bytes([nth & 0xFF]) * size
        at += size
    return bytes(out + END_RECORD)


class TestFlattened:
    def test_equal_records_are_hopped_over(self, tmp_path: Path) -> None:
        """Large records of one size: headers only, many a request, and the same dump."""
        path = tmp_path / "flat"
        path.write_bytes(stream_of([3 << 20] * 40))
        file = behind_a_line(path)

        flat = FlattenedFile(file)

        assert flat.size == 40 * (3 << 20)
        assert file.link.stats.bytes < path.stat().st_size // 50
        assert flat.read((3 << 20) * 7 - 1, 2) == b"\x06\x07"
        flat.close()

    def test_small_records_are_streamed(self, tmp_path: Path) -> None:
        """Records of all sizes, far smaller than what travels in a round trip: the line's speed."""
        draw = random.Random(2)
        sizes = [draw.randrange(400, 60_000) for _ in range(600)]
        path = tmp_path / "flat"
        path.write_bytes(stream_of(sizes))
        file = behind_a_line(path)

        flat = FlattenedFile(file)

        assert flat.size == sum(sizes)
        # All bytes once, in parts of 1 MiB, beside the head and the first few records.
        assert file.link.stats.requests < path.stat().st_size // (1 << 20) + 12
        plain = FlattenedFile(PlainFile(str(path)))
        assert flat.read(1000, 100_000) == plain.read(1000, 100_000)
        flat.close()
        plain.close()

    @pytest.mark.parametrize("latency_s", [0.0, 1e-4, FAR])
    def test_headers_are_the_streams_own(self, tmp_path: Path, latency_s: float) -> None:
        """Whatever is guessed, a header comes from the place it was asked for, to the very end."""
        draw = random.Random(3)
        content = draw.randbytes(400_000)
        path = tmp_path / "bytes"
        path.write_bytes(content)
        walk = HeaderWalk(behind_a_line(path, latency_s))
        at = 0

        while at < len(content) + 3000:
            assert walk.read(at) == content[at : at + 16]
            at += draw.choice([16, 100, 100, 100, 5000, 5000, 5000, 5000, 9999])

    def test_cut_stream_says_so(self, tmp_path: Path) -> None:
        """A stream that ends inside a record is incomplete over a line too, not an endless walk."""
        path = tmp_path / "flat"
        path.write_bytes(stream_of([5000] * 30)[:-3000])

        flat = FlattenedFile(behind_a_line(path))

        assert flat.incomplete is not None
        assert flat.size == 30 * 5000 - (3000 - 16)
        flat.close()


class TestCompressed:
    N_PAGES = 900

    def dump(self, path: Path, *, flat: bool) -> dict[int, bytes]:
        """A compressed dump of pages that are far apart in the file, and what they hold."""
        writer = KdumpWriter(max_mapnr=self.N_PAGES)
        draw = random.Random(4)
        pages = {
            pfn: draw.randbytes(2000) + bytes(4096 - 2000) for pfn in range(3, self.N_PAGES, 2)
        }
        for pfn, page in pages.items():
            writer.page(pfn, page, codec="zlib")
        content = writer.pack()
        path.write_bytes(flatten(content) if flat else content)
        return pages

    @pytest.mark.parametrize("flat", [False, True])
    def test_pages_of_a_batch_travel_together(self, tmp_path: Path, flat: bool) -> None:
        """Pages far apart are decoded right, and their reads are one call of the transport."""
        path = tmp_path / "dump"
        pages = self.dump(path, flat=flat)
        file = behind_a_line(path, 1e-9)  # no gap is worth reading
        calls: list[int] = []
        fetch = file._transport.fetch
        image = KdumpImage(FlattenedFile(file) if flat else file)
        wanted = np.array(list(pages)[::40], dtype=np.uint64)
        out = np.empty((len(wanted), 4096), dtype=np.uint8)
        image.read_pages(wanted, out)

        def counted(requests: object) -> object:
            calls.append(len(requests))  # type: ignore[arg-type]
            return fetch(requests)  # type: ignore[arg-type]

        file._transport.fetch = counted  # type: ignore[assignment, method-assign]
        states = image.read_pages(wanted, out)

        assert (states == PageState.DATA).all()
        assert [bytes(row) for row in out] == [pages[pfn] for pfn in wanted.tolist()]
        assert len(calls) == 1
        assert calls[0] >= len(wanted)  # a page may lie in two records of the stream
        image.close()
