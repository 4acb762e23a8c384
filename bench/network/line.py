"""A slow and far line before a server, and how much of it a plain sender can use."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_STEP = bytes(256 << 10)


@contextmanager
def line_to(port: int, *, rate: float, round_trip_s: float) -> Iterator[int]:
    """The tests' proxy as a process; its port.

    Args:
        port: of the server behind it.
        rate: bytes a second, each way.
        round_trip_s: added to each round trip, half of it each way.
    """
    words = ["-m", "tests.support.faulty_proxy", "--upstream", f"127.0.0.1:{port}"]
    words += ["--delay", str(round_trip_s / 2), "--rate", str(rate)]
    with subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.terminate()


def plain_use(rate: float, round_trip_s: float, n_bytes: int) -> float:
    """Share of the line that one socket uses which only sends.

    It is what the proxy can do beside nothing else; nobody's dump can use more.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        taker = threading.Thread(target=_take_all, args=(server,))
        taker.start()
        with line_to(server.getsockname()[1], rate=rate, round_trip_s=round_trip_s) as port:
            started = time.perf_counter()
            with socket.create_connection(("127.0.0.1", port)) as client:
                for _ in range(n_bytes // len(_STEP)):
                    client.sendall(_STEP)
                client.shutdown(socket.SHUT_WR)
                client.recv(1)
            seconds = time.perf_counter() - started
            taker.join()
    return n_bytes // len(_STEP) * len(_STEP) / (seconds * rate)


def _take_all(server: socket.socket) -> None:
    """Read one connection to its end, then say so."""
    connection, _ = server.accept()
    with connection:
        while connection.recv(1 << 20):
            pass
        connection.sendall(b".")
