"""``sftp://`` and ``ssh://`` against a real OpenSSH server, and over links that break."""

from __future__ import annotations

import getpass
import hashlib
import shlex
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import anyio
import anyio.to_thread
import pytest

from pipeline.config.targets import NetSettings, SshSettings
from pipeline.errors import DumpError, RestartableSinkError, SinkError, StageError
from pipeline.flow.channel import Channel
from pipeline.run.runner import Flow, run_flow
from stages.sink.manifest import read_manifest
from stages.sink.partial_file import PartialFile
from stages.sink.sftp import SftpSink
from stages.sink.ssh import SshSink
from stages.sink.ssh_url import parse_ssh_url
from stages.transport.flat_stream import receive_stream
from tests.lab.net.sshd import SshServer, clients_of, make_key, ssh_server, trust
from tests.support.chunk_stream import ChunkStream, send
from tests.support.faulty_proxy import Faults, Line, faulty_proxy

pytestmark = [pytest.mark.lab, pytest.mark.anyio]

MIB = 1 << 20
QUICK = NetSettings(
    connect_timeout_s=10,
    stall_timeout_s=10,
    retry_deadline_s=60,
    retry_first_s=0.01,
    retry_most_s=0.5,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with ssh_server(tmp_path_factory.mktemp("sshd")) as started:
        yield started


def sftp(
    server: SshServer,
    name: str,
    *,
    net: NetSettings = QUICK,
    ssh: SshSettings | None = None,
    port: int | None = None,
    overwrite: bool = False,
) -> SftpSink:
    return SftpSink(
        parse_ssh_url(server.url(name, port=port)),
        ssh or server.client(),
        net,
        overwrite=overwrite,
        fsync=True,
    )


def over_ssh(
    server: SshServer,
    name: str,
    *,
    net: NetSettings = QUICK,
    ssh: SshSettings | None = None,
    port: int | None = None,
    overwrite: bool = False,
) -> SshSink:
    target = parse_ssh_url(server.url(name, scheme="ssh", port=port))
    return SshSink(target, ssh or server.client(remote_program=""), net, overwrite=overwrite)


def left(server: SshServer, name: str) -> list[str]:
    """What is there of the dump `name`, under whatever name."""
    return sorted(path.name for path in server.files.glob(f"{name}*"))


async def test_sftp_leaves_the_whole_dump_private_and_with_a_manifest(server: SshServer) -> None:
    """The file is what was sent, readable by its owner only, and its manifest agrees."""
    stream = ChunkStream(20 * MIB, chunk_bytes=700_000)
    receipt = await send(stream, sftp(server, "good"))

    path = server.files / "good"
    assert path.read_bytes() == stream.expected()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    manifest = read_manifest(server.files / "good.manifest.json")
    assert receipt.n_bytes == stream.size == manifest.size
    assert left(server, "good") == ["good", "good.manifest.json"]
    assert clients_of(server) == []


async def test_sftp_refuses_an_existing_file_unless_told_to_replace_it(server: SshServer) -> None:
    """What has the name stays as it is without overwrite, and is replaced with it."""
    path = server.files / "taken"
    path.write_text("precious")
    with pytest.raises(SinkError, match=r"taken: exists; -f overwrites it"):
        await send(ChunkStream(MIB), sftp(server, "taken"))
    assert path.read_text() == "precious"
    assert left(server, "taken") == ["taken"]

    stream = ChunkStream(MIB)
    await send(stream, sftp(server, "taken", overwrite=True))
    assert path.read_bytes() == stream.expected()


async def test_sftp_does_not_replace_a_file_that_appears_meanwhile(server: SshServer) -> None:
    """The final rename fails when somebody else took the name during the dump."""
    sink = sftp(server, "raced")
    await sink.open()
    (server.files / "raced").write_text("precious")
    with pytest.raises(SinkError, match="appeared meanwhile"):
        await _send_opened(ChunkStream(MIB), sink)
    assert (server.files / "raced").read_text() == "precious"


async def _send_opened(stream: ChunkStream, sink: SftpSink) -> None:
    class Opened:
        name = sink.name
        head_order = sink.head_order
        run, commit, abort = sink.run, sink.commit, sink.abort

        async def open(self) -> None:
            """Done already."""

    await send(stream, Opened())


async def test_sftp_replaces_a_partial_file_instead_of_writing_into_it(server: SshServer) -> None:
    """A link that waits under the partial name is removed, not followed."""
    victim = server.files / "victim"
    victim.write_text("precious")
    (server.files / "linked.partial").symlink_to(victim)
    await send(ChunkStream(MIB), sftp(server, "linked", overwrite=True))
    assert victim.read_text() == "precious"


async def test_sftp_says_that_a_directory_is_missing(server: SshServer) -> None:
    """One line names the file and the likely reason."""
    with pytest.raises(SinkError, match=r"no/such\.partial: No such file.*directory there"):
        await send(ChunkStream(MIB), sftp(server, "no/such"))


@pytest.mark.parametrize("scheme", ["sftp"])
async def test_an_unknown_host_key_is_refused(
    server: SshServer, tmp_path: Path, scheme: str
) -> None:
    """A host that nobody has vouched for gets no dump, whatever the configuration says."""
    config = tmp_path / "config"
    config.write_text("Host *\n StrictHostKeyChecking no\n")
    ssh = server.client(known_hosts=str(tmp_path / "empty"), config=str(config))
    with pytest.raises(SinkError, match="the host key is not known"):
        await send(ChunkStream(MIB), sftp(server, "unknown", ssh=ssh))
    assert left(server, "unknown") == []


async def test_a_changed_host_key_is_refused_with_the_line_to_look_at(
    server: SshServer, tmp_path: Path
) -> None:
    """The error says that the key has changed and which line of known_hosts has the old one."""
    known = tmp_path / "known_hosts"
    trust(known, make_key(tmp_path / "other"))
    ssh = server.client(known_hosts=str(known))
    with pytest.raises(SinkError, match=rf"host key has changed.*{known}:1") as caught:
        await send(ChunkStream(MIB), sftp(server, "changed", ssh=ssh))
    assert "\n" not in str(caught.value)
    assert left(server, "changed") == []


async def test_a_key_that_the_server_does_not_know_is_refused(
    server: SshServer, tmp_path: Path
) -> None:
    """Wrong credentials fail at once, without a prompt and without retries."""
    make_key(tmp_path / "stranger")
    ssh = server.client(identity=str(tmp_path / "stranger"))
    with anyio.fail_after(10), pytest.raises(SinkError, match="refused every key"):
        await send(ChunkStream(MIB), sftp(server, "denied", ssh=ssh))
    assert left(server, "denied") == []


async def test_a_port_where_nobody_listens_is_given_up(server: SshServer) -> None:
    """Nothing listens: tried for as long as the settings say, then one line."""
    net = NetSettings(retry_deadline_s=0.5, retry_first_s=0.01, retry_most_s=0.1)
    with pytest.raises(SinkError, match="Connection refused"):
        await send(ChunkStream(MIB), sftp(server, "nowhere", net=net, port=1))


async def test_sftp_survives_resets(server: SshServer) -> None:
    """Connections that are reset over and over cost what was under way, not the dump."""
    stream = ChunkStream(60 * MIB, chunk_bytes=900_000)
    async with faulty_proxy(server.port, Faults(reset_every=9 * MIB, refuse_s=0.1)) as proxy:
        await send(stream, sftp(server, "reset", port=proxy.port))
        assert proxy.seen.resets >= 5
    assert (server.files / "reset").read_bytes() == stream.expected()
    assert clients_of(server) == []


async def test_sftp_survives_a_stalled_peer(server: SshServer) -> None:
    """A connection on which nothing moves is replaced after `stall_timeout_s`."""
    stream = ChunkStream(20 * MIB)
    net = NetSettings(stall_timeout_s=1, retry_deadline_s=60, retry_first_s=0.01, retry_most_s=0.5)
    faults = Faults(up=Line(stall_after=5 * MIB, stall_s=4))
    async with faulty_proxy(server.port, faults) as proxy:
        await send(stream, sftp(server, "stalled", net=net, port=proxy.port))
        assert proxy.seen.stalls == 1
    assert (server.files / "stalled").read_bytes() == stream.expected()


async def test_sftp_survives_a_corrupted_byte(server: SshServer) -> None:
    """SSH notices the byte and ends the connection; the dump is whole all the same."""
    stream = ChunkStream(20 * MIB)
    async with faulty_proxy(server.port, Faults(up=Line(corrupt_at=7 * MIB))) as proxy:
        await send(stream, sftp(server, "corrupted", port=proxy.port))
        assert proxy.seen.corrupted == 1
    assert (server.files / "corrupted").read_bytes() == stream.expected()


async def test_sftp_survives_a_restart_of_the_server(server: SshServer) -> None:
    """A server that goes away in the middle, with all connections, has the dump in the end."""
    stream = ChunkStream(30 * MIB)
    net = NetSettings(rate_limit=8 * MIB, retry_deadline_s=60, retry_first_s=0.05, retry_most_s=0.5)
    async with (
        faulty_proxy(server.port) as proxy,
        anyio.create_task_group() as group,
    ):

        async def restart() -> None:
            await anyio.sleep(1.5)
            assert (server.files / "restart.partial").exists(), "it is in the middle"
            await anyio.to_thread.run_sync(server.process.stop)
            proxy.cut()  # sessions of sshd outlive their listener
            await anyio.sleep(0.5)
            await anyio.to_thread.run_sync(server.process.start)

        group.start_soon(restart)
        await send(stream, sftp(server, "restart", net=net, port=proxy.port))
    assert (server.files / "restart").read_bytes() == stream.expected()


async def test_sftp_gives_up_when_the_server_stays_away(server: SshServer) -> None:
    """A server that never comes back ends the run after the deadline, in one line."""
    net = NetSettings(retry_deadline_s=1, retry_first_s=0.01, retry_most_s=0.2)
    async with faulty_proxy(server.port, Faults(reset_every=5 * MIB, refuse_s=600)) as proxy:
        with pytest.raises(StageError, match="given up after 1 s"):
            await send(ChunkStream(20 * MIB), sftp(server, "away", net=net, port=proxy.port))


async def test_a_failed_dump_leaves_its_readable_part_under_the_partial_name(
    server: SshServer,
) -> None:
    """When the source fails, what was written stays, named as what it is."""
    stream = ChunkStream(10 * MIB, fail_at=6 * MIB)
    sink = sftp(server, "failed")
    with pytest.raises(DumpError, match="Input/output error"):
        await send(stream, sink)
    assert left(server, "failed") == ["failed.partial"]
    assert clients_of(server) == []


async def test_a_cancelled_dump_leaves_no_process_behind(server: SshServer) -> None:
    """Ctrl-C in the middle ends every connection."""
    stream = ChunkStream(200 * MIB)
    net = NetSettings(rate_limit=20 * MIB)
    with anyio.move_on_after(1.5) as scope:
        await send(stream, sftp(server, "cancelled", net=net))
    assert scope.cancelled_caught
    assert left(server, "cancelled") == ["cancelled.partial"]
    assert clients_of(server) == []


def unflattened(path: Path, tmp_path: Path) -> bytes:
    """The dump in a flattened stream, as our own reader of such files assembles it."""
    with path.open("rb") as stream:
        receive_stream(
            stream, PartialFile(str(tmp_path / "assembled"), overwrite=True, fsync=False)
        )
    return (tmp_path / "assembled").read_bytes()


async def test_ssh_leaves_the_stream_and_a_manifest(server: SshServer, tmp_path: Path) -> None:
    """A host with nothing but a shell keeps the flattened stream, private, with its SHA-256."""
    stream = ChunkStream(20 * MIB)
    receipt = await send(stream, over_ssh(server, "cat"))

    path = server.files / "cat"
    assert unflattened(path, tmp_path) == stream.expected()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    manifest = read_manifest(server.files / "cat.manifest.json")
    assert manifest.form == "flattened"
    assert manifest.pieces()[0].sha256 == hashlib.sha256(path.read_bytes()).digest()
    assert receipt.n_bytes == path.stat().st_size
    assert left(server, "cat") == ["cat", "cat.manifest.json"]
    assert clients_of(server) == []


async def test_ssh_has_dumpstream_assemble_the_dump_where_it_is_installed(
    server: SshServer,
) -> None:
    """The other end's own dumpstream makes a readable file of the stream."""
    install_receiver(server)
    stream = ChunkStream(20 * MIB)
    receipt = await send(stream, over_ssh(server, "assembled", ssh=server.client()))

    assert (server.files / "assembled").read_bytes() == stream.expected()
    manifest = read_manifest(server.files / "assembled.manifest.json")
    assert manifest.form == "kdump"
    assert receipt.n_bytes == stream.size == manifest.size
    assert left(server, "assembled") == ["assembled", "assembled.manifest.json"]


def install_receiver(server: SshServer) -> None:
    """This checkout as the ``dumpstream`` at the other end."""
    root = shlex.quote(str(Path(__file__).parents[3]))
    program = server.bin / "dumpstream"
    python = f"PYTHONPATH={root} exec {shlex.quote(sys.executable)}"
    program.write_text(f'#!/bin/sh\n{python} -m pipeline "$@"\n')
    program.chmod(0o755)


@pytest.mark.parametrize("name", ["it's", "a b", "$(touch x)", "-rf", ";exit", 'q"q', "\\n", "*"])
async def test_ssh_quotes_names(server: SshServer, name: str) -> None:
    """No name means anything to the shells on the way."""
    url = f"ssh://{getpass.getuser()}@127.0.0.1:{server.port}{server.files}/{quote(name)}"
    sink = SshSink(parse_ssh_url(url), server.client(remote_program=""), QUICK, overwrite=False)
    await send(ChunkStream(MIB), sink)
    assert (server.files / name).stat().st_size > MIB
    assert not (server.files / "x").exists()


async def test_ssh_refuses_an_existing_file_unless_told_to_replace_it(
    server: SshServer, tmp_path: Path
) -> None:
    """What has the name stays as it is without overwrite, and is replaced with it."""
    path = server.files / "stays"
    path.write_text("precious")
    with pytest.raises(SinkError, match=r"stays exists, -f overwrites it"):
        await send(ChunkStream(MIB), over_ssh(server, "stays"))
    assert path.read_text() == "precious"

    stream = ChunkStream(MIB)
    await send(stream, over_ssh(server, "stays", overwrite=True))
    assert unflattened(path, tmp_path) == stream.expected()


async def test_ssh_says_that_a_directory_is_missing(server: SshServer) -> None:
    """The refusal comes before the dump is made."""
    with pytest.raises(SinkError, match="there is no such directory"):
        await over_ssh(server, "not/there").open()


async def test_ssh_that_loses_its_connection_says_that_the_run_must_start_over(
    server: SshServer,
) -> None:
    """A stream cannot be taken up again: the error has the type that the fallback looks for."""
    async with faulty_proxy(server.port, Faults(reset_every=5 * MIB)) as proxy:
        with pytest.raises(StageError) as caught:
            await send(ChunkStream(20 * MIB), over_ssh(server, "cut", port=proxy.port))
    assert isinstance(caught.value.cause, RestartableSinkError)
    assert "cannot take up again" in str(caught.value)
    assert left(server, "cut") == []


@contextmanager
def remote_cat(server: SshServer, script: str) -> Iterator[None]:
    """Another ``cat`` at the other end."""
    program = server.bin / "cat"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    try:
        yield
    finally:
        program.unlink()


async def test_ssh_reports_the_failure_of_the_remote_command(server: SshServer) -> None:
    """A disk that is full at the other end fails the dump with that command's own words."""
    full = remote_cat(server, "head -c 100000; echo cat: no space left >&2; exit 1")
    with full, pytest.raises(DumpError, match="no space left"):
        await send(ChunkStream(20 * MIB), over_ssh(server, "full"))
    assert left(server, "full") == []


async def test_ssh_notices_bytes_that_were_not_kept(server: SshServer) -> None:
    """A file with the right size and the wrong content never gets the dump's name."""
    altered = remote_cat(server, "exec tr '\\000' '\\001'")
    with altered, pytest.raises(DumpError, match=r"SHA-256 is .*, wanted"):
        await send(ChunkStream(MIB), over_ssh(server, "altered"))
    assert left(server, "altered") == []


async def test_a_torn_dump_leaves_nothing_over_ssh(server: SshServer) -> None:
    """Without the end of the dump there is no file, under any name."""
    with pytest.raises(DumpError):
        await send(ChunkStream(5 * MIB, fail_at=2 * MIB), over_ssh(server, "torn"))
    assert left(server, "torn") == []
    assert clients_of(server) == []


async def test_a_torn_stream_is_left_to_the_dumpstream_that_receives_it(server: SshServer) -> None:
    """The receiver decides what is worth keeping; the sink says what it has kept, here nothing."""
    install_receiver(server)
    sink = over_ssh(server, "part", ssh=server.client())
    await sink.open()
    stream = ChunkStream(5 * MIB, fail_at=2 * MIB)
    with pytest.raises(DumpError):
        await run_flow(Flow(stream, [], sink, [Channel("chunks", MIB)]))
    assert await sink.abort() is None
    assert left(server, "part") == []
