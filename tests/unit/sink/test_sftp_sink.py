"""`SftpSink` over a program that stands in for ssh and breaks where it is told to."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from pipeline.config.targets import NetSettings
from pipeline.errors import DumpError, SinkError, StageError, UsageError
from pipeline.flow.channel import Channel
from pipeline.run.runner import Flow, run_flow
from stages.sink.manifest import read_manifest
from tests.support.chunk_stream import ChunkStream, send
from tests.support.ssh_bench import Bench

pytestmark = pytest.mark.anyio


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


STREAM = 2_000_000
"""Bytes of data: eight full writes of OpenSSH's size, 62 of the smallest that all servers take."""


async def test_the_dump_arrives_whole_and_private(bench: Bench) -> None:
    """Content, permissions, manifest; nothing else is left."""
    stream = ChunkStream(STREAM)
    receipt = await send(stream, bench.sftp())
    path = bench.files / "dump"
    assert path.read_bytes() == stream.expected()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_manifest(bench.files / "dump.manifest.json").size == receipt.n_bytes == stream.size
    assert bench.left() == ["dump", "dump.manifest.json"]


async def test_small_chunks_share_writes(bench: Bench) -> None:
    """Chunks that follow each other are sent as one, up to what the server takes."""
    stream = ChunkStream(STREAM, chunk_bytes=5_000)
    await send(stream, bench.sftp())
    assert (bench.files / "dump").read_bytes() == stream.expected()
    assert bench.counted("writes") < 15


async def test_a_plain_server_without_extensions_will_do(bench: Bench) -> None:
    """No limits, no atomic replace, no fsync: small writes, remove and rename."""
    bench.faults(extensions=[])
    (bench.files / "dump").write_text("old")
    stream = ChunkStream(STREAM)
    await send(stream, bench.sftp(overwrite=True))
    assert (bench.files / "dump").read_bytes() == stream.expected()
    assert bench.counted("writes") >= STREAM // (32 << 10)


async def test_answers_may_come_in_any_order(bench: Bench) -> None:
    """The server may answer a later write first."""
    bench.faults(reversed=True)
    stream = ChunkStream(STREAM)
    await send(stream, bench.sftp())
    assert (bench.files / "dump").read_bytes() == stream.expected()


@pytest.mark.parametrize("connections", [1, 3])
async def test_lost_connections_cost_what_was_under_way(bench: Bench, connections: int) -> None:
    """Writes that were not answered are sent again over a new connection, and no others."""
    bench.faults(die_at_writes=[1, 4, 5, 9])
    stream = ChunkStream(STREAM)
    await send(stream, bench.sftp(connections=connections))
    assert (bench.files / "dump").read_bytes() == stream.expected()
    assert bench.counted("connections") > 4
    assert bench.counted("writes") < 60


async def test_a_server_that_always_breaks_is_given_up(bench: Bench) -> None:
    """After the deadline there is one line, and the partial file is gone or named."""
    bench.faults(die_at_writes=list(range(1, 1000)))
    net = NetSettings(retry_deadline_s=0.5, retry_first_s=0.001, retry_most_s=0.01)
    with pytest.raises(StageError, match=r"given up after 0\.5 s") as caught:
        await send(ChunkStream(STREAM), bench.sftp(net=net))
    assert "Broken pipe" in str(caught.value)
    assert bench.left() == []


async def test_a_connection_that_ends_for_good_is_replaced_by_the_others(bench: Bench) -> None:
    """Connections that the server no longer takes cost nothing while one is left."""
    bench.faults(connections_allowed=1)
    stream = ChunkStream(STREAM)
    await send(stream, bench.sftp(connections=3))
    assert (bench.files / "dump").read_bytes() == stream.expected()


async def test_what_was_under_way_on_a_connection_that_ends_for_good_is_not_lost(
    bench: Bench,
) -> None:
    """The others take over what a connection that cannot be restored had not been answered for."""
    bench.faults(die_at_writes=[3, 6], connections_allowed=3)
    stream = ChunkStream(STREAM)
    await send(stream, bench.sftp(connections=3, verify="none"))
    assert (bench.files / "dump").read_bytes() == stream.expected()


async def test_a_peer_that_never_answers_is_given_up(bench: Bench) -> None:
    """Silence counts as a lost connection."""
    bench.faults(deaf=True)
    net = NetSettings(
        connect_timeout_s=0.1, stall_timeout_s=0.2, retry_deadline_s=0.1, retry_first_s=0.001
    )
    with pytest.raises(SinkError, match=r"no answer in 0.3 s"):
        await bench.sftp(net=net).open()


async def test_a_full_disk_is_named(bench: Bench) -> None:
    """SFTP only says Failure; the free space tells why. What was readable would stay."""
    bench.faults(refuse_writes=4)
    with pytest.raises(DumpError, match="no space left") as caught:
        await send(ChunkStream(STREAM), bench.sftp())
    assert "\n" not in str(caught.value)
    assert bench.left() == []


async def test_a_refused_write_shows_the_server_s_words(bench: Bench) -> None:
    """Where the server does not tell the free space, its own message has to do."""
    bench.faults(refuse_writes=3, extensions=[])
    with pytest.raises(DumpError, match=r"partial: Failure \(after \d+ bytes\)"):
        await send(ChunkStream(STREAM), bench.sftp())


async def test_bytes_that_were_stored_wrong_keep_the_dump_from_its_name(bench: Bench) -> None:
    """Reading back finds the write that went wrong."""
    bench.faults(corrupt_write=5)
    with pytest.raises(DumpError, match="read back differently"):
        await send(ChunkStream(STREAM), bench.sftp())
    assert bench.left() == ["dump.partial"]


