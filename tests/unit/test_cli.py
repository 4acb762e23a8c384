"""The command line as a process: help, one-line errors, exit codes, and streams that break."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.errors import (
    EXIT_CLOSED_OUTPUT,
    ConfigError,
    MissingInfoError,
    SinkError,
    StageError,
)

COMMANDS = ["dump", "info", "verify", "translate", "dmesg", "plan", "demo", "doctor"]
HEAVY = {"numpy", "anyio", "asyncio", "msgspec", "structlog", "zstandard", "isal", "tomllib"}


def run(*words: str, **more: object) -> subprocess.CompletedProcess[str]:
    """`python -m pipeline` with `words`; both streams are captured unless `more` says else."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    command = [sys.executable, "-m", "pipeline", *words]
    return subprocess.run(command, text=True, check=False, **streams)  # type: ignore[call-overload,no-any-return]


def start_script(code: str) -> subprocess.Popen[str]:
    """A process whose `info` command runs `code`, waiting until it says so."""
    script = f"import sys, time\nfrom pipeline import cli\ndef work(_):\n{code}\n"
    script += "cli._COMMANDS['info'] = work\nsys.exit(cli.main(['info', 'x']))\n"
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class TestHelp:
    def test_imports_nothing_heavy(self) -> None:
        """--help of the program and of dump come without any library of the stages."""
        code = (
            "import sys\n"
            "from pipeline.cli import main\n"
            "for words in (['--help'], ['dump', '--help']):\n"
            "    try:\n"
            "        main(words)\n"
            "    except SystemExit as end:\n"
            "        assert end.code == 0\n"
            "print(*sys.modules, file=sys.stderr)\n"
        )

        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )

        loaded = set(done.stderr.split())
        assert "pipeline.cli" in loaded
        assert not loaded & HEAVY
        assert not any(name.startswith("stages") for name in loaded)

    def test_starts_at_once(self) -> None:
        """Best of five under 0.15 s, whatever else the machine does."""
        spent = []
        for _ in range(5):
            began = time.perf_counter()
            assert run("--help").returncode == 0
            spent.append(time.perf_counter() - began)

        assert min(spent) < 0.15

    @pytest.mark.parametrize("command", COMMANDS)
    def test_each_command_has_an_example(self, command: str) -> None:
        """Help says what is printed where, and shows a command line that starts like this one."""
        done = run(command, "--help")

        assert done.returncode == 0
        assert "printed:" in done.stdout
        assert "standard output" in done.stdout
        assert f"\n  dumpstream {command} " in done.stdout

    def test_lists_the_commands_of_the_contract(self) -> None:
        """All of them, each with a line."""
        shown = run("--help").stdout

        assert all(
            f"    {command} " in shown or f"    {command}\n" in shown for command in COMMANDS
        )

    def test_version(self) -> None:
        """The number of the package, on standard output."""
        done = run("--version")

        assert done.returncode == 0
        assert done.stdout.startswith("dumpstream 0.")

    def test_reader_of_help_went_away(self) -> None:
        """Help into a closed pipe ends as any other report does."""
        reading, writing = os.pipe()
        os.close(reading)
        try:
            # Unbuffered, argparse itself meets the error, and keeps it to itself.
            done = run("dump", "--help", stdout=writing, env={**os.environ, "PYTHONUNBUFFERED": ""})
        finally:
            os.close(writing)

        assert (done.returncode, done.stderr) == (EXIT_CLOSED_OUTPUT, "")


class TestUsage:
    @pytest.mark.parametrize(
        "words", [[], ["dump", "x"], ["dump", "-d", "32", "x", "y"], ["frobnicate"]]
    )
    def test_wrong_words(self, words: list[str]) -> None:
        """argparse's own refusals end with 2, on standard error."""
        done = run(*words)

        assert done.returncode == 2
        assert done.stdout == ""
        assert "error:" in done.stderr

    def test_wrong_setting(self, tmp_path: Path) -> None:
        """A setting that is refused is one line and code 2, before anything is touched."""
        target = tmp_path / "dump"

        done = run("dump", "--set", "compressor.wrokers=3", "/nonexistent", str(target))

        assert done.returncode == 2
        assert done.stderr.startswith("dumpstream: error: --set: compressor.wrokers: ")
        assert "did you mean workers?" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert list(tmp_path.iterdir()) == []

    def test_environment_is_a_layer(self) -> None:
        """A wrong variable is named as such."""
        environ = {**os.environ, "DUMPSTREAM_DUMP__LEVEL": "32"}

        done = run("dump", "/nonexistent", "-", env=environ)

        assert done.returncode == 2
        assert "environment: dump.level: expected a whole number from 0 to 31" in done.stderr

    def test_bad_stats_path(self, tmp_path: Path) -> None:
        """A --stats that could not be written is refused before the dump, not after it."""
        done = run("dump", "--stats", str(tmp_path / "no/x.json"), "/nonexistent", "-")

        assert done.returncode == 2
        assert "run.stats" in done.stderr


