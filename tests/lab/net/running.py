"""Server processes of the network tests: on free ports, bounded in time, always stopped."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab.commands import LabError, tail

_STOP_S = 5.0


def free_ports(n_ports: int) -> list[int]:
    """Ports that nobody listens on now, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n_ports)]
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def find_server(name: str, how: str) -> Path:
    """The program `name`: beside the interpreter or on the path.

    Without it the test is skipped, and fails in CI; `how` says how to install it.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        problem = f"{name} is not installed ({how})"
        if os.environ.get("CI"):
            pytest.fail(problem)
        pytest.skip(problem)
    return Path(found)


class Running:
    """A server process; `stop` and `start` again keep its port and its data."""

    def __init__(
        self,
        argv: Sequence[object],
        *,
        log: Path,
        is_up: Callable[[], bool],
        start_s: float = 60,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._argv = [str(word) for word in argv]
        self._log = log
        self._is_up = is_up
        self._start_s = start_s
        self._env = {**os.environ, **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            LabError: it ended, or did not answer in time; with its last words.
        """
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._env,
                start_new_session=True,
            )
        give_up_at = time.monotonic() + self._start_s
        while not self._is_up():
            ended = self._process.poll() is not None
            if ended or time.monotonic() > give_up_at:
                self.stop()
                words = tail(self._log.read_text(errors="replace"))
                raise LabError(f"{self._argv[0]}: {'ended' if ended else 'not up'}\n{words}")
            time.sleep(0.05)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Stop it and everything that it started; forcibly after a while."""
        process, self._process = self._process, None
        if process is None:
            return
        for each in (number, signal.SIGKILL):
            if process.poll() is None:
                os.killpg(process.pid, each)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                continue
            return


@contextmanager
def running(server: Running) -> Iterator[Running]:
    """`server`, started, and stopped at the end of the block."""
    server.start()
    try:
        yield server
    finally:
        server.stop()


def listens(port: int) -> bool:
    """True when something takes connections at `port`."""
    try:
        socket.create_connection(("127.0.0.1", port), 0.5).close()
    except OSError:
        return False
    return True
