"""`SshSink`: the remote scripts run in a local shell, behind a stand-in for ssh."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path
from urllib.parse import quote

import pytest

from pipeline.config.targets import NetSettings
from pipeline.errors import DumpError, RestartableSinkError, SinkError, StageError
from pipeline.flow.channel import Channel, Outbox
from pipeline.flow.items import Chunk, EndOfDump, Outline
from pipeline.run.runner import Flow, run_flow
from stages.formats.flattened import END_RECORD, HEADER
from stages.sink.manifest import read_manifest
from stages.sink.partial_file import PartialFile
from stages.transport.flat_stream import receive_stream
from tests.support.chunk_stream import ChunkStream, send
from tests.support.ssh_bench import Bench

pytestmark = pytest.mark.anyio

SIZE = 2_000_000


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def assembled(bench: Bench, tmp_path: Path) -> bytes:
    file = PartialFile(str(tmp_path / "assembled"), overwrite=True, fsync=False)
    with (bench.files / "dump").open("rb") as stream:
        receive_stream(stream, file)
    return (tmp_path / "assembled").read_bytes()


async def test_the_stream_arrives_whole_and_private(bench: Bench, tmp_path: Path) -> None:
    """The file is a flattened stream with its end, and the manifest names its digest."""
    stream = ChunkStream(SIZE)
    receipt = await send(stream, bench.ssh())
    path = bench.files / "dump"
    data = path.read_bytes()
    assert data.startswith(HEADER)
    assert data.endswith(END_RECORD)
    assert assembled(bench, tmp_path) == stream.expected()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_manifest(bench.files / "dump.manifest.json").size == receipt.n_bytes == len(data)
    assert bench.left() == ["dump", "dump.manifest.json"]


@pytest.mark.parametrize("taken", ["dump", "dump.partial"])
async def test_names_that_are_taken_are_refused(bench: Bench, taken: str) -> None:
    """Neither the dump's own name nor its partial name is written over."""
    (bench.files / taken).write_text("precious")
    with pytest.raises(SinkError, match=f"{taken} exists, -f overwrites it"):
        await bench.ssh().open()
    assert (bench.files / taken).read_text() == "precious"


async def test_a_name_that_is_taken_meanwhile_is_refused(bench: Bench) -> None:
    """The last step renames only if nothing has the name."""
    sink = bench.ssh()

    class Racing(ChunkStream):
        async def run(self, outbox: Outbox[Outline | Chunk | EndOfDump]) -> None:
            (bench.files / "dump").write_text("precious")
            await super().run(outbox)

    with pytest.raises(SinkError, match="appeared meanwhile"):
        await send(Racing(SIZE), sink)
    assert (bench.files / "dump").read_text() == "precious"
    assert bench.left() == ["dump"]


async def test_a_dump_can_be_replaced(bench: Bench, tmp_path: Path) -> None:
    """With overwrite the new one takes the name, and a stale partial file goes."""
    for name in ("dump", "dump.partial"):
        (bench.files / name).write_text("old")
    stream = ChunkStream(SIZE)
    await send(stream, bench.ssh(overwrite=True))
    assert assembled(bench, tmp_path) == stream.expected()


async def test_a_directory_is_no_target(bench: Bench) -> None:
    """Nor is a file in a directory that is not there."""
    (bench.files / "dump").mkdir()
    with pytest.raises(SinkError, match="is a directory"):
        await bench.ssh(overwrite=True).open()
    with pytest.raises(SinkError, match="no such directory"):
        await bench.ssh("no/dump").open()


@pytest.mark.parametrize("torn", [True, False])
async def test_a_dump_that_fails_leaves_nothing(bench: Bench, torn: bool) -> None:
    """A stream without its end opens nowhere, so it is removed."""
    with pytest.raises(DumpError):
        await send(ChunkStream(SIZE, fail_at=1_000_000, torn=torn), bench.ssh())
    assert bench.left() == []


async def test_ssh_that_dies_asks_for_a_new_run(bench: Bench) -> None:
    """The type tells the fallback that the same target may be tried from the start."""
    sink = bench.ssh(net=NetSettings(retry_deadline_s=0.2, retry_first_s=0.01))
    await sink.open()
    group = os.getpgid(bench.last_pid())
    os.killpg(group, signal.SIGKILL)
    flow = Flow(ChunkStream(SIZE), [], sink, [Channel("chunks", 1 << 20)])
    with pytest.raises(StageError, match="cannot take up again") as caught:
        await run_flow(flow)
    await sink.abort()
    assert isinstance(caught.value.cause, RestartableSinkError)
    assert bench.left() == []


async def test_a_shell_that_talks_is_listened_past(bench: Bench, tmp_path: Path) -> None:
    """What a login shell prints before our answers is skipped."""
    shell = tmp_path / "noise"
    shell.write_text("echo Welcome; echo dumpstream is great;\n")
    bench.faults(shell_prefix=f". {shell};")
    stream = ChunkStream(SIZE)
    await send(stream, bench.ssh())
    assert assembled(bench, tmp_path) == stream.expected()


async def test_a_connection_that_is_refused_is_one_line(bench: Bench) -> None:
    """As with SFTP."""
    bench.faults(words="me@host: Permission denied (publickey).\n")
    with pytest.raises(SinkError, match="refused every key") as caught:
        await bench.ssh().open()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["it's", "a b", "$(touch x)", "-rf", ";exit", 'q"q', "`id`", "é"])
async def test_names_mean_nothing_to_the_shell(bench: Bench, name: str) -> None:
    """Every name is kept as it is."""
    await send(ChunkStream(10_000), bench.ssh(quote(name)))
    assert name in bench.left()