@pytest.mark.parametrize("connections", [1, 2])
async def test_reading_back_and_sync_share_the_connections_that_there_are(
    bench: Bench, connections: int
) -> None:
    """Both are under way together, but no server has to take one connection more for it."""
    bench.faults(connections_allowed=connections)
    stream = ChunkStream(STREAM)
    await send(stream, bench.sftp(connections=connections))
    assert (bench.files / "dump").read_bytes() == stream.expected()
    assert bench.counted("connections") == connections


@pytest.mark.parametrize("connections", [1, 2])
async def test_a_connection_lost_while_reading_back_is_made_up_for(
    bench: Bench, connections: int
) -> None:
    """Another one takes over while there is one; the last one is replaced."""
    bench.faults(die_after="READ", connections_allowed=2)
    stream = ChunkStream(STREAM)
    await send(stream, bench.sftp(connections=connections))
    assert (bench.files / "dump").read_bytes() == stream.expected()
    assert bench.counted("died after") > 0


@pytest.mark.parametrize("step", ["OPEN", "RENAME"])
async def test_a_step_whose_answer_is_lost_is_not_done_twice(bench: Bench, step: str) -> None:
    """The next connection finds out that the file is already there, or already renamed."""
    bench.faults(die_after=step)
    stream = ChunkStream(STREAM)
    await send(stream, bench.sftp())
    assert (bench.files / "dump").read_bytes() == stream.expected()
    assert bench.counted("died after") > 0


@pytest.mark.parametrize(
    ("faults", "problem"),
    [
        ({"banner": "Welcome to host!\n"}, r"does the shell at the other end print something"),
        ({"huge": True}, r"a packet of 2147483648 bytes, wanted 5 to 524288"),
        (
            {"words": "No ED25519 host key is known for host\nHost key verification failed.\n"},
            "the host key is not known",
        ),
        ({"words": "tester@host: Permission denied (publickey).\n"}, "refused every key"),
        ({"words": "subsystem request failed on channel 0\n"}, "offers no SFTP"),
        (
            {"words": "ssh: Could not resolve hostname host: Name or service not known\n"},
            "not known",
        ),
    ],
)
async def test_a_connection_that_cannot_be_is_refused_at_once(
    bench: Bench, faults: dict[str, object], problem: str
) -> None:
    """One line, no second try."""
    bench.faults(**faults)
    with pytest.raises(SinkError, match=problem) as caught:
        await bench.sftp().open()
    assert "\n" not in str(caught.value)
    assert bench.counted("connections") == 1


async def test_a_missing_program_is_named(bench: Bench) -> None:
    """No ssh, no trace."""
    bench.program.unlink()
    with pytest.raises(SinkError, match="ssh cannot be started: No such file"):
        await bench.sftp().open()


async def test_names_that_are_taken_are_refused(bench: Bench) -> None:
    """The dump's own name, its partial name, and a directory."""
    for name, problem in (("dump", "exists"), ("dump.partial", "exists")):
        (bench.files / name).write_text("precious")
        with pytest.raises(SinkError, match=problem):
            await bench.sftp().open()
        assert (bench.files / name).read_text() == "precious"
        (bench.files / name).unlink()
    (bench.files / "dump").mkdir()
    with pytest.raises(SinkError, match="is a directory"):
        await bench.sftp(overwrite=True).open()


@pytest.mark.parametrize("torn", [True, False])
async def test_a_dump_that_fails_leaves_its_readable_part(bench: Bench, torn: bool) -> None:
    """The partial file stays, and `abort` says where."""
    with pytest.raises(DumpError):
        await send(ChunkStream(STREAM, fail_at=1_500_000, torn=torn), bench.sftp())
    assert bench.left() == ["dump.partial"]


@pytest.mark.parametrize("scheme", ["sftp", "ssh"])
async def test_nothing_runs_after_an_open_that_was_cancelled(bench: Bench, scheme: str) -> None:
    """Ctrl-C while a server keeps silent ends ssh too."""
    bench.faults(deaf=True, shell_prefix="sleep 60;")
    sink = bench.sftp() if scheme == "sftp" else bench.ssh()
    with anyio.move_on_after(0.5) as scope:
        await sink.open()
    assert scope.cancelled_caught
    with pytest.raises(ProcessLookupError):
        os.kill(bench.last_pid(), 0)
    assert bench.left() == []


async def test_a_connection_that_falls_silent_is_replaced(bench: Bench) -> None:
    """Its process is ended by force, and the dump goes on over another one."""
    # The next connection starts an interpreter: on a busy machine that takes a while too.
    net = NetSettings(stall_timeout_s=1, retry_deadline_s=60, retry_first_s=0.01)
    sink = bench.sftp(net=net)
    await sink.open()
    silent = bench.last_pid()
    os.kill(silent, signal.SIGSTOP)
    stream = ChunkStream(STREAM, head_order=sink.head_order)
    try:
        with anyio.fail_after(60):
            await run_flow(Flow(stream, [], sink, [Channel("chunks", 1 << 20)]))
            await sink.commit()
    except BaseException:  # nobody else would ever end a process that was stopped
        os.kill(silent, signal.SIGKILL)
        await sink.abort()
        raise
    assert (bench.files / "dump").read_bytes() == stream.expected()
    with pytest.raises(ProcessLookupError):
        os.kill(silent, 0)


async def test_flattened_is_refused(make_settings: Callable[..., object]) -> None:
    """A target that can seek needs no flattened stream."""
    from stages.sink.sftp import make_sink

    with pytest.raises(UsageError, match="cannot seek"):
        make_sink("sftp://host/dump", make_settings())  # type: ignore[arg-type]


@pytest.fixture
def make_settings() -> Callable[..., object]:
    from pipeline.config.settings import DumpSettings, Settings

    return lambda: Settings(dump=DumpSettings(flatten=True))
