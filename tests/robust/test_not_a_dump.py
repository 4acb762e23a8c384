"""Sources that are no dump, or only the beginning of one."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.demo.build import DemoFacts
from stages.reader.probe import open_image
from tests.robust.running import QUICK, call, left_in, run
from tests.support.kdump_writer import KdumpWriter, flatten
from tests.support.vmcore_writer import described

N_PHDRS = 5
PHDRS_END = 64 + N_PHDRS * 56


def fields(path: Path, number: int) -> tuple[int, int]:
    """p_offset and p_filesz of a program header."""
    raw = path.read_bytes()[64 + number * 56 :][:56]
    _, _, off, _, _, size, _, _ = struct.unpack("<IIQQQQQQ", raw)
    return off, size


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"x", "starts with 78, wanted one of kdump-compressed, flattened, ELF core"),
        (b"hello world\n" * 9, "starts with 68 65 6c 6c 6f 20 77 6f"),
        (bytes(8192), "starts with 00 00 00 00 00 00 00 00"),
        (b"\x1f\x8b" + bytes(100), "is compressed by gzip"),
        (b"EMiL" + bytes(100), "is a LiME image"),
    ],
)
def test_no_dump(content: bytes, said: str, tmp_path: Path, target: Path) -> None:
    """One line names the file and what it starts with; nothing is created."""
    source = tmp_path / "source"
    source.write_bytes(content)

    done = run("dump", source, target)

    done.failed(1, "not a memory image", str(source), said)
    assert left_in(target.parent) == []


def test_no_such_file(tmp_path: Path, target: Path) -> None:
    """A source that is not there is named."""
    done = run("dump", tmp_path / "none", target)

    assert done.failed(1) == f"{tmp_path / 'none'}: No such file or directory"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (Path.mkdir, "is a directory"),
        (os.mkfifo, "is a pipe; save it to a file first"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    ],
)
def test_no_file(make: Callable[[Path], None], said: str, tmp_path: Path, target: Path) -> None:
    """What can't be read at random is refused; a pipe nobody writes to is not waited for."""
    make(tmp_path / "source")

    run("dump", tmp_path / "source", target).failed(1, str(tmp_path / "source"), said)

    assert left_in(target.parent) == []


def test_program(target: Path) -> None:
    """An ELF file that is no core file is told from one that is."""
    run("dump", "/bin/sh", target).failed(1, "not a memory image", "/bin/sh")


ELF_HEADERS = [1, 3, 4, 15, 16, 63, 64, 65, 64 + 56, 64 + 57, PHDRS_END - 1]


@pytest.mark.parametrize("n_bytes", ELF_HEADERS)
def test_elf_cut_inside_its_headers(n_bytes: int, spoilt: Path, target: Path) -> None:
    """Without all of its headers an image is of no use, at any level."""
    os.truncate(spoilt, n_bytes)

    for level in (0, 31):
        done = call("dump", *QUICK, "-d", level, spoilt, target)

        assert str(spoilt) in done.failed(1)
        assert left_in(target.parent) == []


