"""Pages that can't be read, and sources that change under the reader."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from stages.demo.build import DemoFacts
from stages.demo.kinds import PageKind
from stages.formats.kdump import MAIN_HEADER_SIZE, MainHeader, Status
from stages.reader.probe import open_image
from tests.robust.faulty import faulty_command
from tests.robust.running import SLOW, Done, call, finish, left_in, process, started, wait_until
from tests.robust.spoil import tables, write_at
from tests.robust.test_signals import PIPES, has_pages

MODES = ["inline", "threads", "processes"]
PAGE = 4096


def ranges_of(demo: DemoFacts, pfns: list[int]) -> list[tuple[int, int]]:
    starts = [demo.addresses.file_off(pfn * PAGE) for pfn in pfns]
    return [(start, start + PAGE) for start in starts]


def bad_pages(demo: DemoFacts) -> list[int]:
    """Pages with content that level 31 keeps: three in a row, and one alone."""
    wanted = np.flatnonzero((demo.kinds == PageKind.KERNEL) & ~demo.zero)
    heads = wanted[:-2][(np.diff(wanted, n=2) == 0) & (np.diff(wanted)[1:] == 1)]
    first = int(heads[len(heads) // 2])
    return [first, first + 1, first + 2, int(wanted[-1])]


def dump_with_bad_pages(demo: DemoFacts, pfns: list[int], *words: object) -> Done:
    command = faulty_command(demo.path, ranges_of(demo, pfns), "dump", *words)
    with process(command, **PIPES) as running:
        return finish(running)


@pytest.mark.parametrize("mode", MODES)
class TestPolicies:
    def words(self, mode: str, policy: str, demo: DemoFacts, target: Path) -> list[object]:
        mode_words = ["--set", f"compressor.mode={mode}", "--set", "compressor.workers=2"]
        return [*mode_words, "--on-read-error", policy, demo.path, target]

    def test_zero(self, mode: str, demo: DemoFacts, target: Path) -> None:
        """Bad pages are zeros in a dump that has its name, says so, and is otherwise whole."""
        bad = bad_pages(demo)

        done = dump_with_bad_pages(demo, bad, *self.words(mode, "zero", demo, target))

        self.check(done, demo, target, bad)
        image = open_image(str(target))
        pages = np.empty((len(bad), PAGE), dtype=np.uint8)
        image.read_pages(np.array(bad, dtype=np.uint64), pages)
        assert not pages.any()
        assert np.array_equal(image.saved.mask(0, demo.max_mapnr), demo.kept(31))
        image.close()
        said = call("verify", target, "--against", demo.path).out
        assert f"{int(demo.kept(31).sum()) - len(bad)} of " in said

    def test_skip(self, mode: str, demo: DemoFacts, target: Path) -> None:
        """Bad pages are not in the dump, and everything else is."""
        bad = bad_pages(demo)

        done = dump_with_bad_pages(demo, bad, *self.words(mode, "skip", demo, target))

        self.check(done, demo, target, bad)
        image = open_image(str(target))
        there = image.saved.mask(0, demo.max_mapnr)
        image.close()
        assert np.flatnonzero(demo.kept(31) & ~there).tolist() == bad
        said = call("verify", target, "--against", demo.path).out
        n_good = int(demo.kept(31).sum()) - len(bad)
        assert f"{n_good} of {n_good} pages good" in said

    def test_fail(self, mode: str, demo: DemoFacts, target: Path) -> None:
        """The first bad page ends the run; its address is in the line."""
        bad = bad_pages(demo)

        done = dump_with_bad_pages(demo, bad, *self.words(mode, "fail", demo, target))

        assert done.code in (1, 3)
        assert f"page at paddr {bad[0] * PAGE:#x}" in done.error
        assert left_in(target.parent) == (["dump.partial"] if done.code == 3 else [])

    def check(self, done: Done, demo: DemoFacts, target: Path, bad: list[int]) -> None:
        done.failed(3, f"{len(bad)} pages of {demo.path} could not be read", str(target))
        assert left_in(target.parent) == ["dump"]
        told = [
            (int(one["first_pfn"], 16), one["n_pages"])
            for one in done.events
            if one["event"] == "pages_unreadable"
        ]
        assert told == [(bad[0], 3), (bad[3], 1)]
        assert done.event("dump_incomplete")["pages_missing"] == len(bad)
        head = MainHeader.parse(target.read_bytes()[:MAIN_HEADER_SIZE])
        assert head.status & Status.INCOMPLETE


def test_into_a_pipe(demo: DemoFacts, tmp_path: Path) -> None:
    """A stream says it too, with a last record that rewrites the head."""
    target = tmp_path / "dump.flat"
    bad = bad_pages(demo)
    command = faulty_command(demo.path, ranges_of(demo, bad), "dump", demo.path, "-")
    with target.open("wb") as file, process(command, **{**PIPES, "stdout": file}) as running:
        done = finish(running)

    done.failed(3, f"{len(bad)} pages of")
    assert "marked incomplete" in call("verify", target).out


@pytest.mark.parametrize("what", ["header", "program headers", "notes"])
def test_bad_headers(what: str, demo: DemoFacts, target: Path) -> None:
    """EIO where the image says what it is: one line with its name, nothing left."""
    start = {"header": 0, "program headers": 64, "notes": 0x200}[what]
    bad = [(start, start + 100)]

    with process(faulty_command(demo.path, bad, "dump", demo.path, target), **PIPES) as running:
        done = finish(running)

    assert done.failed(1) == f"{demo.path}: Input/output error"
    assert left_in(target.parent) == []


def test_bad_page_tables(demo: DemoFacts, target: Path) -> None:
    """EIO in the top page table: level 31 says where it got stuck, level 1 goes without."""
    (_, off), *_ = tables(demo, demo.path)
    bad = [(off, off + PAGE)]
    with process(faulty_command(demo.path, bad, "dump", demo.path, target), **PIPES) as running:
        finish(running).failed(1, "filter: ")
    assert left_in(target.parent) == []

    words = faulty_command(demo.path, bad, "dump", "-d", "1", demo.path, target)
    with process(words, **PIPES) as running:
        finish(running).failed(3, "1 page of")


def test_bad_struct_pages(demo: DemoFacts, target: Path) -> None:
    """What can't be classified is kept: nothing is lost but the bad pages themselves."""
    first = demo.addresses.memmap_pfn + 7
    bad = [first, first + 1]

    done = dump_with_bad_pages(demo, bad, "--on-read-error", "skip", demo.path, target)

    done.failed(3, "2 pages of")
    image = open_image(str(target))
    there = image.saved.mask(0, demo.max_mapnr)
    image.close()
    assert np.flatnonzero(demo.kept(31) & ~there).tolist() == bad
    said = f"readable struct page: {2 * PAGE // 64} pages"
    assert any(said in one.get("text", "") for one in done.events)


