"""Signals in every phase: one line, the right code, and nothing that looks complete."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from stages.demo.build import DemoFacts
from stages.formats.flattened import END_RECORD
from tests.robust.held import held_command, wait_for_it
from tests.robust.left import check_left
from tests.robust.running import (
    SLOW,
    TIMEOUT_S,
    Done,
    children,
    command,
    finish,
    is_alive,
    left_in,
    process,
    started,
    wait_until,
)

ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
SOME_BYTES = 300_000
"""A partial file of this size has pages in it: its head, bitmaps and descriptors take 160 KB."""
MODES = [
    ("--set", "compressor.mode=inline"),
    ("--set", "compressor.mode=threads"),
    ("--set", "compressor.mode=processes", "--set", "compressor.workers=2"),
]


def has_pages(partial: Path) -> bool:
    return partial.exists() and partial.stat().st_size > SOME_BYTES


@pytest.mark.parametrize("number", ENDING)
class TestEndingSignals:
    @pytest.mark.parametrize("place", ["opening the image", "opening the kernel", "filtering"])
    def test_before_the_copy(
        self, number: signal.Signals, place: str, demo: DemoFacts, target: Path
    ) -> None:
        """Before there is a page: code 1, one line, nothing left."""
        with process(held_command(place, demo.path, target), **PIPES) as running:
            wait_for_it(running)
            running.send_signal(number)
            done = finish(running)

        done.failed(1, "interrupted")
        assert left_in(target.parent) == []

    @pytest.mark.parametrize("mode", MODES)
    def test_in_the_copy(
        self, number: signal.Signals, mode: tuple[str, ...], demo: DemoFacts, target: Path
    ) -> None:
        """In the middle: code 3, and what was written is a dump that says it is incomplete."""
        partial = target.with_name("dump.partial")
        with started("dump", *SLOW, *mode, demo.path, target) as running:
            wait_until(lambda: has_pages(partial), "some pages")
            workers = children(running.pid)
            running.send_signal(number)
            done = finish(running)

        assert f"interrupted by {number.name}; " in done.error
        check_left(done, partial, demo.path, 100)
        assert not [pid for pid in workers if is_alive(pid)]

    def test_in_the_sync(self, number: signal.Signals, demo: DemoFacts, target: Path) -> None:
        """All pages are written, but nobody knows if they are on the disk: still incomplete."""
        with process(held_command("syncing", demo.path, target), **PIPES) as running:
            wait_for_it(running)
            running.send_signal(number)
            done = finish(running)

        n_kept = int(demo.kept(31).sum())
        check_left(done, target.with_name("dump.partial"), demo.path, n_kept)

    def test_into_a_pipe_that_nobody_reads(self, number: signal.Signals, demo: DemoFacts) -> None:
        """Blocked on a full pipe it listens nevertheless."""
        with started("dump", "-d", "0", demo.path, "-", **PIPES) as running:
            assert running.stdout is not None
            os.read(running.stdout.fileno(), 1)  # it has begun to write
            wait_until(lambda: _blocked(running.pid), "a full pipe")
            running.send_signal(number)
            out, err = running.communicate(timeout=TIMEOUT_S)

        Done(running.returncode, "", err.decode()).failed(1, f"interrupted by {number.name}")
        assert not out.endswith(END_RECORD)

    def test_to_the_whole_group(
        self, number: signal.Signals, demo: DemoFacts, target: Path
    ) -> None:
        """As a terminal and an init system send them, to the workers too: the same end."""
        partial = target.with_name("dump.partial")
        words = ("dump", *SLOW, *MODES[2], demo.path, target)
        with started(*words) as running:
            wait_until(lambda: has_pages(partial), "some pages")
            os.killpg(running.pid, number)
            done = finish(running)

        assert f"interrupted by {number.name}; " in done.error
        check_left(done, partial, demo.path, 100)

    @pytest.mark.parametrize("mode", MODES)
    def test_twice(
        self, number: signal.Signals, mode: tuple[str, ...], demo: DemoFacts, target: Path
    ) -> None:
        """As timeout(1) sends them: what was begun to be cleaned up is, and the same is said."""
        partial = target.with_name("dump.partial")
        with started("dump", *SLOW, *mode, demo.path, target) as running:
            wait_until(lambda: has_pages(partial), "some pages")
            running.send_signal(number)
            running.send_signal(number)
            done = finish(running)

        assert f"interrupted by {number.name}; " in done.error
        check_left(done, partial, demo.path, 100)

    def test_ignored_on_purpose(
        self, number: signal.Signals, demo: DemoFacts, target: Path
    ) -> None:
        """Under nohup, and in the background of a script, the dump goes on to its end."""
        words = [*command("dump", "--compress", "zlib", "--compress-level", "9")]
        words += ["--set", "reader.batch_pages=16", str(demo.path), str(target)]
        partial = target.with_name("dump.partial")
        with process(
            words, **PIPES, preexec_fn=lambda: signal.signal(number, signal.SIG_IGN)
        ) as running:
            wait_until(lambda: has_pages(partial) or target.exists(), "some pages")
            running.send_signal(number)
            done = finish(running)

        done.succeeded()
        assert left_in(target.parent) == ["dump"]


def _blocked(pid: int) -> bool:
    """Every thread sleeps, and the process has used no time for a while."""
    before = _cpu_ticks(pid)
    for _ in range(20):
        if _cpu_ticks(pid) != before:
            return False
        time.sleep(0.02)
    return True


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_sync_that_fails(demo: DemoFacts, target: Path) -> None:
    """EIO from the disk at the very end: what is there is kept, and marked."""
    with process(held_command("sync that fails", demo.path, target), **PIPES) as running:
        done = finish(running)

    done.failed(3, "sink: ", "Input/output error")
    check_left(done, target.with_name("dump.partial"), demo.path, int(demo.kept(31).sum()))


@pytest.mark.parametrize("place", ["opening the kernel", "filtering", "planning the copy"])
def test_kill_before_the_copy(place: str, demo: DemoFacts, target: Path) -> None:
    """SIGKILL before the head is written leaves an empty file under the partial name, no more."""
    with process(held_command(place, demo.path, target), **PIPES) as running:
        wait_for_it(running)
        workers = children(running.pid)
        running.kill()
        done = finish(running)

    assert done.code == -signal.SIGKILL
    assert left_in(target.parent) == ["dump.partial"]
    assert target.with_name("dump.partial").stat().st_size == 0
    wait_until(lambda: not any(map(is_alive, workers)), "the workers' end")
