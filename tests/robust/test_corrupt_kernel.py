"""Images whose kernel was hit: page tables, section table, struct pages."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest

from stages.demo.build import DemoFacts, build_demo_image
from stages.demo.kinds import PageKind
from stages.reader.probe import open_image
from tests.robust.guard import bounded
from tests.robust.running import QUICK, Done, call, left_in
from tests.robust.spoil import (
    data_off,
    entries,
    read_at,
    tables,
    top_table,
    word_at,
    write_at,
    write_words,
)

PRESENT = 3


def dump(source: Path, target: Path, *words: object) -> Done:
    """A dump in bounded time and memory."""
    with bounded():
        return call("dump", *QUICK, "--compress", "none", *words, source, target)


def one_line_at_most(done: Done) -> None:
    """It went well, or the line is no surprise."""
    assert done.code in (0, 1)
    if done.code:
        assert "unexpected" not in done.error
        assert not re.match(r"(\w+: )?[A-Z]\w+(Error|Exception): ", done.error)


def corrupted(demo: DemoFacts, how: str, level: int) -> int:
    """An entry that no kernel has."""
    match how:
        case "itself":
            return top_table(demo) | PRESENT
        case "first page":
            return PRESENT
        case "past the end":
            return (1 << 40) | PRESENT
        case "all ones":
            return (1 << 64) - 1
        case "leaf":
            return top_table(demo) | PRESENT | 0x80
        case "gone":
            return 0
    raise AssertionError((how, level))


HOWS = ["itself", "first page", "past the end", "all ones", "leaf", "gone"]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("level", [0, 1, 2])
class TestPageTables:
    @pytest.fixture
    def source(self, how: str, level: int, demo: DemoFacts, spoilt: Path) -> Path:
        """Every present entry of the tables of one level points to the wrong place."""
        for depth, off in list(tables(demo, demo.path)):
            if depth == level:
                for index in entries(spoilt, off):
                    write_words(spoilt, off + 8 * index, corrupted(demo, how, level))
        return spoilt

    def test_dump(self, source: Path, target: Path) -> None:
        """Level 31 ends with one line that says where the walk ended, and leaves nothing."""
        done = dump(source, target, "-d", "31")

        one_line_at_most(done)
        assert left_in(target.parent) == ([] if done.code else ["dump"])

    def test_dump_at_level_1(self, source: Path, target: Path) -> None:
        """Level 1 needs no page table."""
        dump(source, target, "-d", "1").succeeded()

        assert call("verify", target, "--against", source).code == 0

    @pytest.mark.parametrize(
        "words", [["info"], ["dmesg"], ["translate", "ffff888cc0000000", "ffffffffa0e00000"]]
    )
    def test_other_commands(self, words: list[str], source: Path) -> None:
        """They answer, or end with one line."""
        with bounded():
            done = call(words[0], source, *words[1:])

        assert done.err == "" or done.error


def test_tables_full_of_cycles(demo: DemoFacts, spoilt: Path, target: Path) -> None:
    """512 entries that all lead back to the top table: 512 to the power of 4 paths, one line."""
    off = demo.addresses.file_off(top_table(demo))
    write_words(spoilt, off, *[top_table(demo) | PRESENT] * 512)
    one_line_at_most(dump(spoilt, target, "-d", "31"))
    with bounded():
        one_line_at_most(call("info", spoilt))


def test_run_that_fails_says_its_doubts(demo: DemoFacts, spoilt: Path, target: Path) -> None:
    """Without page tables the section table is not found; that they are doubtful is said first."""
    write_words(spoilt, demo.addresses.file_off(top_table(demo)), *[0] * 512)
    done = dump(spoilt, target, "-d", "31")

    said = [one["text"] for one in done.events if one["event"] == "filter_warning"]
    assert done.code == 1
    assert any("phys_base" in text for text in said)


def sections(demo: DemoFacts) -> tuple[int, int]:
    """Bytes in the file of the roots, and of the first root's sections."""
    roots = data_off(demo, demo.symbols["mem_section"])
    first = word_at(demo.path, roots)
    return roots, data_off(demo, first)


BAD_WORDS = [0, 1, 0xF, (1 << 64) - 1, 1 << 63, 0xFFFF_8880_0000_0000, 0x7FFF_FFFF_FFFF_F00F]