class TestElfCutInsideItsNotes:
    @pytest.fixture(params=["at their start", "inside VMCOREINFO", "one byte short"])
    def cut(self, request: pytest.FixtureRequest, spoilt: Path) -> Path:
        start, size = fields(spoilt, 0)
        keep = {"at their start": 0, "inside VMCOREINFO": size // 2, "one byte short": size - 1}
        os.truncate(spoilt, start + keep[request.param])
        return spoilt

    def test_level_1_works_as_far_as_it_goes(self, cut: Path, target: Path) -> None:
        """No page is there, and the dump says so of each of them."""
        done = call("dump", *QUICK, "-d", "1", "--on-read-error", "skip", cut, target)

        done.failed(3, "could not be read", "the image is incomplete")
        assert open_image(str(target)).saved.n_pages == 0

    def test_level_31_says_what_is_missing(self, cut: Path, target: Path) -> None:
        """Above level 1 the kernel must be found, and the line says why it can't be."""
        done = call("dump", *QUICK, cut, target)

        done.failed(1, "the image is incomplete", "bytes of notes are there")
        assert left_in(target.parent) == []


@pytest.mark.parametrize("at", ["first load", "second load", "last load", "last page", "last byte"])
def test_elf_cut_inside_its_memory(at: str, demo: DemoFacts, spoilt: Path, target: Path) -> None:
    """Every page in front of the cut is dumped as it is, every page behind it is counted."""
    size = spoilt.stat().st_size
    # File order: low memory, the rest below the hole, memory above it.
    edges = {
        "first load": fields(spoilt, 2)[0] + 5000,
        "second load": fields(spoilt, 3)[0],
        "last load": fields(spoilt, 4)[0] + 100 * 4096,
        "last page": size - 4096,
        "last byte": size - 1,
    }
    os.truncate(spoilt, edges[at])

    done = call("dump", *QUICK, "-d", "1", "--on-read-error", "skip", spoilt, target)

    done.failed(3, "could not be read", f"cut at {edges[at]} bytes")
    n_lost = -(-(size - edges[at]) // 4096)
    summary = done.event("dump_incomplete")
    assert summary["pages_missing"] == n_lost
    assert summary["pages_in"] == int(demo.ram.sum())
    verified = call("verify", target, "--against", demo.path)
    assert f"{summary['pages_kept'] - n_lost} of " in verified.out
    assert "differs" not in verified.out


def whole_kdump() -> KdumpWriter:
    writer = KdumpWriter(max_mapnr=70_000, dump_level=1, zero_page=True, notes=bytes(300))
    for pfn in (3, 4, 5, 40_000, 69_999):
        writer.page(pfn, described(pfn), codec="zlib")
    return writer.zero(9).excluded(100, 200)


class TestKdumpCut:
    def edges(self) -> dict[str, int]:
        writer = whole_kdump()
        bitmap1 = 2 * 4096
        return {
            "empty": 0,
            "in the signature": 7,
            "in the main header": 463,
            "behind block 0": 4096,
            "in the sub header": 4096 + 100,
            "behind the notes": bitmap1,
            "in bitmap 1": bitmap1 + 5000,
            "in bitmap 2": writer.descriptors_start - 1,
            "in front of the descriptors": writer.descriptors_start,
            "in the descriptors": writer.descriptors_start + 24 * 3 + 7,
            "in front of the data": writer.data_start,
            "in the zero page": writer.data_start + 4000,
            "in the data": writer.data_start + 4096 + 30,
            "one byte short": len(writer.pack()) - 1,
        }

    UNREADABLE = (
        "empty", "in the signature", "in the main header", "behind block 0", "in the sub header",
        "behind the notes", "in bitmap 1", "in bitmap 2",
    )  # fmt: skip
    READABLE = (
        "in front of the descriptors", "in the descriptors", "in front of the data",
        "in the zero page", "in the data", "one byte short",
    )  # fmt: skip

    @pytest.mark.parametrize("edge", UNREADABLE)
    @pytest.mark.parametrize("form", ["plain", "flattened"])
    def test_without_its_bitmaps(self, edge: str, form: str, tmp_path: Path, target: Path) -> None:
        """Nobody knows which pages it had: one line, and no dump."""
        blob = whole_kdump().pack()[: self.edges()[edge]]
        source = tmp_path / "source"
        source.write_bytes(flatten(blob)[:-16] if form == "flattened" else blob)

        done = call("dump", *QUICK, "-d", "1", source, target)

        assert str(source) in done.failed(1)
        assert left_in(target.parent) == []

    @pytest.mark.parametrize("edge", READABLE)
    def test_with_its_bitmaps(self, edge: str, tmp_path: Path, target: Path) -> None:
        """What is there is dumped, and what is not is never made up."""
        source = whole_kdump().write(tmp_path / "source", cut_at=self.edges()[edge])

        done = call("dump", *QUICK, "-d", "1", "--on-read-error", "skip", source, target)

        done.failed(3, "could not be read", "cut at")
        assert "differs" not in call("verify", target, "--against", source).out

    @pytest.mark.parametrize("command", ["info", "verify", "plan", "dmesg"])
    @pytest.mark.parametrize("edge", [*UNREADABLE, *READABLE])
    def test_other_commands(self, command: str, edge: str, tmp_path: Path, target: Path) -> None:
        """They answer, or end with one line."""
        source = whole_kdump().write(tmp_path / "source", cut_at=self.edges()[edge])

        done = call(command, source, *([target] if command == "plan" else []))

        assert done.code in (0, 1)
        assert done.err == "" or done.error


@pytest.mark.parametrize("n_bytes", [1, 15, 16, 24, 31, 32, 4095, 4096, 4100, 4111, 4112, 5000])
def test_flattened_stream_cut(n_bytes: int, tmp_path: Path, target: Path) -> None:
    """A stream cut inside its header or its first record holds no dump."""
    source = tmp_path / "source"
    source.write_bytes(flatten(whole_kdump().pack())[:n_bytes])

    done = call("dump", *QUICK, "-d", "1", source, target)

    assert str(source) in done.failed(1)
    assert left_in(target.parent) == []


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_flattened_stream_cut_further_on(
    share: float, demo: DemoFacts, tmp_path: Path, target: Path
) -> None:
    """What was lost with its bitmaps is missed by nobody, so the new dump is marked as a whole."""
    whole, source = tmp_path / "whole", tmp_path / "source"
    with whole.open("wb") as stream:
        run("dump", *QUICK, demo.path, "-", stdout=stream).succeeded()
    source.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * share)])

    call("dump", *QUICK, "-d", "1", source, target).failed(3, "the flattened stream was cut")

    verified = call("verify", target)
    assert verified.code == 1
    assert "the dump is incomplete" in verified.out
