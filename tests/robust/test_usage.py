"""Wrong words and wrong settings: code 2, one line, before anything is touched."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path

import pytest

from stages.demo.build import DemoFacts
from tests.robust.running import call, left_in, run

WORDS: list[tuple[list[str], str]] = [
    (["-d", "32"], "-d: '32' is not a number from 0 to 31"),
    (["-d", "x"], "-d: 'x' is not a number from 0 to 31"),
    (["--compress", "xz"], "--compress: invalid choice: 'xz'"),
    (["--compress-level", "-1"], "--compress-level"),
    (["--format", "raw"], "--format: invalid choice: 'raw'"),
    (["--on-read-error", "panic"], "--on-read-error: invalid choice"),
    (["--frobnicate"], "unrecognized arguments: --frobnicate"),
    (["--set", "nonsense"], "--set: nonsense: expected section.key=value"),
    (["--set", "a.b=c"], "--set: a.b: no such section"),
    (["--set", "dump.levle=3"], "did you mean level?"),
    (["--set", "memory.budget=1"], "memory.budget: expected a size from"),
    (["--set", "memory.budget=lots"], "memory.budget: expected a size from"),
    (["--set", "compressor.workers=0"], "compressor.workers: expected a whole number from 1"),
    (["--set", "compressor.workers=1e3"], "compressor.workers: expected a whole number"),
    (["--set", "compressor.mode=fast"], "compressor.mode: expected 'inline'"),
    (["--set", "sink.fsync=perhaps"], "sink.fsync: expected true or false"),
    (["--set", "filter.window_bytes=99TiB"], "filter.window_bytes: expected a size"),
    (["--config", "/nonexistent.toml"], "/nonexistent.toml: cannot be read: No such file"),
    (["--config", "/"], "Is a directory"),
    (["--profile", "fast"], "--profile: fast: no such profile"),
    (["--stats", "/nonexistent/run.json"], "its directory is missing or not writable"),
    (["--stats", "/"], "run.stats: '/': is not the name of a file"),
    (["--set", "run.stats="], "run.stats: '': is not the name of a file"),
    (["--set", "cache.block=1"], "a size from 4.0 KiB to 16.0 MiB (such as 16MiB)"),
]


@pytest.mark.parametrize(("words", "said"), WORDS)
def test_words(words: list[str], said: str, demo: DemoFacts, target: Path) -> None:
    """What is wrong with which word, in one line."""
    done = run("dump", *words, demo.path, target)

    assert said in done.failed(2)
    assert left_in(target.parent) == []


FILES = [
    (b"level = 3\n", "not in a section"),
    (b"memory = 3\n", "memory: is a section: its settings stand below [memory]"),
    (b"[dump]\nlevel = 'x'\n", "dump.level: expected a whole number from 0 to 31, got 'x'"),
    (b"[dump]\nlevel = 3.0\n", "dump.level"),
    (b"[dump]\nlevel = true\n", "dump.level"),
    (b"[dump\n", "not TOML"),
    (b"\xff\xfe", "not TOML"),
    (b"x = " + b"[" * 5000, "not TOML"),
    (b"#" * (2 << 20), "larger than"),
]


@pytest.mark.parametrize(("content", "said"), FILES)
def test_files(content: bytes, said: str, demo: DemoFacts, target: Path, tmp_path: Path) -> None:
    """A file of settings is named, and what is wrong in it."""
    config = tmp_path / "my.toml"
    config.write_bytes(content)

    call("dump", "--config", config, demo.path, target).failed(2, str(config), said)

    assert left_in(target.parent) == []


def test_statistics_in_place_of_the_image(demo: DemoFacts, target: Path) -> None:
    """Neither the image nor the dump is overwritten by `--stats`."""
    before = demo.path.stat()

    for path in (demo.path, target):
        call("dump", "--stats", path, demo.path, target).failed(2, "run.stats", "would replace")

    assert demo.path.stat() == before
    assert left_in(target.parent) == []


def test_receiver_without_a_place(tmp_path: Path) -> None:
    """A missing folder and an address that is taken are said in a line."""
    call("receive", "--listen", "127.0.0.1:0", tmp_path / "no").failed(1, str(tmp_path / "no"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "{}:{}".format(*taken.getsockname())
        done = call("receive", "--listen", address, tmp_path)

    done.failed(1, f"cannot listen on {address}: Address already in use")


def test_environment(demo: DemoFacts, target: Path) -> None:
    """So is a variable."""
    environ = {**os.environ, "DUMPSTREAM_DUMP__LEVEL": "many"}

    done = run("dump", demo.path, target, env=environ)

    done.failed(2, "environment: dump.level: expected a whole number from 0 to 31, got 'many'")


def test_missing_target(demo: DemoFacts) -> None:
    """One TARGET is required; more are not asked for."""
    call("dump", demo.path).failed(2, "arguments are required: TARGET (")


@pytest.mark.parametrize("words", [[], ["dump"], ["dump", "a"], ["dmup"], ["info"], ["translate"]])
def test_missing_words(words: list[str]) -> None:
    """A command, and what it takes."""
    assert run(*words).failed(2)


def test_address_that_is_none(demo: DemoFacts) -> None:
    """An address is hexadecimal and has 64 bits."""
    call("translate", demo.path, "xyz").failed(2, "'xyz' is not a hexadecimal address")
    call("translate", demo.path, "1" * 17).failed(2, "is not a 64-bit address")


def test_target_that_nobody_serves(demo: DemoFacts) -> None:
    """A URL of an unknown kind; the known ones are listed."""
    for command in ("dump", "estimate"):
        done = call(command, demo.path, "gopher://host/dump")
        done.failed(2, "gopher:// is not a target", "s3://")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dump", "", "x"], "argument SOURCE: is empty"),
        (["dump", "x", ""], "argument TARGET: is empty"),
        (["dump", "x", "y", ""], "argument TARGET: is empty"),
        (["dump", "--config", "", "x", "y"], "argument --config: is empty"),
        (["verify", "x", "--against", ""], "argument --against: is empty"),
        (["estimate", "x", ""], "argument TARGET: is empty"),
        (["trace", "record", "x", ""], "argument FILE: is empty"),
        (["resume", ""], "argument JOURNAL: is empty"),
        (["keygen", ""], "argument FILE: is empty"),
        (["receive", "--listen", "127.0.0.1:0", ""], "argument DIR: is empty"),
        (["demo", "--directory", ""], "argument --directory: is empty"),
    ],
)
def test_empty_names(words: list[str], said: str) -> None:
    """What an unset variable of a script leaves is no name of anything, least of all of ``.``."""
    call(*words).failed(2, said)


@pytest.mark.parametrize(
    "words",
    [
        ["dump", "--stats", "-", "x", "y"],
        ["trace", "record", "x", "-"],
        ["keygen", "-"],
        ["decrypt", "--identity", "x", "y", "-"],
    ],
)
def test_dash_where_a_file_is_written(words: list[str], tmp_path: Path) -> None:
    """Nobody who writes ``-`` means a file of that name."""
    with contextlib.chdir(tmp_path):
        call(*words).failed(2, "takes a file, not -")

    assert left_in(tmp_path) == []


@pytest.mark.parametrize("command", ["info", "dump", "doctor"])
def test_help_that_is_named(command: str) -> None:
    """Of the command whose option is unknown, not of the program."""
    said = call(command, "x", "y", "z", "--frobnicate").failed(2)

    assert said.endswith(f"(`dumpstream {command} --help` tells more)")


def test_demo_in_a_file(tmp_path: Path) -> None:
    """A file is no folder."""
    file = tmp_path / "file"
    file.touch()

    call("demo", "--directory", file).failed(2, f"{file} is not a directory")


def test_odd_bytes_in_json(demo: DemoFacts, target: Path) -> None:
    """A name that is no text costs neither the statistics nor an answer, and is found in both."""
    odd = Path(os.fsdecode(os.fsencode(target) + b"\xff"))
    stats = odd.with_suffix(".json")

    run("dump", "--stats", stats, demo.path, odd).succeeded()
    facts = json.loads(run("info", "--json", odd).succeeded().out)
    planned = json.loads(run("plan", "--json", "--stats", stats, odd, "x").succeeded().out)

    assert facts["path"] == str(odd)
    assert json.loads(stats.read_bytes())["target"] == str(odd)
    assert planned["settings"]["run.stats"]["value"] == str(stats)


def test_names_with_odd_bytes(demo: DemoFacts, tmp_path: Path) -> None:
    """Names are bytes: any of them work, and none reaches the terminal as it is."""
    target = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\x1b[2J"))

    done = run("dump", demo.path, target).succeeded()

    assert target.stat().st_size > 0
    assert "\x1b" not in done.err
    again = run("dump", demo.path, target)
    again.failed(1, "exists; -f overwrites it")
    assert "\x1b" not in again.err