class TestSections:
    @pytest.mark.parametrize("word", BAD_WORDS)
    def test_root(self, word: int, demo: DemoFacts, spoilt: Path, target: Path) -> None:
        """A root that points nowhere."""
        write_words(spoilt, sections(demo)[0], word)
        one_line_at_most(dump(spoilt, target, "-d", "31"))

    def test_roots_all_the_same(self, demo: DemoFacts, spoilt: Path, target: Path) -> None:
        """Every root points to the same sections: the same memory described again and again."""
        roots, _ = sections(demo)
        write_words(spoilt, roots, *[word_at(demo.path, roots)] * 2048)
        one_line_at_most(dump(spoilt, target, "-d", "31"))

    @pytest.mark.parametrize("word", BAD_WORDS)
    def test_map(self, word: int, demo: DemoFacts, spoilt: Path, target: Path) -> None:
        """Struct pages that are nowhere: the section's pages are kept, or the line says why."""
        write_words(spoilt, sections(demo)[1], word)
        done = dump(spoilt, target, "-d", "31")

        one_line_at_most(done)
        if done.code == 0:
            image = open_image(str(target))
            kept = image.saved.mask(0, demo.max_mapnr)
            image.close()
            assert not (demo.kept(31) & ~kept)[:32768].any()

    def test_random(self, demo: DemoFacts, spoilt: Path, target: Path) -> None:
        """A section table of noise."""
        _, first = sections(demo)
        write_at(spoilt, first, np.random.default_rng(5).bytes(4096))
        one_line_at_most(dump(spoilt, target, "-d", "31"))


class TestStructPages:
    def test_absurd_orders_of_free_blocks(
        self, demo: DemoFacts, spoilt: Path, target: Path
    ) -> None:
        """Every free block says that it has 2 to the power of 4 billion pages: all are kept."""
        free = np.flatnonzero(demo.kinds == PageKind.FREE)
        for pfn in free.tolist():
            off = demo.addresses.file_off(demo.addresses.memmap_paddr(pfn))
            page = bytearray(read_at(spoilt, off, 64))
            (mapcount,) = struct.unpack_from("<I", page, 48)
            if mapcount >= 0xFFFF_FF00 - 0x1000:
                struct.pack_into("<Q", page, 40, 0xFFFF_FFFF)
                write_at(spoilt, off, bytes(page))

        done = dump(spoilt, target, "-d", "16").succeeded()

        said = [one["text"] for one in done.events if one["event"] == "filter_warning"]
        assert any("absurd order" in text for text in said)
        n_free = done.event("dump_finished")["pages_excluded"].get("free", 0)
        assert n_free < demo.counts(16)["free"] // 10
        image = open_image(str(target))
        kept = image.saved.mask(0, demo.max_mapnr)
        image.close()
        assert not (demo.kept(16) & ~kept).any()

    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("kernel", ["5.10", "6.12"])
    def test_noise(self, seed: int, kernel: str, tmp_path: Path, target: Path) -> None:
        """Struct pages of noise leave out this and that, but the books balance and it ends."""
        made = build_demo_image(tmp_path / "vmcore", kernel=kernel)  # type: ignore[arg-type]
        off = made.addresses.file_off(made.addresses.memmap_pfn * 4096)
        n_bytes = len(made.addresses.sections) * 512 * 4096
        write_at(made.path, off, np.random.default_rng(seed).bytes(n_bytes))
        done = dump(made.path, target, "-d", "31")

        one_line_at_most(done)
        summary = done.event("dump_finished")
        left_out = sum(summary["pages_excluded"].values())
        assert summary["pages_in"] == summary["pages_kept"] + left_out == int(made.ram.sum())

    @pytest.mark.parametrize("byte", [0x00, 0xFF, 0x01, 0x80])
    def test_all_the_same(self, byte: int, demo: DemoFacts, spoilt: Path, target: Path) -> None:
        """Struct pages that are all zeros or all ones."""
        off = demo.addresses.file_off(demo.addresses.memmap_pfn * 4096)
        write_at(spoilt, off, bytes([byte]) * (len(demo.addresses.sections) * 512 * 4096))
        one_line_at_most(dump(spoilt, target, "-d", "31"))


def test_log_of_noise(demo: DemoFacts, spoilt: Path) -> None:
    """A kernel log that was overwritten: what can be shown is shown, in printable form."""
    off = data_off(demo, demo.symbols["prb"])
    ring = data_off(demo, word_at(demo.path, off))
    write_at(spoilt, ring, np.random.default_rng(1).bytes(256))

    done = call("dmesg", spoilt)

    assert done.code in (0, 1)
    assert done.err == "" or done.error
    assert "\x1b" not in done.out