class TestSourceThatChanges:
    def test_is_cut(self, demo: DemoFacts, spoilt: Path, target: Path) -> None:
        """Pages that vanish while the image is read are counted, not made up, and no crash."""
        partial = target.with_name("dump.partial")
        words = ("--compress-level", "12", "--on-read-error", "skip")
        with started("dump", *SLOW, *words, spoilt, target) as running:
            wait_until(lambda: has_pages(partial), "some pages")
            os.truncate(spoilt, 20_000_000)
            done = finish(running)

        done.failed(3, "could not be read")
        n_lost = done.event("dump_incomplete")["pages_missing"]
        assert n_lost > 100
        n_good = int(demo.kept(31).sum()) - n_lost
        said = call("verify", target, "--against", demo.path).out
        assert f"{n_good} of {n_good} pages good" in said

    def test_is_overwritten(self, spoilt: Path, target: Path) -> None:
        """Other contents than before: nobody can tell, but the dump is whole and decodes."""
        partial = target.with_name("dump.partial")
        size = spoilt.stat().st_size
        with started("dump", *SLOW, "--compress-level", "12", spoilt, target) as running:
            wait_until(lambda: has_pages(partial), "some pages")
            for _ in range(3):
                write_at(spoilt, 20_000_000, np.random.default_rng().bytes(size - 20_000_000))
            finish(running).succeeded()

        assert ", 0 problems" in call("verify", target).out

    def test_is_removed(self, demo: DemoFacts, spoilt: Path, target: Path) -> None:
        """An open file stays readable without its name."""
        partial = target.with_name("dump.partial")
        with started("dump", *SLOW, "--compress-level", "12", spoilt, target) as running:
            wait_until(lambda: has_pages(partial), "some pages")
            spoilt.unlink()
            finish(running).succeeded()

        assert call("verify", target, "--against", demo.path).code == 0
