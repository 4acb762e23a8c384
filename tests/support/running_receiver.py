"""A receiver inside the test's own process, and sinks that send to it."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from stages.sink.retry import RetryPolicy
from stages.sink.tcp import TcpSink
from stages.transport.endpoint import Address, Endpoint
from stages.transport.limits import Limits
from stages.transport.receiver import serve
from stages.transport.sender import SendOptions

QUICK = RetryPolicy(first_delay_s=0.01, max_delay_s=0.05, deadline_s=5.0)


@dataclass
class Running:
    """A receiver that serves `folder`."""

    folder: Path
    port: int = 0

    def names(self) -> list[str]:
        """What lies in the directory."""
        return sorted(path.name for path in self.folder.iterdir())


@asynccontextmanager
async def running_receiver(
    folder: Path,
    limits: Limits | None = None,
    tls: ssl.SSLContext | None = None,
    *,
    port: int = 0,
) -> AsyncIterator[Running]:
    """Lives as long as the block; what it received stays."""
    running = Running(folder)
    listening = anyio.Event()

    def on_listening(_host: str, its_port: int) -> None:
        running.port = its_port
        listening.set()

    async def run() -> None:
        address = ("127.0.0.1", port)
        await serve(address, folder, limits or Limits(), tls, on_listening=on_listening)

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        with anyio.fail_after(5):
            await listening.wait()
        yield running
        group.cancel_scope.cancel()


def options(**changes: Any) -> SendOptions:
    """Small and impatient, for tests."""
    given: dict[str, Any] = {
        "policy": QUICK,
        "window_bytes": 1 << 20,
        "stall_s": 2.0,
        "heartbeat_s": 0.1,
    }
    return SendOptions(**{**given, **changes})


def make_tcp_sink(
    port: int,
    name: str = "dump",
    *,
    tls: ssl.SSLContext | None = None,
    chunk_bytes: int = 64 << 10,
    sending: SendOptions | None = None,
    **more: Any,
) -> TcpSink:
    """A sink that sends to 127.0.0.1."""
    address = Address("tcp" if tls is None else "tls", "127.0.0.1", port, name)
    return TcpSink(
        Endpoint(address, 2.0, tls, "localhost"),
        sending or options(),
        chunk_bytes=chunk_bytes,
        **more,
    )
