"""``http(s)://`` against real nginx and lighttpd, and over links that break."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from pipeline.config.targets import HttpSettings, NetSettings
from pipeline.errors import DumpError, RestartableSinkError, SinkError, StageError
from pipeline.flow.items import HeadOrder
from stages.sink.http import HttpSink
from stages.sink.http_url import parse_http_url
from stages.sink.journal import Journal, identify_source
from stages.sink.manifest import read_manifest
from stages.sink.partial_file import PartialFile
from stages.transport.flat_stream import receive_stream
from tests.lab.net.lighttpd import lighttpd
from tests.lab.net.nginx import nginx
from tests.lab.net.web import PASSWORD, USER, WebServer
from tests.support.captured_log import captured_log
from tests.support.certificates import Authority
from tests.support.chunk_stream import ChunkStream, send
from tests.support.faulty_proxy import Faults, Line, faulty_proxy

pytestmark = [pytest.mark.lab, pytest.mark.anyio]

MIB = 1 << 20
QUICK = NetSettings(
    connect_timeout_s=5,
    stall_timeout_s=10,
    retry_deadline_s=60,
    retry_first_s=0.01,
    retry_most_s=0.5,
)
SMALL = HttpSettings(piece_bytes=MIB, buffer_bytes=8 * MIB)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def in_place(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[WebServer]:
    """lighttpd that writes into files."""
    folder = tmp_path_factory.mktemp("lighttpd")
    with lighttpd(folder, authority.issue("a"), "deprecated-unsafe-partial-put") as server:
        yield server


@pytest.fixture(scope="module")
def whole_files(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority
) -> Iterator[WebServer]:
    """nginx that renames and removes."""
    with nginx(tmp_path_factory.mktemp("nginx"), authority.issue("b")) as server:
        yield server


def to(
    url: str,
    *,
    net: NetSettings = QUICK,
    http: HttpSettings = SMALL,
    overwrite: bool = False,
    journal: Journal | None = None,
) -> HttpSink:
    return HttpSink(parse_http_url(url), http, net, overwrite=overwrite, journal=journal)


def unflattened(path: Path, tmp_path: Path) -> bytes:
    """The dump in a flattened stream."""
    file = PartialFile(str(tmp_path / "assembled"), overwrite=True, fsync=False)
    with path.open("rb") as stream:
        receive_stream(stream, file)
    return (tmp_path / "assembled").read_bytes()


async def test_a_server_that_writes_ranges_gets_a_readable_dump(in_place: WebServer) -> None:
    """The file is the dump itself, with a manifest, and nothing else is left."""
    stream = ChunkStream(20 * MIB, chunk_bytes=700_000)
    sink = to(in_place.url("good"))
    receipt = await send(stream, sink)

    assert (in_place.root / "good").read_bytes() == stream.expected()
    manifest = read_manifest(in_place.root / "good.manifest.json")
    assert receipt.n_bytes == stream.size == manifest.size
    assert manifest.form == "kdump"
    assert in_place.left("good") == ["good", "good.manifest.json"]


async def test_a_server_that_takes_whole_files_gets_the_stream(
    whole_files: WebServer, tmp_path: Path
) -> None:
    """One PUT carries the flattened stream, whose bytes the manifest describes."""
    stream = ChunkStream(20 * MIB, chunk_bytes=700_000)
    receipt = await send(stream, to(whole_files.url("good")))

    path = whole_files.root / "good"
    assert unflattened(path, tmp_path) == stream.expected()
    manifest = read_manifest(whole_files.root / "good.manifest.json")
    data = path.read_bytes()
    assert receipt.n_bytes == len(data) == manifest.size
    assert manifest.form == "flattened"
    for piece in manifest.pieces():
        assert hashlib.sha256(data[piece.offset : piece.end]).digest() == piece.sha256
    assert whole_files.left("good") == ["good", "good.manifest.json"]


async def test_a_server_that_copies_for_every_range_gets_the_stream(
    tmp_path: Path, authority: Authority
) -> None:
    """Ranges whose cost grows with the file are found out before the dump begins."""
    with lighttpd(tmp_path, authority.issue("c"), "partial-put-copy-modify") as server:
        sink = to(server.url("costly"))
        await sink.open()
        try:
            assert sink.head_order is HeadOrder.FIRST
        finally:
            await sink.abort()
        assert server.left("costly") == []
        stream = ChunkStream(5 * MIB)
        await send(stream, to(server.url("forced"), http=HttpSettings(ranges="always")))
        assert (server.root / "forced").read_bytes() == stream.expected()


async def test_a_server_without_move_gets_the_dump_under_its_own_name(
    tmp_path: Path, authority: Authority
) -> None:
    """nginx shows a file when it is whole, so nothing has to be renamed."""
    with nginx(tmp_path, authority.issue("d"), methods="PUT DELETE") as server:
        stream = ChunkStream(5 * MIB)
        await send(stream, to(server.url("plain")))
        assert unflattened(server.root / "plain", tmp_path) == stream.expected()
        assert server.left("plain") == ["plain", "plain.manifest.json"]

        with pytest.raises(DumpError):
            await send(ChunkStream(5 * MIB, fail_at=2 * MIB), to(server.url("torn")))
        assert server.left("torn") == []


@pytest.mark.parametrize("kind", ["in_place", "whole_files"])
async def test_an_existing_file_is_refused_unless_it_may_be_replaced(
    request: pytest.FixtureRequest, kind: str, tmp_path: Path
) -> None:
    """What has the name stays as it is without overwrite, and is replaced with it."""
    server: WebServer = request.getfixturevalue(kind)
    path = server.root / "taken"
    path.write_text("precious")
    with pytest.raises(SinkError, match=r"/taken: exists; -f overwrites it"):
        await send(ChunkStream(MIB), to(server.url("taken")))
    assert path.read_text() == "precious"

    stream = ChunkStream(MIB)
    await send(stream, to(server.url("taken"), overwrite=True))
    data = path.read_bytes() if kind == "in_place" else unflattened(path, tmp_path)
    assert data == stream.expected()


@pytest.mark.parametrize("kind", ["in_place", "whole_files"])
async def test_a_failed_dump_leaves_nothing(request: pytest.FixtureRequest, kind: str) -> None:
    """When the source fails, there is no file under any name."""
    server: WebServer = request.getfixturevalue(kind)
    with pytest.raises(DumpError, match="Input/output error"):
        await send(ChunkStream(10 * MIB, fail_at=6 * MIB), to(server.url("failed")))
    assert server.left("failed") == []


@pytest.mark.parametrize("kind", ["in_place", "whole_files"])
async def test_a_missing_directory_is_named(request: pytest.FixtureRequest, kind: str) -> None:
    """Refused when it is opened, in one line."""
    server: WebServer = request.getfixturevalue(kind)
    net = NetSettings(retry_deadline_s=0.2, retry_first_s=0.01, retry_most_s=0.1)
    with pytest.raises(SinkError, match=r"no/such\.probe: write: ") as caught:
        await to(server.url("no/such"), net=net).open()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["in_place", "whole_files"])
async def test_credentials_come_from_netrc_and_stay_secret(
    request: pytest.FixtureRequest, kind: str, tmp_path: Path
) -> None:
    """Right ones let us in, wrong ones fail in one line, and none of it is ever shown."""
    server: WebServer = request.getfixturevalue(kind)
    netrc = tmp_path / "netrc"
    name = f"closed/{kind}"
    wrong = HttpSettings(netrc=str(netrc))
    with captured_log() as log:
        with pytest.raises(SinkError, match="missing credentials"):
            await send(ChunkStream(MIB), to(server.url(name)))
        netrc.write_text(f'machine 127.0.0.1 login {USER} password "wrong secret"\n')
        with pytest.raises(SinkError, match="wrong or missing credentials") as caught:
            await send(ChunkStream(MIB), to(server.url(name), http=wrong))
        assert server.left(name) == []

        netrc.write_text(f'machine 127.0.0.1 login {USER} password "{PASSWORD}"\n')
        await send(ChunkStream(MIB), to(server.url(name), http=HttpSettings(netrc=str(netrc))))
        assert server.left(name) == [kind, f"{kind}.manifest.json"]
    said = log.getvalue() + str(caught.value)
    assert "credentials_in_clear" in said
    assert "secret" not in said
    assert PASSWORD not in said


@pytest.mark.parametrize("kind", ["in_place", "whole_files"])
async def test_tls_is_verified(
    request: pytest.FixtureRequest, kind: str, authority: Authority, tmp_path: Path
) -> None:
    """The right authority lets a dump through; another one, or none, does not."""
    server: WebServer = request.getfixturevalue(kind)
    trusting = NetSettings(ca_file=authority.ca_file)
    stranger = NetSettings(ca_file=Authority(tmp_path, "stranger").ca_file)
    for net in (stranger, NetSettings()):
        with pytest.raises(SinkError, match="certificate not trusted"):
            await send(ChunkStream(MIB), to(server.tls_url("tls"), net=net))
    assert server.left("tls") == []
    await send(ChunkStream(MIB), to(server.tls_url("tls"), net=trusting))
    assert server.left("tls") == ["tls", "tls.manifest.json"]


async def test_ranges_survive_resets(in_place: WebServer) -> None:
    """Connections that are reset over and over cost a piece each, not the dump."""
    stream = ChunkStream(40 * MIB, chunk_bytes=900_000)
    async with faulty_proxy(in_place.port, Faults(reset_every=7 * MIB, refuse_s=0.1)) as proxy:
        await send(stream, to(in_place.url("reset", port=proxy.port)))
        assert proxy.seen.resets >= 4
    assert (in_place.root / "reset").read_bytes() == stream.expected()


async def test_ranges_survive_bursts_of_503(in_place: WebServer) -> None:
    """A server that is busy now and then gets its pieces later."""
    stream = ChunkStream(30 * MIB)
    faults = Faults(http_fail_every=20, http_fail_burst=3)
    async with faulty_proxy(in_place.port, faults) as proxy:
        await send(stream, to(in_place.url("busy", port=proxy.port)))
        assert proxy.http.failures >= 3
    assert (in_place.root / "busy").read_bytes() == stream.expected()
    assert in_place.left("busy") == ["busy", "busy.manifest.json"]


async def test_ranges_survive_a_stalled_peer(in_place: WebServer) -> None:
    """A connection on which nothing moves is replaced after `stall_timeout_s`."""
    stream = ChunkStream(20 * MIB)
    net = NetSettings(stall_timeout_s=1, retry_deadline_s=60, retry_first_s=0.01, retry_most_s=0.5)
    faults = Faults(up=Line(stall_after=9 * MIB, stall_s=4))
    async with faulty_proxy(in_place.port, faults) as proxy:
        await send(stream, to(in_place.url("stalled", port=proxy.port), net=net))
        assert proxy.seen.stalls == 1
    assert (in_place.root / "stalled").read_bytes() == stream.expected()


async def test_ranges_survive_a_corrupted_byte(in_place: WebServer) -> None:
    """Plain HTTP checks nothing; each piece is read back, and sent again when it differs."""
    stream = ChunkStream(10 * MIB)
    async with faulty_proxy(in_place.port, Faults(up=Line(corrupt_at=5 * MIB))) as proxy:
        await send(stream, to(in_place.url("bent", port=proxy.port)))
        assert proxy.seen.corrupted == 1
    assert (in_place.root / "bent").read_bytes() == stream.expected()


async def test_a_byte_that_changed_in_a_stream_keeps_the_dump_from_its_name(
    whole_files: WebServer,
) -> None:
    """One PUT cannot be mended: reading back says where, and nothing is left."""
    async with faulty_proxy(whole_files.port, Faults(up=Line(corrupt_at=5 * MIB))) as proxy:
        with pytest.raises(DumpError, match="read back differently"):
            await send(ChunkStream(10 * MIB), to(whole_files.url("bent", port=proxy.port)))
        assert proxy.seen.corrupted == 1
    assert whole_files.left("bent") == []


async def test_ranges_survive_a_restart_of_the_server(in_place: WebServer) -> None:
    """A server that goes away in the middle and comes back has the dump in the end."""
    stream = ChunkStream(30 * MIB)
    net = NetSettings(rate_limit=8 * MIB, retry_deadline_s=60, retry_first_s=0.05, retry_most_s=0.5)
    async with anyio.create_task_group() as group:

        async def restart() -> None:
            await anyio.sleep(1.5)
            assert (in_place.root / "restart.partial").exists(), "it is in the middle"
            await anyio.to_thread.run_sync(in_place.process.stop)
            await anyio.sleep(0.5)
            await anyio.to_thread.run_sync(in_place.process.start)

        group.start_soon(restart)
        await send(stream, to(in_place.url("restart"), net=net))
    assert (in_place.root / "restart").read_bytes() == stream.expected()


async def test_ranges_go_on_after_the_process_died(in_place: WebServer, tmp_path: Path) -> None:
    """A second run with the journal of the first sends only what is missing."""
    image = tmp_path / "image"
    image.write_bytes(b"image")
    source = identify_source(str(image))
    journal = Journal.create(tmp_path, target="test", source=source, settings={})
    first = to(in_place.url("resumed"), journal=journal)
    with pytest.raises(DumpError):
        await send(ChunkStream(30 * MIB, fail_at=20 * MIB), first)
    assert in_place.left("resumed") == ["resumed.partial"]

    stream = ChunkStream(30 * MIB)
    async with faulty_proxy(in_place.port) as proxy:
        url = in_place.url("resumed", port=proxy.port)
        await send(stream, to(url, journal=Journal.open(journal.path)))
        assert proxy.seen.up_bytes < 20 * MIB, "what the first run had sent was not sent again"
    assert (in_place.root / "resumed").read_bytes() == stream.expected()
    assert in_place.left("resumed") == ["resumed", "resumed.manifest.json"]


async def test_a_stream_that_is_cut_says_that_the_run_must_start_over(
    whole_files: WebServer,
) -> None:
    """The error has the type that the fallback looks for, and nothing is left."""
    async with faulty_proxy(whole_files.port, Faults(reset_every=9 * MIB)) as proxy:
        with pytest.raises(StageError, match="cannot be resumed") as caught:
            await send(ChunkStream(20 * MIB), to(whole_files.url("cut", port=proxy.port)))
    assert isinstance(caught.value.cause, RestartableSinkError)
    assert whole_files.left("cut") == []


async def test_a_cancelled_dump_leaves_nothing(in_place: WebServer) -> None:
    """Ctrl-C in the middle removes what was written."""
    net = NetSettings(rate_limit=10 * MIB)
    with anyio.move_on_after(1.5) as scope:
        await send(ChunkStream(100 * MIB), to(in_place.url("cancelled"), net=net))
    assert scope.cancelled_caught
    assert in_place.left("cancelled") == []
