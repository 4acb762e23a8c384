"""Our own transport between real processes: killed, restarted, slowed down, many at once."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stages.sink.manifest import read_manifest
from tests.support.tcp_program import synthetic

pytestmark = pytest.mark.lab

MIB = 1 << 20
LIMIT_S = 180


def program(*arguments: object, module: str = "tests.support.tcp_program") -> list[str]:
    return [sys.executable, "-m", module, *map(str, arguments)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def started(argv: list[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that says one line when it is ready; it is killed at the end of the block."""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


@dataclass
class Receiver:
    """A receiver's process."""

    process: subprocess.Popen[str]
    folder: Path
    port: int

    def peak_rss_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s*(\d+) kB", status)
        assert found is not None
        return int(found[1]) / 1024

    def holds(self, name: str, n_bytes: int) -> bool:
        """Whether dump `name` is there, whole and right, with nothing beside it."""
        return (
            (self.folder / name).read_bytes() == synthetic(n_bytes).expected()
            and read_manifest(self.folder / f"{name}.manifest.json").name == name
            and not list(self.folder.glob(f"{name}.partial*"))
        )


@contextmanager
def receiver(folder: Path, port: int = 0, max_dumps: int = 8) -> Iterator[Receiver]:
    folder.mkdir(exist_ok=True)
    with started(program("receive", port, folder, max_dumps)) as (process, line):
        assert line.startswith("listening on 127.0.0.1:"), line
        yield Receiver(process, folder, int(line.rpartition(":")[2]))


@contextmanager
def proxy(upstream: int, *options: object) -> Iterator[int]:
    """The faulty proxy as a process; its port."""
    words = ["--upstream", f"127.0.0.1:{upstream}", *options]
    with started(program(*words, module="tests.support.faulty_proxy")) as (_, line):
        yield int(line)


def send(port: int, name: str, n_bytes: int, *more: object) -> dict[str, Any]:
    """Send a dump in a process of its own; what it says about itself."""
    argv = program("send", f"tcp://127.0.0.1:{port}/{name}", n_bytes, *more)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


FAULTS = {
    "reset every 8 MiB": ["--reset-every", 12 * MIB],
    "resets, then away": ["--reset-every", 40 * MIB, "--refuse", 1],
    "stalled peer": ["--stall-after", 30 * MIB, "--stall", 6],
    "corrupted chunk": ["--corrupt-at", 33 * MIB],
}


@pytest.mark.parametrize("options", FAULTS.values(), ids=FAULTS.keys())
def test_faults_of_the_line(tmp_path: Path, options: list[object]) -> None:
    """Resets, silence and damage cost time and nothing else."""
    with receiver(tmp_path / "dumps") as there, proxy(there.port, *options) as port:
        said = send(port, "dump", 96 * MIB)

        assert said["lost"] >= 1
        assert there.holds("dump", 96 * MIB)


def test_receiver_is_killed(tmp_path: Path) -> None:
    """kill -9 of the receiver in the middle; the next one on that port gets the rest."""
    folder, n_bytes = tmp_path / "dumps", 256 * MIB
    with receiver(folder) as first, proxy(first.port, "--rate", 100 * MIB) as line:
        url = f"tcp://127.0.0.1:{line}/dump"
        with subprocess.Popen(program("send", url, n_bytes), stdout=subprocess.PIPE) as sender:
            wait_for_size(folder / "dump.partial", 64 * MIB)
            first.process.kill()
            first.process.wait()
            time.sleep(0.5)
            with receiver(folder, first.port) as second:
                said, _ = sender.communicate(timeout=LIMIT_S)

                assert sender.returncode == 0
                assert json.loads(said)["lost"] >= 1
                assert second.holds("dump", n_bytes)


def test_sender_is_killed(tmp_path: Path) -> None:
    """kill -9 of the sender in the middle; run again with its journal it sends only the rest."""
    journals, n_bytes = tmp_path / "journals", 256 * MIB
    with receiver(tmp_path / "dumps") as there, proxy(there.port, "--rate", 100 * MIB) as line:
        url = f"tcp://127.0.0.1:{line}/dump"
        with subprocess.Popen(program("send", url, n_bytes, journals)) as sender:
            wait_for_size(there.folder / "dump.partial", 128 * MIB)
            sender.kill()

        said = send(there.port, "dump", n_bytes, journals)

        assert said["skipped"] >= 0.4 * said["chunks"]
        assert there.holds("dump", n_bytes)
        assert not list(journals.glob("*"))


def wait_for_size(path: Path, n_bytes: int) -> None:
    """Until the file at `path` reaches to byte `n_bytes`."""
    give_up_at = time.monotonic() + 60
    while not path.exists() or path.stat().st_size < n_bytes:
        assert time.monotonic() < give_up_at, f"{path} never reached {n_bytes} bytes"
        time.sleep(0.01)


def test_eight_senders(tmp_path: Path) -> None:
    """Eight at once: every dump is right, and the receiver stays under 300 MiB."""
    n_bytes = 96 * MIB
    with receiver(tmp_path / "dumps") as there:
        argvs = [
            program("send", f"tcp://127.0.0.1:{there.port}/dump{number}", n_bytes)
            for number in range(8)
        ]
        senders = [subprocess.Popen(argv, stdout=subprocess.PIPE) for argv in argvs]
        outputs = [sender.communicate(timeout=LIMIT_S)[0] for sender in senders]

        assert [sender.returncode for sender in senders] == [0] * 8
        assert all(there.holds(f"dump{number}", n_bytes) for number in range(8))
        peak = there.peak_rss_mib()
        print(f"receiver's peak RSS with 8 senders: {peak:.0f} MiB")
        assert peak < 300
        assert all(json.loads(output)["rss_mib"] < 200 for output in outputs)


def test_long_slow_line(tmp_path: Path) -> None:
    """50 ms each way and 50 MB/s: the window keeps the line full."""
    n_bytes, rate = 400 * MIB, 50e6
    with (
        receiver(tmp_path / "dumps") as there,
        proxy(there.port, "--delay", 0.05, "--rate", rate) as line,
    ):
        said = send(line, "dump", n_bytes)

        use = n_bytes / rate / said["seconds"]
        print(f"link use at 50 ms and 50 MB/s: {use:.0%}, sender's RSS {said['rss_mib']:.0f} MiB")
        assert use >= 0.85
        assert there.holds("dump", n_bytes)
