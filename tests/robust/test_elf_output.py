"""ELF dumps through the command line: the pages that kdump has, and the same ends in failure."""

from __future__ import annotations

import os
import resource
import signal
import struct
from pathlib import Path

import numpy as np
import pytest

from stages.demo.build import DemoFacts
from stages.reader.probe import open_image
from tests.robust.held import held_command, wait_for_it
from tests.robust.running import QUICK, call, finish, left_in, process, run, started, wait_until
from tests.robust.spoil import drop_vmcoreinfo
from tests.robust.test_read_errors import bad_pages, dump_with_bad_pages
from tests.robust.test_signals import PIPES
from tests.support.vmcore_writer import EM_S390, VmcoreWriter, described, prstatus

ELF = ("--format", "elf")
E_FLAGS = 48


def pages_of(path: Path, n_pages: int) -> np.ndarray:
    """bool[n_pages]: pages that the dump has."""
    image = open_image(str(path))
    found = image.saved.mask(0, n_pages)
    image.close()
    return found


@pytest.mark.parametrize("level", [0, 1, 2, 8, 16, 30, 31])
def test_same_pages_as_kdump(level: int, demo: DemoFacts, target: Path) -> None:
    """What the level keeps; but zero pages, if it leaves them out, are in no segment."""
    call("dump", *QUICK, *ELF, "-d", level, demo.path, target).succeeded()

    wanted = demo.kept(level)
    if level & 1:
        wanted &= ~demo.zero
    assert np.array_equal(pages_of(target, demo.max_mapnr), wanted)
    assert call("verify", target, "--against", demo.path).code == 0


@pytest.mark.parametrize("mode", ["inline", "threads", "processes"])
def test_modes(mode: str, demo: DemoFacts, target: Path) -> None:
    """However pages are read, the file is the same."""
    words = ("--set", f"compressor.mode={mode}", "--set", "compressor.workers=2")
    run("dump", *ELF, *words, demo.path, target).succeeded()
    other = target.with_name("other")
    call("dump", *QUICK, *ELF, "--set", "reader.batch_pages=37", demo.path, other).succeeded()

    assert call("verify", target, "--against", demo.path).code == 0
    assert np.array_equal(pages_of(target, demo.max_mapnr), pages_of(other, demo.max_mapnr))


def test_no_excluded_page_is_in_the_file(tmp_path: Path, target: Path) -> None:
    """Not even between two pages that were kept: the file has no byte of what was left out."""
    # Every other page is filled with its number; the rest say that they are secret.
    secret = b"secret".ljust(8, b"!") * 512
    data = b"".join(secret if pfn % 2 else described(pfn) for pfn in range(0x100, 0x200))
    writer = VmcoreWriter().load(paddr=0x100000, data=data).note("CORE", 1, prstatus())
    source = writer.write(tmp_path / "source")
    filtered = tmp_path / "filtered"
    call("dump", *QUICK, "-d", "0", source, filtered).succeeded()
    blob = bytearray(filtered.read_bytes())
    image = open_image(str(filtered))
    image.close()
    # Clear the odd pages' bits in bitmap 2, as a filter would, and drop their descriptors.
    bitmap2 = 4096 * (2 + 1)
    start = bitmap2 + 4096
    blob[bitmap2 + 0x20 : bitmap2 + 0x40] = bytes([0x55]) * 0x20
    table = [bytes(blob[start + 24 * at : start + 24 * (at + 1)]) for at in range(0, 256, 2)]
    blob[start : start + 24 * 128] = b"".join(table)
    filtered.write_bytes(blob)

    call("dump", *QUICK, *ELF, "-d", "0", filtered, target).succeeded()

    assert b"secret" not in target.read_bytes()
    assert np.flatnonzero(pages_of(target, 0x200)).tolist() == list(range(0x100, 0x200, 2))


def test_kdump_becomes_elf_and_kdump_again(demo: DemoFacts, target: Path) -> None:
    """Both ways, and no page is another afterwards."""
    first, second = target.with_name("first"), target.with_name("second")
    call("dump", *QUICK, "-d", "30", demo.path, first).succeeded()
    call("dump", *QUICK, *ELF, "-d", "0", first, second).succeeded()
    call("dump", *QUICK, "-d", "31", second, target).succeeded()

    assert np.array_equal(pages_of(second, demo.max_mapnr), demo.kept(30))
    assert np.array_equal(pages_of(target, demo.max_mapnr), demo.kept(31))
    for path in (first, second, target):
        assert call("verify", path, "--against", demo.path).code == 0


class TestStreams:
    def test_flattened_file(self, demo: DemoFacts, target: Path) -> None:
        """The flattened form of it opens as well."""
        call("dump", *QUICK, *ELF, "--flatten", demo.path, target).succeeded()

        assert target.read_bytes()[:12] == b"makedumpfile"
        wanted = demo.kept(31) & ~demo.zero
        assert np.array_equal(pages_of(target, demo.max_mapnr), wanted)
        assert call("verify", target, "--against", demo.path).code == 0

    def test_standard_output(self, demo: DemoFacts, target: Path) -> None:
        """Which is what a pipe gets."""
        with target.open("wb") as file:
            run("dump", *ELF, demo.path, "-", stdout=file).succeeded()

        assert call("verify", target, "--against", demo.path).code == 0


