"""A target that has no room: what fits stays usable, and what is left says what it is."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.demo.build import DemoFacts
from stages.reader.kdump_image import KdumpImage
from stages.reader.probe import open_image
from tests.robust.left import check_left
from tests.robust.running import Done, call, left_in, run

WORDS = ("dump", "--set", "reader.batch_pages=64")
"""Small batches: what is lost at the end is at most two of them."""


@pytest.fixture(scope="module")
def whole(demo: DemoFacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dump that there would be on a larger disk."""
    target = tmp_path_factory.mktemp("whole") / "dump"
    run(*WORDS, demo.path, target).succeeded()
    return target


@pytest.fixture(scope="module")
def data_start(whole: Path) -> int:
    """Bytes of head, bitmaps and descriptors."""
    image = open_image(str(whole))
    assert isinstance(image, KdumpImage)
    start = image.header.descriptors_start + 24 * image.n_dumped
    image.close()
    return start


def run_with_limit(n_bytes: int, *words: object) -> Done:
    """A run that may make no file larger than `n_bytes`: a disk that gets full, without root."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))

    return run(*words, preexec_fn=limit)


class TestLimitedFile:
    @pytest.mark.parametrize("part", ["nothing", "head", "bitmaps", "descriptors", "zero page"])
    def test_no_room_for_pages(
        self, part: str, demo: DemoFacts, data_start: int, target: Path
    ) -> None:
        """A dump without a single page is no use: code 1, and nothing is left."""
        room = {
            "nothing": 0,
            "head": 4000,
            "bitmaps": 20_000,
            "descriptors": data_start - 1,
            "zero page": data_start + 4000,
        }

        done = run_with_limit(room[part], *WORDS, demo.path, target)

        done.failed(1, f"{target}.partial: File too large")
        assert left_in(target.parent) == []

    @pytest.mark.parametrize("percent", [20, 50, 90])
    def test_room_for_some_pages(
        self, percent: int, demo: DemoFacts, whole: Path, data_start: int, target: Path
    ) -> None:
        """In the middle of the data: code 3, and all but the last pages that fitted are there."""
        n_data = whole.stat().st_size - data_start
        room = data_start + n_data * percent // 100

        done = run_with_limit(room, *WORDS, demo.path, target)

        n_kept = int(demo.kept(31).sum())
        check_left(done, target.with_name("dump.partial"), demo.path, n_kept * percent // 200)

    def test_one_byte_short(self, demo: DemoFacts, whole: Path, target: Path) -> None:
        """Nearly whole is not whole."""
        done = run_with_limit(whole.stat().st_size - 1, *WORDS, demo.path, target)

        n_kept = int(demo.kept(31).sum())
        check_left(done, target.with_name("dump.partial"), demo.path, n_kept * 9 // 10)

    def test_enough(self, demo: DemoFacts, whole: Path, target: Path) -> None:
        """The same room as the whole dump takes is enough: nothing extra is written."""
        run_with_limit(whole.stat().st_size, *WORDS, demo.path, target).succeeded()

        assert left_in(target.parent) == ["dump"]

    @pytest.mark.parametrize("mode", ["inline", "threads", "processes"])
    def test_modes(self, mode: str, demo: DemoFacts, data_start: int, target: Path) -> None:
        """However the pages are compressed."""
        words = [*WORDS, "--set", f"compressor.mode={mode}", "--set", "compressor.workers=2"]

        done = run_with_limit(data_start + 800_000, *words, demo.path, target)

        check_left(done, target.with_name("dump.partial"), demo.path, 1000)

    def test_aiofiles(self, demo: DemoFacts, data_start: int, target: Path) -> None:
        """Through the other writer too."""
        words = [*WORDS, "--set", "sink.write_mode=aiofiles"]

        done = run_with_limit(data_start + 800_000, *words, demo.path, target)

        check_left(done, target.with_name("dump.partial"), demo.path, 1000)

    def test_flattened_file(self, demo: DemoFacts, target: Path) -> None:
        """A stream without its end opens nowhere: nothing is left."""
        done = run_with_limit(800_000, *WORDS, "--flatten", demo.path, target)

        done.failed(1, f"{target}: File too large")
        assert left_in(target.parent) == []

    def test_old_dump_stays(self, demo: DemoFacts, target: Path) -> None:
        """-f on a full disk does not cost the dump that is there."""
        target.write_bytes(b"old")

        run_with_limit(4000, *WORDS, "-f", demo.path, target).failed(1, "File too large")

        assert target.read_bytes() == b"old"
        assert left_in(target.parent) == ["dump"]


def mount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], check=True)


@pytest.mark.lab
class TestSmallFileSystem:
    """The same on a real one: needs root, to mount it."""

    @pytest.fixture
    def disk(self, tmp_path: Path) -> Iterator[Path]:
        folder = tmp_path / "disk"
        folder.mkdir()
        mount(folder, "size=1m")
        yield folder
        subprocess.run(["umount", folder], check=True)

    def resize(self, disk: Path, options: str) -> None:
        mount(disk, f"remount,{options}")

    @pytest.mark.parametrize("kib", [4, 8, 16, 24, 64, 128])
    def test_no_room_for_pages(self, kib: int, demo: DemoFacts, disk: Path) -> None:
        """ENOSPC before there is a page: code 1, and nothing is left."""
        self.resize(disk, f"size={kib}k")

        done = run(*WORDS, demo.path, disk / "dump")

        done.failed(1, f"{disk}/dump.partial: No space left on device")
        assert left_in(disk) == []

    @pytest.mark.parametrize("kib", [400, 1000, 1700])
    def test_room_for_some_pages(
        self, kib: int, demo: DemoFacts, data_start: int, disk: Path
    ) -> None:
        """ENOSPC in the middle of the data: code 3, and what fitted is there."""
        self.resize(disk, f"size={kib}k")

        done = run(*WORDS, demo.path, disk / "dump")

        n_least = (kib * 1024 - data_start) // 800
        check_left(done, disk / "dump.partial", demo.path, n_least)

    def test_what_is_left_is_refiltered(self, demo: DemoFacts, disk: Path, target: Path) -> None:
        """The rest of a dump is a source like any other, and stays marked."""
        done = run(*WORDS, "-d", "0", "--compress", "none", demo.path, disk / "dump")
        check_left(done, disk / "dump.partial", demo.path, 100)

        for form in "kdump", "elf":
            words = ("dump", "-f", "-d", "1", "--format", form, disk / "dump.partial", target)
            again = run(*words)
            again.failed(3, "is incomplete: marked incomplete")
            assert "marked incomplete" in again.event("source_incomplete")["text"]
            verified = call("verify", target, "--against", demo.path)
            assert verified.code == 1
            assert "the dump is incomplete" in verified.out

    def test_read_only(self, demo: DemoFacts, disk: Path) -> None:
        """A read-only file system is refused at once."""
        self.resize(disk, "ro")

        run(*WORDS, demo.path, disk / "dump").failed(1, "dump.partial: Read-only file system")

    def test_no_inodes(self, demo: DemoFacts, disk: Path) -> None:
        """Too many files already: no inode for the dump."""
        self.resize(disk, "nr_inodes=2")
        (disk / "other").touch()

        run(*WORDS, demo.path, disk / "dump").failed(1, "No space left on device")

    def test_demo(self, disk: Path) -> None:
        """The demo wants room for its image before it builds it: a mapping would be a SIGBUS."""
        run("demo", "--directory", disk).failed(1, f"{disk}: 1.0 MiB free, the demo takes")

        assert left_in(disk) == []

    def test_statistics(self, demo: DemoFacts, disk: Path, target: Path) -> None:
        """A --stats file that can't be written is told of; the dump is there nevertheless."""
        (disk / "other").write_bytes(bytes(1 << 20))

        done = run(*WORDS, "--stats", disk / "run.json", demo.path, target)

        said = done.succeeded().event("stats_not_written")
        assert (said["path"], said["text"]) == (f"{disk}/run.json", "No space left on device")
        assert left_in(disk) == ["other"]
        assert call("verify", target, "--against", demo.path).code == 0
