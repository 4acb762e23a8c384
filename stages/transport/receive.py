"""`dumpstream receive`: what the command line calls."""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pipeline.errors import EXIT_DONE, UsageError, first_of
from pipeline.obs.log import log_event
from stages.transport.limits import Limits
from stages.transport.messages import MAX_SIZE

if TYPE_CHECKING:
    import ssl

    import anyio

MAX_DUMPS: Final = 256
"""Received at once: four descriptors and about 5 MiB each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiveRequest:
    """``dumpstream receive --listen HOST:PORT [options] DIR`` or ``dumpstream receive - FILE``.

    Attributes:
        listen: None to read a flattened stream from standard input.
        target: the directory, or the file.
        tls_cert, tls_key, tls_client_ca: PEM files; the first and the last go together.
        max_bytes: of one dump, 0 for no limit of our own.
        max_dumps: at once.
        max_rate: bytes a second of all senders together, 0 for no limit.
        overwrite: dumps of the same name may be replaced, by senders that ask for it.
    """

    listen: str | None
    target: str
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_client_ca: str | None = None
    max_bytes: int = 0
    max_dumps: int = 8
    max_rate: int = 0
    overwrite: bool = False


def run_receive(request: ReceiveRequest) -> int:
    """Run the command; returns the process's exit code.

    Raises:
        UsageError: options that do not go together.
        SinkError: the address, the directory or the file cannot be used.
        TornStreamError: the stream on standard input was cut.
        FormatError: standard input is no flattened stream.
    """
    if request.listen is None:
        return _run_stream(request)
    listen = _parse_listen(request.listen)
    if not 1 <= request.max_dumps <= MAX_DUMPS:
        raise UsageError(f"--max-dumps takes 1 to {MAX_DUMPS}")
    limits = Limits(
        max_bytes=request.max_bytes or MAX_SIZE,
        max_dumps=request.max_dumps,
        max_rate=request.max_rate,
        allow_overwrite=request.overwrite,
    )
    tls = _tls(request)
    import anyio

    from stages.transport.receiver import serve

    async def run() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(_stop_on_signal, group.cancel_scope)
            await serve(listen, Path(request.target), limits, tls, on_listening=listening)

    def listening(host: str, port: int) -> None:
        if tls is None:
            why = "no --tls-cert: whoever connects may send"
            log_event("receiver_open_to_all", "warning", why=why)
        _say_listening(host, port)

    try:
        anyio.run(run)
    except BaseExceptionGroup as group:
        raise first_of(group) from group
    return EXIT_DONE


async def _stop_on_signal(scope: anyio.CancelScope) -> None:
    """Being told to stop is how a receiver ends well; the next one goes on with its uploads."""
    import anyio

    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for number in signals:
            log_event("receiver_stopped", signal=signal.Signals(number).name)
            scope.cancel()
            return


def _say_listening(host: str, port: int) -> None:
    """On standard output too, for scripts that asked for port 0."""
    shown = f"[{host}]" if ":" in host else host
    sys.stdout.write(f"listening on {shown}:{port}\n")
    sys.stdout.flush()


def _parse_listen(text: str) -> tuple[str, int]:
    host, found, port = text.rpartition(":")
    if not found or not port.isascii() or not port.isdigit() or int(port) > 65535 or not host:
        raise UsageError(f"--listen takes HOST:PORT, not {text!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _tls(request: ReceiveRequest) -> ssl.SSLContext | None:
    files = (request.tls_cert, request.tls_key, request.tls_client_ca)
    if not any(files):
        return None
    if request.tls_cert is None or request.tls_client_ca is None:
        raise UsageError(
            "TLS takes --tls-cert and --tls-client-ca (and --tls-key unless the key is in the "
            "former): peers without a certificate are never taken"
        )
    from stages.transport.tls import server_context

    return server_context(request.tls_cert, request.tls_key, request.tls_client_ca)


def _run_stream(request: ReceiveRequest) -> int:
    from stages.sink.partial_file import PartialFile
    from stages.transport.flat_stream import receive_stream

    file = PartialFile(request.target, overwrite=request.overwrite, fsync=True)
    size = receive_stream(sys.stdin.buffer, file, max_bytes=request.max_bytes or MAX_SIZE)
    log_event("stream_received", file=request.target, bytes=size)
    return EXIT_DONE
