"""A sender or a receiver as a process of its own, for tests that kill and measure them.

``receive PORT DIRECTORY [MAX_DUMPS]`` serves until it is killed; ``send URL BYTES [JOURNAL]``
sends a synthetic dump, or goes on with the upload that JOURNAL tells of, and prints a JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import anyio

from pipeline.config.settings import Settings
from pipeline.config.targets import NetSettings, TcpSettings
from pipeline.errors import DumpError
from pipeline.obs.rss import peak_rss_bytes
from stages.sink.journal import Journal
from stages.sink.manifest import SourceIdentity
from stages.sink.tcp import make_sink
from stages.transport.receive import ReceiveRequest, run_receive
from tests.support.chunk_stream import ChunkStream, send

SOURCE = SourceIdentity("synthetic", 0, None, "0" * 64)
CHUNK_BYTES = 1 << 20


def synthetic(n_bytes: int, seed: int = 0) -> ChunkStream:
    """The dump that `send` sends."""
    return ChunkStream(n_bytes, low_bytes=1 << 20, chunk_bytes=CHUNK_BYTES, seed=seed)


def _receive(port: str, folder: str, max_dumps: str = "8") -> int:
    listen = f"127.0.0.1:{port}"
    return run_receive(ReceiveRequest(listen=listen, target=folder, max_dumps=int(max_dumps)))


def _send(url: str, n_bytes: str, journal_path: str | None = None) -> int:
    settings = Settings(
        net=NetSettings(
            stall_timeout_s=2, retry_first_s=0.05, retry_most_s=0.5, retry_deadline_s=30
        ),
        tcp=TcpSettings(heartbeat_s=0.3),
    )
    sink = make_sink(url, settings, journal=_journal(journal_path, url))
    started = time.monotonic()
    anyio.run(lambda: send(synthetic(int(n_bytes)), sink, capacity=4 << 20))
    window = sink.sender.window
    seen = {
        "seconds": time.monotonic() - started,
        "rss_mib": peak_rss_bytes() / (1 << 20),
        "chunks": window.added,
        "skipped": window.n_skipped,
        "lost": sink.sender.n_lost,
    }
    sys.stdout.write(json.dumps(seen) + "\n")
    return 0


def _journal(path: str | None, url: str) -> Journal | None:
    if path is None:
        return None
    found = sorted(Path(path).glob("*.journal"))
    if found:
        return Journal.open(found[0])
    return Journal.create(Path(path), target=url, source=SOURCE, settings={})


def _main(command: str, *arguments: str) -> int:
    try:
        return _receive(*arguments) if command == "receive" else _send(*arguments)
    except DumpError as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
