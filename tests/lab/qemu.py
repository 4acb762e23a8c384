"""One QEMU guest: started, watched on its serial line, steered through QMP, killed at the end."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.lab.commands import LabError, tail, which

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

QMP_TIMEOUT_S = 900  # a dump command answers when the whole file is written
MAX_ALLOCATED_BYTES = 12 << 30  # of a file that holds a large guest's memory
MIN_FREE_BYTES = 4 << 30
FAILURES = re.compile(r"LAB-FAIL.*|Kernel panic - not syncing: (?!sysrq)(?!Fatal exception).*")


class Guest:
    """A running guest; use it as a context manager."""

    def __init__(self, argv: Sequence[str], serial_log: Path) -> None:
        """Takes QEMU's command line and the file that the serial line is written to."""
        self._argv = [str(which(argv[0])), *argv[1:]]
        self._log = serial_log
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        # a Unix socket's path must be short, which the cache folder's need not be
        self._folder = Path(tempfile.mkdtemp(prefix="lab-qemu-"))

    def __enter__(self) -> Self:
        """Starts QEMU."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._log.unlink(missing_ok=True)
        qmp = f"unix:{self._folder}/qmp,server=on,wait=off"
        # QEMU dies with the thread that started it, also when this process is killed outright
        argv: list[str] = ["setpriv", "--pdeathsig", "KILL", *self._argv]
        argv += ["-display", "none", "-serial", f"file:{self._log}", "-qmp", qmp]
        with (self._folder / "stderr").open("wb") as stderr:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=stderr)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Kills QEMU, whatever state it is in."""
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def log(self) -> str:
        """What the guest has printed so far."""
        try:
            return self._log.read_text(errors="replace").replace("\r", "")
        except FileNotFoundError:
            return ""

    def _fail(self, what: str) -> LabError:
        stderr = (self._folder / "stderr").read_text(errors="replace")
        return LabError(f"{what}\n{tail(stderr)}\nend of {self._log}:\n{tail(self.log())}")

    def _check_disk(self, file: Path) -> None:
        if file.stat().st_blocks * 512 > MAX_ALLOCATED_BYTES:
            raise self._fail(f"{file} was to stay sparse, and has grown past its limit")
        if shutil.disk_usage(file.parent).free < MIN_FREE_BYTES:
            raise self._fail(f"the disk of {file} is nearly full")

    def wait_for(self, marker: str, timeout_s: float, grows: Path | None = None) -> None:
        """Waits until the guest prints `marker`.

        Args:
            marker: what to look for on the serial line.
            timeout_s: how long to wait at most.
            grows: a sparse file the guest writes to; on a full disk QEMU would die of SIGBUS, and
                everything else on the machine would suffer.

        Raises:
            LabError: QEMU ended, the guest reported a failure, or the time or the disk is up.
        """
        deadline = time.monotonic() + timeout_s
        while marker not in (text := self.log()):
            assert self._process is not None
            if (failure := FAILURES.search(text)) is not None:
                raise self._fail(f"the guest says: {failure[0]}")
            if self._process.poll() is not None and marker not in self.log():
                raise self._fail(f"QEMU ended (exit {self._process.returncode}) before {marker}")
            if grows is not None and grows.exists():
                self._check_disk(grows)
            if time.monotonic() > deadline:
                raise self._fail(f"no {marker} from the guest within {timeout_s} s")
            time.sleep(0.1)

    def wait_end(self, timeout_s: float) -> None:
        """Waits until the guest has switched itself off."""
        assert self._process is not None
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise self._fail(f"the guest did not end within {timeout_s} s") from error

    def _connect(self) -> socket.socket:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(QMP_TIMEOUT_S)
            self._socket.connect(f"{self._folder}/qmp")
            self._lines = self._socket.makefile("r")
            self._lines.readline()  # the greeting
            self.qmp("qmp_capabilities")
        return self._socket

    def qmp(self, command: str, **arguments: object) -> Any:
        """Runs a QMP command and returns its answer; events in between are skipped."""
        message = json.dumps({"execute": command, "arguments": arguments})
        connection = self._socket if command == "qmp_capabilities" else self._connect()
        assert connection is not None
        try:
            connection.sendall(message.encode() + b"\n")
            for line in self._lines:
                answer = json.loads(line)
                if "error" in answer:
                    raise self._fail(f"QMP {command}: {answer['error']['desc']}")
                if "return" in answer:
                    return answer["return"]
        except OSError as error:
            raise self._fail(f"QMP {command}: {error}") from error
        raise self._fail(f"QMP {command}: QEMU closed the connection")


def sections(log: str) -> dict[str, str]:
    """The texts between LAB-BEGIN and LAB-END lines on the serial line, by their name."""
    found = re.findall(r"^LAB-BEGIN (\S+)\n(.*?)^LAB-END \1$", log, re.MULTILINE | re.DOTALL)
    return dict(found)