def failing(error: BaseException) -> Callable[[object], int]:
    def command(_arguments: object) -> int:
        raise error

    return command


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "code", "said"),
        [
            (SinkError("out: no space"), 1, "out: no space"),
            (ConfigError("a.toml", "x.y", "bad"), 2, "a.toml: x.y: bad"),
            (StageError("reader", ConfigError("f", "k", "p")), 2, "reader: f: k: p"),
            (MissingInfoError("SYMBOL(x)", "y"), 1, "SYMBOL(x) is missing, needed for y"),
            (FileNotFoundError(2, "No such file", "/a\nb"), 1, "/a b: No such file"),
            (OSError(5, "Input/output error"), 1, "Input/output error"),
            (OSError("odd"), 1, "odd"),
            (BrokenPipeError(32, "Broken pipe"), 1, "Broken pipe"),
            (SinkError("two\nlines\x1b[2J"), 1, "two lines\\x1b[2J"),
            (MemoryError(), 1, "out of memory; a smaller memory.budget takes less"),
            (KeyError("x"), 1, "unexpected KeyError: 'x' (--debug shows where)"),
            (KeyboardInterrupt(), 1, "interrupted"),
        ],
    )
    def test_every_error_is_one_line(
        self,
        error: BaseException,
        code: int,
        said: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """Whatever ends a command: one line on standard error, and the code of the error table."""
        monkeypatch.setitem(cli._COMMANDS, "info", failing(error))

        assert cli.main(["info", "x"]) == code

        out, err = capsys.readouterr()
        assert (out, err) == ("", f"dumpstream: error: {said}\n")

    def test_debug_shows_the_traceback(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """With --debug the traceback comes before the line."""
        monkeypatch.setitem(cli._COMMANDS, "info", failing(KeyError("x")))

        assert cli.main(["info", "--debug", "x"]) == 1

        err = capsys.readouterr().err
        assert err.startswith("Traceback")
        assert err.splitlines()[-1].startswith("dumpstream: error: unexpected KeyError")

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_signals(self, number: signal.Signals) -> None:
        """Interrupted: one line and code 1, not a traceback and not a death by signal."""
        with start_script("    print('ready', flush=True)\n    time.sleep(30)") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(number)
            _, err = process.communicate(timeout=10)

        assert process.returncode == 1
        assert err == "dumpstream: error: interrupted\n"


class TestJsonLog:
    """A log that was asked for in JSON is JSON to its last line."""

    @pytest.mark.parametrize(
        ("words", "code", "said"),
        [
            (["/nonexistent", "x"], 1, "/nonexistent: No such file or directory"),
            (["--set", "a.b=c", "/nonexistent", "x"], 2, "--set: a.b: no such section"),
            (["/nonexistent", "gopher://host/x"], 2, "gopher:// is not a target"),
        ],
    )
    def test_failure_is_an_event(self, words: list[str], code: int, said: str) -> None:
        """With the text of the error and the exit code, which stays what it was."""
        done = run("dump", "--log-format", "json", *words)

        (line,) = done.stderr.splitlines()
        event = json.loads(line)
        assert list(event) == ["timestamp", "level", "event", "text", "exit_code"]
        assert (event["level"], event["event"]) == ("error", "run_failed")
        assert said in event["text"]
        assert event["exit_code"] == done.returncode == code

    def test_by_a_setting(self) -> None:
        """The setting asks as the option does."""
        environ = {**os.environ, "DUMPSTREAM_RUN__LOG_FORMAT": "json"}

        done = run("dump", "/nonexistent", "x", env=environ)

        assert json.loads(done.stderr)["event"] == "run_failed"

    @pytest.mark.parametrize("words", [[], ["--log-format", "console"]])
    def test_not_asked_for(self, words: list[str]) -> None:
        """Whoever starts it by hand or from a script reads why in words, into a file too."""
        done = run("dump", *words, "/nonexistent", "x")

        assert done.stderr == "dumpstream: error: /nonexistent: No such file or directory\n"

    def test_signal(self) -> None:
        """So is an interruption."""
        code = "    from pipeline.obs.log import configure_log\n    configure_log('json')\n"
        with start_script(f"{code}    print('ready', flush=True)\n    time.sleep(30)") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=60)

        assert process.returncode == 1
        assert json.loads(err)["text"] == "interrupted"


class TestStreams:
    def test_reader_of_our_output_went_away(self) -> None:
        """As head does: the code of a death by SIGPIPE, and not a word, at exit neither."""
        reading, writing = os.pipe()
        os.close(reading)
        try:
            done = run("doctor", stdout=writing)
        finally:
            os.close(writing)

        assert (done.returncode, done.stderr) == (EXIT_CLOSED_OUTPUT, "")

    def test_full_device(self) -> None:
        """Output that could not be written is a failure, in one line."""
        with Path("/dev/full").open("w") as full:
            done = run("doctor", stdout=full)

        assert done.returncode == 1
        assert done.stderr == "dumpstream: error: standard output: No space left on device\n"

    def test_closed_standard_output(self) -> None:
        """A command that has data to print refuses to print it nowhere."""
        for words in (
            ["doctor"],
            ["dump", "/nonexistent", "-"],
            ["dump", "/nonexistent", "x", "-"],
        ):
            done = shell('"$@" >&-', *words)

            assert done.returncode == 2
            assert done.stderr == "dumpstream: error: standard output is closed\n"

    def test_closed_standard_error(self) -> None:
        """Without standard error the exit code still tells."""
        assert shell('"$@" 2>&-', "info", "/nonexistent").returncode == 1
        assert shell('"$@" 2>&-', "doctor").returncode == 0

    def test_files_never_get_a_standard_number(self) -> None:
        """With all three closed, a file that a command opens is not descriptor 0, 1 or 2."""
        code = (
            "import os, sys; from pipeline import cli\n"
            "cli._COMMANDS['dump'] = lambda _: os.open(sys.executable, os.O_RDONLY)\n"
            "os._exit(cli.main(['dump', 'x', 'y']))"
        )

        done = subprocess.run(
            ["/bin/sh", "-c", '"$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code], check=False
        )

        assert done.returncode > 2


def shell(line: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run with the redirections of `line`, where ``"$@"`` is the program."""
    return subprocess.run(
        ["/bin/sh", "-c", line, "sh", sys.executable, "-m", "pipeline", *words],
        capture_output=True,
        text=True,
        check=False,
    )
