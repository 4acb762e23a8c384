"""Files behind a line: what is joined, cut into parts, and how long it takes."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.reader.file_io import PlainFile
from stages.reader.latency import Slowness, SlowTransport
from stages.reader.remote_file import RemoteFile
from stages.reader.remote_link import Link

SIZE = 300_000
CONTENT = bytes((at * 7 + at // 251) & 0xFF for at in range(SIZE))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("remote") / "file"
    file.write_bytes(CONTENT)
    return file


class Flaky(PlainFile):
    """Fails with EIO where a test says."""

    bad: range = range(0)

    def read_into(self, view: memoryview, off: int) -> int:
        if off in self.bad:
            raise OSError(errno.EIO, "Input/output error")
        return super().read_into(view, off)


class BadSector(PlainFile):
    """Reads come up to it, and fail there, as a disk's do."""

    at = 51_200

    def read_into(self, view: memoryview, off: int) -> int:
        if self.at <= off < self.at + 512:
            raise OSError(errno.EIO, "Input/output error")
        if off < self.at < off + len(view):
            view = view[: self.at - off]
        return super().read_into(view, off)


def remote(
    path: Path,
    slowness: Slowness | None = None,
    *,
    in_flight: int = 8,
    part_bytes: int = 1 << 16,
) -> tuple[RemoteFile, Flaky]:
    file = Flaky(str(path))
    link = Link(max_in_flight=in_flight, part_bytes=part_bytes)
    return RemoteFile(SlowTransport(file, slowness or Slowness(0.0), link)), file


class TestContents:
    @given(
        wanted=st.lists(
            st.tuples(st.integers(0, SIZE + 100), st.integers(1, 9000)), min_size=1, max_size=30
        ),
        latency=st.sampled_from([0.0, 0.001, 1.0]),
        part_bytes=st.sampled_from([512, 5000, 1 << 16]),
    )
    @settings(max_examples=80, deadline=None)
    def test_any_reads_at_once(
        self, path: Path, wanted: list[tuple[int, int]], latency: float, part_bytes: int
    ) -> None:
        """Reads in any order, near and far, joined or not, bring the file's own bytes."""
        file, _ = remote(path, part_bytes=part_bytes)
        file.link.latency_s = latency
        buffers = [bytearray(n_bytes) for _, n_bytes in wanted]

        got = file.read_batch([memoryview(buffer) for buffer in buffers], [at for at, _ in wanted])

        file.close()
        for (off, n_bytes), buffer, outcome in zip(wanted, buffers, got, strict=True):
            expected = CONTENT[off : off + n_bytes]
            assert outcome == len(expected)
            assert bytes(buffer[: len(expected)]) == expected

    def test_small_reads_come_from_kept_blocks(self, path: Path) -> None:
        """Headers that lie side by side cost one request; the end of the file is the end."""
        file, _ = remote(path)

        pieces = b"".join(file.read(at, 100) for at in range(0, 5000, 100))

        assert pieces == CONTENT[:5000]
        assert file.link.stats.requests == 1
        assert file.read(SIZE - 10, 100) == CONTENT[-10:]
        assert file.read(SIZE, 100) == b""
        file.close()

    @pytest.mark.parametrize(("off", "n_bytes"), [(40_000, 20_000), (10, 150_000)])
    def test_bad_sector_is_not_the_end(self, path: Path, off: int, n_bytes: int) -> None:
        """Bytes before a bad sector come alone, and the rest is an error, however much it is."""
        file = RemoteFile(SlowTransport(BadSector(str(path)), Slowness(0.0), Link(
            max_in_flight=8, part_bytes=1 << 16
        )))  # fmt: skip

        with pytest.raises(OSError, match="Input/output error"):
            file.read(off, n_bytes)

        assert file.read(BadSector.at + 512, 1000) == CONTENT[BadSector.at + 512 :][:1000]
        assert file.read(BadSector.at - 1000, 1000) == CONTENT[BadSector.at - 1000 :][:1000]
        file.close()

    def test_one_bad_read_is_its_own(self, path: Path) -> None:
        """An error of the device concerns the read that met it, and no other."""
        file, inner = remote(path)
        inner.bad = range(100_000, 100_001)
        buffers = [bytearray(100) for _ in range(3)]

        got = file.read_batch([memoryview(each) for each in buffers], [0, 100_000, 200_000])

        assert got[0] == got[2] == 100
        assert isinstance(got[1], OSError)
        file.close()


class TestJoining:
    def test_gap_follows_the_line(self, path: Path) -> None:
        """Reads are joined over a gap where another request would cost more than its bytes."""
        for latency, n_requests in ((0.0, 2), (1.0, 1)):
            file, _ = remote(path)
            file.link.latency_s = latency
            file.read_batch([memoryview(bytearray(10)), memoryview(bytearray(10))], [0, 5000])
            assert file.link.stats.requests == n_requests
            assert file.link.stats.joined == 2 - n_requests
            file.close()

    def test_window_grows_with_latency(self) -> None:
        """The slower the answers, the more has to be under way; never less than the least."""
        link = Link(max_in_flight=4, part_bytes=1 << 20)
        sizes = []
        for latency in (0.0, 0.01, 0.1):
            link.latency_s = latency
            sizes.append(link.window_bytes)

        assert sizes[0] < sizes[1] < sizes[2]


class TestDelay:
    @staticmethod
    def seconds(path: Path, slowness: Slowness, n_reads: int, in_flight: int) -> float:
        file, _ = remote(path, slowness, in_flight=in_flight)
        offs = [nth * 9000 for nth in range(n_reads)]
        began = time.perf_counter()
        file.read_batch([memoryview(bytearray(10)) for _ in offs], offs)
        file.close()
        return time.perf_counter() - began

    def test_requests_wait_side_by_side(self, path: Path) -> None:
        """Eight requests of 20 ms take 20 ms eight at a time, 80 ms two at a time."""
        assert 0.02 <= self.seconds(path, Slowness(0.02), 8, 8) < 0.06
        assert 0.08 <= self.seconds(path, Slowness(0.02), 8, 2) < 0.16

    def test_jitter_only_adds(self, path: Path) -> None:
        """A request with jitter waits at least its delay."""
        assert self.seconds(path, Slowness(0.02, jitter_s=0.01), 1, 1) >= 0.02

    def test_bandwidth_is_shared(self, path: Path) -> None:
        """Ten pieces of 10 KB at 1 MB/s take 0.1 s, however many are under way."""
        slowness = Slowness(0.0, bytes_per_s=1e6)
        file, _ = remote(path, slowness, in_flight=10)
        began = time.perf_counter()
        file.read_batch(
            [memoryview(bytearray(10_000)) for _ in range(10)], [at * 25_000 for at in range(10)]
        )
        file.close()

        assert time.perf_counter() - began >= 0.095


def test_holes_are_the_files_own(tmp_path: Path) -> None:
    """A sparse file's holes are known over a line too."""
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as out:
        out.truncate(1 << 20)
        out.seek(1 << 19)
        out.write(b"x")
    file, _ = remote(sparse)
    holes: Iterator[tuple[int, int]] = file.holes(0, 1 << 19)

    assert list(holes) == [(0, 1 << 19)]
    file.close()
