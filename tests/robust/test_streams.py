"""The dump on standard output: pipes that close, devices that are full."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import IO

import pytest

from pipeline.errors import EXIT_CLOSED_OUTPUT
from stages.demo.build import DemoFacts
from stages.formats.flattened import END_RECORD
from tests.robust.running import TIMEOUT_S, Done, call, command, finish, left_in, run, started
from tests.robust.test_signals import PIPES

MODES = [
    ("--set", "compressor.mode=inline"),
    ("--set", "compressor.mode=processes", "--set", "compressor.workers=2"),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("n_bytes", [0, 1, 4096, 500_000])
def test_reader_goes_away(n_bytes: int, mode: tuple[str, ...], demo: DemoFacts) -> None:
    """Whatever it had read by then: code 1, and the line says that it is not all."""
    with started("dump", *mode, "-d", "0", demo.path, "-", **PIPES) as running:
        assert running.stdout is not None
        got = 0
        while got < n_bytes:
            got += len(os.read(running.stdout.fileno(), n_bytes - got))
        running.stdout.close()
        running.stdout = None
        done = finish(running)

    done.failed(1, "stdout: the reader went away after", "what it has is incomplete")


def test_reader_that_was_never_there(demo: DemoFacts) -> None:
    """A pipe whose other end is closed already."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = run("dump", demo.path, "-", stdout=writing)
    finally:
        os.close(writing)

    done.failed(1, "the reader went away after 0 bytes")


@pytest.mark.parametrize("mode", MODES)
def test_full_device(mode: tuple[str, ...], demo: DemoFacts) -> None:
    """Standard output that takes nothing is a failure in one line."""
    with Path("/dev/full").open("wb") as full:
        done = run("dump", *mode, demo.path, "-", stdout=full)

    assert done.failed(1) == "sink: stdout: No space left on device"


@pytest.mark.parametrize(
    "words",
    [
        ["info"],
        ["info", "--json"],
        ["dmesg"],
        ["verify"],
        ["translate", "ffff888000000000"],
        ["plan", "-"],
        ["estimate"],
    ],
)
class TestOtherCommands:
    def test_full_device(self, words: list[str], demo: DemoFacts) -> None:
        """An answer that could not be given is no success."""
        with Path("/dev/full").open("wb") as full:
            done = run(words[0], demo.path, *words[1:], stdout=full)

        assert done.failed(1) == "standard output: No space left on device"

    def test_reader_that_was_never_there(self, words: list[str], demo: DemoFacts) -> None:
        """Nobody wants to read on: no word, and the code of a death by SIGPIPE."""
        reading, writing = os.pipe()
        os.close(reading)
        try:
            done = run(words[0], demo.path, *words[1:], stdout=writing)
        finally:
            os.close(writing)

        assert (done.code, done.err) == (EXIT_CLOSED_OUTPUT, "")


def test_file_as_standard_output(demo: DemoFacts, tmp_path: Path) -> None:
    """A file is written as it is: a whole stream, which opens."""
    target = tmp_path / "dump.flat"
    with target.open("wb") as file:
        run("dump", demo.path, "-", stdout=file).succeeded()

    assert target.read_bytes().endswith(END_RECORD)
    assert call("verify", target, "--against", demo.path).code == 0


def test_slow_reader(demo: DemoFacts, tmp_path: Path) -> None:
    """A reader that takes little at a time gets everything."""
    target = tmp_path / "dump.flat"
    with started("dump", demo.path, "-", **PIPES) as running, target.open("wb") as file:
        assert running.stdout is not None
        copy_slowly(running.stdout, file)
        running.stdout.close()
        running.stdout = None
        finish(running).succeeded()

    assert call("verify", target, "--against", demo.path).code == 0


def copy_slowly(source: IO[bytes], target: IO[bytes]) -> None:
    while piece := os.read(source.fileno(), 1000):
        target.write(piece)


@pytest.mark.parametrize("stream", ["1", "2"])
def test_stream_of_messages_is_closed(stream: str, demo: DemoFacts, target: Path) -> None:
    """Without standard output, or standard error, a dump into a file is made all the same."""
    words = command("dump", demo.path, target)
    line = ["/bin/sh", "-c", f'"$@" {stream}>&-', "sh", *words]
    done = subprocess.run(line, capture_output=True, timeout=TIMEOUT_S, check=False)

    Done(done.returncode, "", done.stderr.decode()).succeeded()
    assert call("verify", target, "--against", demo.path).code == 0


def test_full_standard_error(demo: DemoFacts, target: Path) -> None:
    """Messages that can't be written do not cost the dump."""
    with Path("/dev/full").open("wb") as full:
        done = run("dump", demo.path, target, stderr=full)

    assert done.code == 0
    assert call("verify", target, "--against", demo.path).code == 0


def test_stdout_is_a_terminal(demo: DemoFacts, target: Path) -> None:
    """Binary data is kept from a terminal, before anything else is looked at."""
    ours, theirs = os.openpty()
    try:
        for words in (["-"], [target, "-"]):
            done = run("dump", "/nonexistent", *words, stdout=theirs)
            done.failed(2, "standard output is a terminal")
        assert left_in(target.parent) == []
        run("plan", demo.path, "-", stdout=theirs).succeeded()
    finally:
        os.close(ours)
        os.close(theirs)
