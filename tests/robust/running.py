"""Runs the command line as a process, or in this one, and takes its standard error apart.

What a user may see there is JSON events, and one line about what went wrong: `Done` refuses
anything else, so a traceback fails whatever test it turns up in.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pipeline import cli
from pipeline.obs.log import configure_log

TIMEOUT_S: Final = 120
"""Far above what any run of these tests takes on a busy machine: what takes longer hangs."""
_PREFIX: Final = "dumpstream: error: "


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    def _lines(self) -> list[str]:
        lines = self.err.splitlines()
        for line in lines:
            assert line.startswith(("{", _PREFIX)), f"neither event nor error line: {self.err}"
        return lines

    @property
    def events(self) -> list[dict[str, Any]]:
        """What was logged."""
        return [json.loads(line) for line in self._lines() if line.startswith("{")]

    def event(self, name: str) -> dict[str, Any]:
        """The only event called `name`."""
        (found,) = [one for one in self.events if one["event"] == name]
        return found

    @property
    def error(self) -> str:
        """The one line about what went wrong, the last on standard error."""
        lines = self._lines()
        errors = [line for line in lines if line.startswith(_PREFIX)]
        assert len(errors) == 1, self.err
        assert lines[-1] == errors[0]
        return errors[0].removeprefix(_PREFIX)

    def succeeded(self) -> Done:
        """This, which must have gone well."""
        assert (self.code, [one for one in self._lines() if one.startswith(_PREFIX)]) == (0, [])
        return self

    def failed(self, code: int, *said: str) -> str:
        """The error line, which must have all of `said` in it, of a run that ended with `code`."""
        assert self.code == code, self.err
        for part in said:
            assert part in self.error
        return self.error


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "pipeline", *map(str, words)]


def run(*words: object, **more: Any) -> Done:
    """`python -m pipeline` with `words`, to its end."""
    done = subprocess.run(
        command(*words),
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more},
        stdin=subprocess.DEVNULL,
        timeout=TIMEOUT_S,
        check=False,
    )
    texts = [(part or b"").decode(errors="replace") for part in (done.stdout, done.stderr)]
    return Done(done.returncode, *texts)


def call(*words: object) -> Done:
    """The same inside this process: ten times as fast, and without the exit of a process."""
    out, err = io.TextIOWrapper(io.BytesIO()), io.StringIO()
    configure_log()  # a new process does not have the format of the one before
    with _signals_kept(), redirect_stdout(out), redirect_stderr(err):
        code = cli.main([str(word) for word in words])
    out.flush()
    assert isinstance(out.buffer, io.BytesIO)
    return Done(code, out.buffer.getvalue().decode(errors="replace"), err.getvalue())


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Puts back the handlers that the command line sets for its process."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


QUICK: Final = ("--set", "compressor.mode=inline", "--set", "sink.fsync=false")
"""Words for dumps in this process: no forked workers, no waiting for the disk."""
SLOW: Final = ("--compress", "zstd", "--compress-level", "22", "--set", "reader.batch_pages=16")
"""Words for dumps that go on long enough to be disturbed: a second for every few MiB."""


@contextmanager
def started(*words: object, **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    """The command under way, in a session of its own; killed at the end if it still is."""
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, **more}
    with process(command(*words), **streams) as running:
        yield running


@contextmanager
def process(words: list[str], **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Any program under way, with its workers if it has some."""
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, start_new_session=True, **more
    ) as running:
        try:
            yield running
        finally:
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)


def finish(running: subprocess.Popen[bytes]) -> Done:
    """Wait for the end of what was started."""
    out, err = running.communicate(timeout=TIMEOUT_S)
    texts = [(part or b"").decode(errors="replace") for part in (out, err)]
    return Done(running.returncode, *texts)


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Poll until `holds`; fails when it takes for ever."""
    give_up_at = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < give_up_at, f"waited in vain for {what}"
        time.sleep(0.005)


def children(pid: int) -> list[int]:
    """Processes that `pid` has started and that were not waited for."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    """False also for a zombie: nobody may be there to wait for an orphan."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


def left_in(folder: Path) -> list[str]:
    """Names of what a run left in the folder of its target."""
    return sorted(path.name for path in folder.iterdir())
