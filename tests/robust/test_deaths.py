"""Processes that are killed, or stop: the main one, and its workers."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from stages.demo.build import DemoFacts
from tests.robust.held import held_command, wait_for_it
from tests.robust.left import check_left, check_partial
from tests.robust.running import (
    SLOW,
    children,
    command,
    finish,
    is_alive,
    left_in,
    process,
    started,
    wait_until,
)
from tests.robust.test_signals import PIPES, has_pages

WORKERS = ("--set", "compressor.mode=processes", "--set", "compressor.workers=2")


def test_main_process_is_killed(demo: DemoFacts, target: Path) -> None:
    """No last words, and yet: the file is marked, what was written is there, nobody is left."""
    partial = target.with_name("dump.partial")
    with started("dump", *SLOW, *WORKERS, demo.path, target) as running:
        wait_until(lambda: has_pages(partial), "some pages")
        workers = children(running.pid)
        running.kill()
        done = finish(running)

    assert done.code == -signal.SIGKILL
    assert len(workers) == 2
    wait_until(lambda: not any(map(is_alive, workers)), "the workers' end")
    check_partial(partial, demo.path, 100)


def test_killed_worker(demo: DemoFacts, target: Path) -> None:
    """A worker that the kernel takes away (out of memory) ends the run, not the dump."""
    partial = target.with_name("dump.partial")
    with started("dump", *SLOW, *WORKERS, demo.path, target) as running:
        wait_until(lambda: has_pages(partial), "some pages")
        workers = children(running.pid)
        os.kill(workers[1], signal.SIGKILL)
        done = finish(running)

    assert f"worker process {workers[1]} died (killed by SIGKILL)" in done.error
    check_left(done, partial, demo.path, 100)
    assert not is_alive(workers[0])


def test_all_workers_are_killed(demo: DemoFacts, target: Path) -> None:
    """All at once: still one line."""
    partial = target.with_name("dump.partial")
    with started("dump", *SLOW, *WORKERS, demo.path, target) as running:
        wait_until(lambda: has_pages(partial), "some pages")
        for pid in children(running.pid):
            os.kill(pid, signal.SIGKILL)
        done = finish(running)

    assert "died (killed by SIGKILL)" in done.error
    check_left(done, partial, demo.path, 100)


def test_worker_is_killed_before_the_copy(demo: DemoFacts, target: Path) -> None:
    """Without a page that was written there is nothing worth keeping."""
    with process(held_command("filtering", *WORKERS, demo.path, target), **PIPES) as running:
        wait_for_it(running)
        for pid in children(running.pid):
            os.kill(pid, signal.SIGKILL)
        running.send_signal(signal.SIGTERM)
        done = finish(running)

    assert done.failed(1)
    assert left_in(target.parent) == []


@pytest.mark.parametrize("n_killed", [1, 2])
def test_workers_that_never_worked(n_killed: int, demo: DemoFacts, target: Path) -> None:
    """Killed at any moment of the start: it ends, in order, with one line or a whole dump."""
    words = [*command("dump", *WORKERS), str(demo.path), str(target)]
    with process(words, **PIPES) as running:
        wait_until(lambda: len(children(running.pid)) == 2 or running.poll() is not None, "workers")
        for pid in children(running.pid)[:n_killed]:
            os.kill(pid, signal.SIGKILL)
        done = finish(running)

    if done.code == 0:  # they had done their work already
        done.succeeded()
        return
    assert "died (killed by SIGKILL)" in done.error
    assert left_in(target.parent) == (["dump.partial"] if done.code == 3 else [])


def test_stopped_worker_does_not_keep_the_run_from_ending(demo: DemoFacts, target: Path) -> None:
    """A worker that hangs (a dead network file system) is left behind when told to end."""
    partial = target.with_name("dump.partial")
    with started("dump", *SLOW, *WORKERS, demo.path, target) as running:
        wait_until(lambda: has_pages(partial), "some pages")
        workers = children(running.pid)
        os.kill(workers[0], signal.SIGSTOP)
        running.send_signal(signal.SIGTERM)
        done = finish(running)

    check_left(done, partial, demo.path, 100)
    assert not any(map(is_alive, workers))


def test_stopped_and_continued(demo: DemoFacts, target: Path) -> None:
    """SIGSTOP and SIGCONT, as job control sends them, change nothing."""
    words = ("--compress", "zlib", "--compress-level", "9", "--set", "reader.batch_pages=16")
    partial = target.with_name("dump.partial")
    with started("dump", *words, *WORKERS, demo.path, target) as running:
        wait_until(lambda: has_pages(partial) or target.exists(), "some pages")
        os.killpg(running.pid, signal.SIGSTOP)
        os.killpg(running.pid, signal.SIGCONT)
        finish(running).succeeded()
