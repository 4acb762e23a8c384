"""Uploads to object stores as the tests run them: in this process, or in one that gets killed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import anyio

from pipeline.config.settings import Settings
from pipeline.config.targets import AzureSettings, NetSettings, S3Settings
from stages.sink.journal import Journal, identify_source
from stages.sink.manifest import Manifest
from stages.sink.parts_sink import PartsSink
from tests.support.chunk_stream import ChunkStream, send

MIB = 1 << 20
NET = NetSettings(
    retry_first_s=0.01, retry_most_s=0.5, retry_deadline_s=60, stall_timeout_s=2, journal_dir="none"
)


@dataclass(frozen=True)
class Upload:
    """Where a synthetic dump goes, as plain values that another process can be given."""

    url: str
    endpoint: str
    data_bytes: int
    net: NetSettings = NET
    overwrite: bool = False
    secret: str | None = None
    s3: tuple[tuple[str, str], ...] = ()

    @property
    def settings(self) -> Settings:
        return Settings(
            net=self.net,
            s3=S3Settings(endpoint=self.endpoint, **dict(self.s3)),  # type: ignore[arg-type]
            azure=AzureSettings(endpoint=self.endpoint),
        )

    def stream(self) -> ChunkStream:
        low_bytes = self.data_bytes // 60 + 20_000
        return ChunkStream(self.data_bytes, low_bytes=low_bytes, chunk_bytes=1 * MIB)

    def sink(self, journal: Journal | None = None) -> PartsSink:
        if self.url.startswith("az:"):
            from stages.sink import azure as module
        else:
            from stages.sink import s3 as module  # type: ignore[no-redef]
        return module.make_sink(self.url, self.settings, journal)

    async def run(self, journal: Journal | None = None) -> PartsSink:
        """Send all of it; the sink afterwards, for its counters."""
        sink = self.sink(journal)
        await send(self.stream(), sink)
        return sink


def check(manifest: Manifest, data: bytes, stream: ChunkStream) -> None:
    """Stored bytes, manifest and what was sent agree."""
    assert len(data) == stream.size == manifest.size
    assert data == stream.expected()
    for piece in manifest.pieces():
        assert hashlib.sha256(data[piece.offset : piece.end]).digest() == piece.sha256


def new_journal(folder: Path, upload: Upload) -> Journal:
    """A journal whose source is a small file in `folder`."""
    image = folder / "image"
    image.write_bytes(upload.url.encode())
    return Journal.create(
        folder, target=upload.url, source=identify_source(str(image)), settings={}
    )


def run_and_kill(upload: Upload, folder: Path, n_parts: int) -> Path:
    """Run `upload` in a process of its own and kill it after `n_parts`; its journal."""
    words = [sys.executable, "-m", __name__, json.dumps(_packed(upload)), str(folder)]
    process = subprocess.Popen(words, start_new_session=True)
    give_up_at = time.monotonic() + 60
    try:
        while True:
            journal = next(folder.glob("*.journal"), None)
            if journal is not None and journal.read_text().count('"kind":"part"') >= n_parts:
                process.kill()
                return journal
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < give_up_at
            time.sleep(0.002)
    finally:
        process.kill()
        process.wait()


def _packed(upload: Upload) -> dict[str, object]:
    import msgspec

    return {**asdict(upload), "net": msgspec.to_builtins(upload.net)}


def _main(packed: str, folder: str) -> None:
    import msgspec

    values = json.loads(packed)
    values["net"] = msgspec.convert(values["net"], NetSettings)
    values["s3"] = tuple((name, value) for name, value in values["s3"])
    upload = Upload(**values)
    anyio.run(upload.run, new_journal(Path(folder), upload))


if __name__ == "__main__":
    os.nice(5)
    _main(*sys.argv[1:])