class TestUsage:
    @pytest.mark.parametrize("words", [("--compress", "zstd"), ("--set", "compressor.codec=lzo")])
    def test_codec_that_was_asked_for(
        self, words: tuple[str, str], demo: DemoFacts, target: Path
    ) -> None:
        """Two wishes that contradict each other: code 2, nothing is made."""
        done = call("dump", *ELF, *words, demo.path, target)

        done.failed(2, words[0], "ELF dumps hold no compressed pages")
        assert left_in(target.parent) == []

    @pytest.mark.parametrize("words", [("--compress", "none"), ("--profile", "capture")])
    def test_codec_that_was_not(
        self, words: tuple[str, str], demo: DemoFacts, target: Path
    ) -> None:
        """A codec of a profile, or the default, gives way."""
        call("dump", *QUICK, *ELF, *words, demo.path, target).succeeded()

        assert target.read_bytes()[:4] == b"\x7fELF"

    def test_plan_says_so(self, demo: DemoFacts, target: Path) -> None:
        """The plan has the codec that will run, and why."""
        out = call("plan", *ELF, demo.path, target).succeeded().out

        (line,) = [line for line in out.splitlines() if line.startswith("compressor.codec ")]
        assert line.split()[1] == "none"
        assert "ELF dumps hold no compressed pages" in line


def test_without_vmcoreinfo(demo: DemoFacts, spoilt: Path, target: Path) -> None:
    """Level 1 needs no kernel in this format either."""
    drop_vmcoreinfo(spoilt)

    call("dump", *QUICK, *ELF, "-d", "1", spoilt, target).succeeded()

    assert np.array_equal(pages_of(target, demo.max_mapnr), demo.ram & ~demo.zero)


def test_big_endian_machine(tmp_path: Path, target: Path) -> None:
    """s390x has big-endian fields, which ELF can say and kdump files can't."""
    writer = VmcoreWriter(order=">", machine=EM_S390).load(paddr=0, data=described(0, 8))
    source = writer.write(tmp_path / "source")

    call("dump", *QUICK, "-d", "1", source, target).failed(1, "s390x")
    call("dump", *QUICK, *ELF, "-d", "1", source, target).succeeded()

    assert "ok: 8 of 8 pages good" in call("verify", target, "--against", source).out
    assert target.read_bytes()[:6] == b"\x7fELF\2\2"


def check_left(partial: Path, source: Path, n_least: int) -> None:
    """The file is alone and marked, it opens, it holds `n_least` pages, and each is right."""
    assert left_in(partial.parent) == [partial.name]
    assert struct.unpack_from("<I", partial.read_bytes()[:64], E_FLAGS) == (1,)
    said = call("verify", partial, "--against", source).out
    assert "the dump is incomplete" in said
    assert "differs" not in said
    n_good = int(said.rsplit("NOT OK: ")[-1].split()[0])
    assert n_good >= n_least


class TestFailures:
    def test_full_disk(self, demo: DemoFacts, target: Path) -> None:
        """What fitted is there; the segments that did not have no bytes."""

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, 10_000_000))

        words = ("--set", "reader.batch_pages=64")
        done = run("dump", *ELF, *words, demo.path, target, preexec_fn=limit)

        done.failed(3, "File too large", "usable as far as it goes")
        check_left(target.with_name("dump.partial"), demo.path, 1300)

    @pytest.mark.parametrize("room", [0, 100, 5000, 100_000])
    def test_no_room_for_pages(self, room: int, demo: DemoFacts, target: Path) -> None:
        """A dump without a page is no use."""

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

        run("dump", *ELF, demo.path, target, preexec_fn=limit).failed(1, "File too large")

        assert left_in(target.parent) == []

    def test_signal_in_the_sync(self, demo: DemoFacts, target: Path) -> None:
        """All is written, nothing is certain: marked."""
        with process(held_command("syncing", *ELF, demo.path, target), **PIPES) as running:
            wait_for_it(running)
            running.send_signal(signal.SIGTERM)
            done = finish(running)

        done.failed(3, "interrupted by SIGTERM")
        wanted = int((demo.kept(31) & ~demo.zero).sum())
        check_left(target.with_name("dump.partial"), demo.path, wanted)

    def test_killed(self, demo: DemoFacts, target: Path) -> None:
        """SIGKILL in the middle leaves a file that is marked, and whose pages are right."""
        partial = target.with_name("dump.partial")
        words = ("--set", "reader.batch_pages=1", "--set", "compressor.mode=inline", "-d", "1")
        with started("dump", *ELF, *words, demo.path, target) as running:
            wait_until(
                lambda: partial.exists() and partial.stat().st_size > 5_000_000, "some pages"
            )
            os.kill(running.pid, signal.SIGKILL)
            done = finish(running)

        assert done.code == -signal.SIGKILL
        check_left(partial, demo.path, 500)

    @pytest.mark.parametrize("policy", ["zero", "skip"])
    def test_unreadable_pages(self, policy: str, demo: DemoFacts, target: Path) -> None:
        """The head says that something is missing, and the pages are zeros or not there."""
        bad = bad_pages(demo)
        words = (*ELF, "-d", "30", "--on-read-error", policy, demo.path, target)

        done = dump_with_bad_pages(demo, bad, *words)

        done.failed(3, f"{len(bad)} pages of", str(target))
        assert struct.unpack_from("<I", target.read_bytes()[:64], E_FLAGS) == (1,)
        there = pages_of(target, demo.max_mapnr)
        lost = np.flatnonzero(demo.kept(30) & ~there).tolist()
        assert lost == ([] if policy == "zero" else bad)

    def test_unreadable_pages_all_over(self, demo: DemoFacts, target: Path) -> None:
        """A disk that falls to pieces: each of them is left out, and everything else is there."""
        bad = np.flatnonzero(demo.kept(0) & ~demo.zero)[::50].tolist()
        words = (*ELF, "-d", "0", "--on-read-error", "skip", demo.path, target)

        done = dump_with_bad_pages(demo, bad, *words)

        done.failed(3, f"{len(bad)} pages of", str(target))
        lost = np.flatnonzero(demo.kept(0) & ~pages_of(target, demo.max_mapnr)).tolist()
        assert lost == bad
