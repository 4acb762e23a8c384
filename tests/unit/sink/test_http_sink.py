"""`HttpSink` against a server in the test's own process that is as able as a test wants it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from pipeline.config.settings import DumpSettings, Settings
from pipeline.config.targets import HttpSettings, NetSettings
from pipeline.errors import DumpError, RestartableSinkError, SinkError, StageError, UsageError
from pipeline.flow.items import HeadOrder
from stages.formats.flattened import END_RECORD
from stages.sink.http import HttpSink, make_sink
from stages.sink.http_probe import Ranges
from stages.sink.http_url import parse_http_url
from stages.sink.manifest import parse_manifest
from stages.sink.partial_file import PartialFile
from stages.transport.flat_stream import receive_stream
from tests.support.captured_log import captured_log
from tests.support.chunk_stream import ChunkStream, send
from tests.support.dav_server import DavServer
from tests.support.web_server import HangUpError, Request, Response

pytestmark = pytest.mark.anyio

NET = NetSettings(
    connect_timeout_s=2,
    stall_timeout_s=2,
    retry_deadline_s=5,
    retry_first_s=0.001,
    retry_most_s=0.01,
)
SMALL = HttpSettings(piece_bytes=256 << 10, buffer_bytes=2 << 20, verify="all")
SIZE = 1_500_000


def to(
    url: str, *, http: HttpSettings = SMALL, net: NetSettings = NET, overwrite: bool = False
) -> HttpSink:
    return HttpSink(parse_http_url(url), http, net, overwrite=overwrite)


def unflattened(data: bytes, folder: Path) -> bytes:
    (folder / "stream").write_bytes(data)
    file = PartialFile(str(folder / "assembled"), overwrite=True, fsync=False)
    with (folder / "stream").open("rb") as stream:
        receive_stream(stream, file)
    return (folder / "assembled").read_bytes()


@pytest.mark.parametrize("moves", [True, False])
async def test_ranges_make_a_readable_dump(moves: bool) -> None:
    """Pieces in any order, the head last; under the partial name where it can be changed."""
    server = DavServer()
    if not moves:
        server.methods -= {"MOVE"}
    stream = ChunkStream(SIZE)
    async with server.running() as url:
        receipt = await send(stream, to(f"{url}/dump"))
    assert server.files["/dump"] == stream.expected()
    manifest = parse_manifest(bytes(server.files["/dump.manifest.json"]))
    assert receipt.n_bytes == manifest.size == stream.size
    assert set(server.files) == {"/dump", "/dump.manifest.json"}
    name = "/dump.partial" if moves else "/dump"
    spans = [
        request.headers["content-range"]
        for request in server.seen
        if request.path == name and "content-range" in request.headers
    ]
    assert spans[-1] == "bytes 0-7/*"
    assert len([span for span in spans if span.startswith("bytes 0-")]) == 1


@pytest.mark.parametrize("moves", [True, False])
@pytest.mark.parametrize("ranges", ["refused", "ignored", "copied"])
async def test_without_good_ranges_there_is_one_put(
    moves: bool, ranges: Literal["refused", "ignored", "copied"], tmp_path: Path
) -> None:
    """Servers that refuse ranges, misunderstand them, or pay too much for them get the stream."""
    server = DavServer(ranges=ranges)
    if not moves:
        server.methods -= {"MOVE"}
    stream = ChunkStream(SIZE)
    async with server.running() as url:
        receipt = await send(stream, to(f"{url}/dump"))
    data = bytes(server.files["/dump"])
    assert data.endswith(END_RECORD)
    assert receipt.n_bytes == len(data)
    assert unflattened(data, tmp_path) == stream.expected()
    assert parse_manifest(bytes(server.files["/dump.manifest.json"])).form == "flattened"
    assert set(server.files) == {"/dump", "/dump.manifest.json"}


async def test_a_server_that_shows_nothing_gets_the_stream_unseen() -> None:
    """A drop box that only takes files is used as such, and we say that nothing was compared."""
    server = DavServer(methods={"PUT", "DELETE"})
    with captured_log() as log:
        async with server.running() as url:
            await send(ChunkStream(SIZE), to(f"{url}/dump"))
    assert "/dump" in server.files
    assert "dump_not_read_back" in log.getvalue()


async def test_what_is_chosen_is_said() -> None:
    """The log tells the form, whether it resumes, and why."""
    with captured_log() as log:
        async with DavServer(ranges="refused").running() as url:
            sink = to(f"{url}/dump")
            await sink.open()
            assert sink.head_order is HeadOrder.FIRST
            await sink.abort()
    assert Ranges.NONE.value in log.getvalue()
    assert "flattened" in log.getvalue()


@pytest.mark.parametrize("wanted", ["always", "never"])
async def test_the_form_can_be_demanded(wanted: Literal["always", "never"]) -> None:
    """A setting goes before what the server is good at; what it cannot do is an error."""
    http = HttpSettings(ranges=wanted, piece_bytes=256 << 10)
    async with DavServer(ranges="copied").running() as url:
        sink = to(f"{url}/dump", http=http)
        await sink.open()
        assert (sink.head_order is HeadOrder.LAST) == (wanted == "always")
        await sink.abort()
    if wanted == "always":
        async with DavServer(ranges="refused").running() as url:
            with pytest.raises(SinkError, match=r"http\.ranges=always, but the server cannot"):
                await to(f"{url}/dump", http=http).open()


@pytest.mark.parametrize("ranges", ["in place", "refused"])
async def test_a_name_that_is_taken_is_refused(ranges: Literal["in place", "refused"]) -> None:
    """When it is opened, and once more when it gets its name."""
    server = DavServer(ranges=ranges, files={"/dump": bytearray(b"precious")})
    async with server.running() as url:
        with pytest.raises(SinkError, match="/dump: exists; -f overwrites it"):
            await send(ChunkStream(SIZE), to(f"{url}/dump"))
        assert server.files == {"/dump": bytearray(b"precious")}
        await send(ChunkStream(SIZE), to(f"{url}/dump", overwrite=True))
        assert len(server.files["/dump"]) > SIZE

        def appear(request: Request) -> None:
            if request.method == "PUT" and request.path == "/late.partial":
                server.files["/late"] = bytearray(b"precious")

        server.after = appear
        with pytest.raises(SinkError, match="/late: appeared meanwhile"):
            await send(ChunkStream(SIZE), to(f"{url}/late"))
        assert server.files["/late"] == b"precious"
        assert "/late.partial" not in server.files


def failing(
    method: str, suffix: str, status: int, *, times: int
) -> Callable[[Request], Response | None]:
    """Answers the first such requests with `status`."""
    left = [times]

    def answer(request: Request) -> Response | None:
        if request.method == method and request.path.endswith(suffix) and left[0] > 0:
            left[0] -= 1
            return Response(status)
        return None

    return answer


@pytest.mark.parametrize("status", [500, 502, 503, 429])
async def test_pieces_are_sent_again(status: int) -> None:
    """Errors that may pass cost a piece each."""
    stream = ChunkStream(SIZE)
    server = DavServer(before=failing("PUT", ".partial", status, times=4))
    async with server.running() as url:
        await send(stream, to(f"{url}/dump"))
    assert server.files["/dump"] == stream.expected()


@pytest.mark.parametrize(
    ("method", "name"),
    [("PUT", "/dump.probe"), ("MOVE", "/dump.probe"), ("MOVE", "/dump.partial"), ("HEAD", "/dump")],
)
@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("ranges", ["in place", "refused"])
async def test_an_answer_that_is_lost_is_asked_for_again(
    method: str, name: str, done: bool, ranges: Literal["in place", "refused"]
) -> None:
    """Whether the request had been done or not."""
    server = DavServer(ranges=ranges)
    server.lose(method, name, done=done)
    async with server.running() as url:
        await send(ChunkStream(SIZE), to(f"{url}/dump"))
    assert set(server.files) == {"/dump", "/dump.manifest.json"}


async def test_a_stream_that_breaks_asks_for_a_new_run() -> None:
    """The type tells the fallback that the same target may be tried from the start."""
    server = DavServer(ranges="refused")
    server.lose("PUT", "/dump.partial", done=False)
    async with server.running() as url:
        with pytest.raises(StageError, match="of one PUT, which cannot be resumed") as caught:
            await send(ChunkStream(SIZE), to(f"{url}/dump"))
    assert isinstance(caught.value.cause, RestartableSinkError)
    assert server.files == {}


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "wrong or missing credentials"),
        (403, "not allowed"),
        (404, "is the directory there"),
        (405, "takes no PUT"),
        (409, "is the directory there"),
        (413, "too large"),
        (500, "is the directory there, and may it write"),
        (507, "no space left"),
        (418, "refused"),
    ],
)
async def test_refusals_are_one_line(status: int, words: str) -> None:
    """With the target, in words, and the status."""
    server = DavServer(before=lambda request: Response(status) if request.method == "PUT" else None)
    async with server.running() as url:
        with pytest.raises(SinkError, match=words) as caught:
            await to(f"{url}/dump?sig=secret").open()
    assert f"HTTP {status}" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_redirections_are_not_followed() -> None:
    """Credentials go to the host that was named; where the file is, is said without its query."""
    place = {"location": "https://elsewhere/dump?token=secret"}
    server = DavServer(
        before=lambda request: Response(307, b"", place) if request.method == "PUT" else None
    )
    async with server.running() as url:
        with pytest.raises(SinkError, match="redirected to https://elsewhere/dump;") as caught:
            await to(f"{url}/dump").open()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("ranges", ["in place", "refused"])
@pytest.mark.parametrize("torn", [True, False])
async def test_a_dump_that_fails_leaves_nothing(
    ranges: Literal["in place", "refused"], torn: bool
) -> None:
    """Nothing under any name."""
    server = DavServer(ranges=ranges)
    async with server.running() as url:
        with pytest.raises(DumpError):
            await send(ChunkStream(SIZE, fail_at=1_000_000, torn=torn), to(f"{url}/dump"))
    assert server.files == {}


def spoiling(server: DavServer, *, times: int) -> Callable[[Request], None]:
    """Spoils what is stored in the middle of the dump, so often."""
    left = [times]

    def spoil(request: Request) -> None:
        file = server.files.get("/dump.partial", bytearray())
        if request.method == "PUT" and len(file) > SIZE // 2 and left[0] > 0:
            left[0] -= 1
            file[SIZE // 2 : SIZE // 2 + 8] = b"spoiled!"

    return spoil


async def test_pieces_that_were_stored_wrong_are_sent_again() -> None:
    """Each is read back while it can still be mended."""
    server = DavServer()
    server.after = spoiling(server, times=1)
    stream = ChunkStream(SIZE)
    one_by_one = NetSettings(concurrency=1, retry_first_s=0.001, retry_most_s=0.01)
    async with server.running() as url:
        await send(stream, to(f"{url}/dump", net=one_by_one))
    assert server.files["/dump"] == stream.expected()


@pytest.mark.parametrize("ranges", ["in place", "refused"])
async def test_bytes_that_stay_wrong_are_found(ranges: Literal["in place", "refused"]) -> None:
    """Reading back shows where, and the dump gets no name."""
    server = DavServer(ranges=ranges)
    server.after = spoiling(server, times=1 << 60)
    net = NetSettings(retry_deadline_s=0.2, retry_first_s=0.001, retry_most_s=0.01)
    async with server.running() as url:
        with pytest.raises(DumpError, match="read back differently"):
            await send(ChunkStream(SIZE), to(f"{url}/dump", net=net))
    assert server.files == {}


@pytest.mark.parametrize(("scheme", "extent"), [("http", "all"), ("https", "samples")])
def test_what_nothing_checks_on_the_way_is_read_back_whole(scheme: str, extent: str) -> None:
    """TLS checks every byte; without it, reading back has to."""
    assert to(f"{scheme}://host/dump", http=HttpSettings())._extent() == extent


async def test_a_token_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes to the server; over plain HTTP with a warning."""
    monkeypatch.setenv("DUMPSTREAM_HTTP_TOKEN", "hush-hush")
    with captured_log() as log:
        async with DavServer(token="hush-hush").running() as url:
            await send(ChunkStream(SIZE), to(f"{url}/dump"))
            monkeypatch.setenv("DUMPSTREAM_HTTP_TOKEN", "wrong-hush")
            with pytest.raises(SinkError, match="credentials") as caught:
                await to(f"{url}/dump", overwrite=True).open()
    assert "credentials_in_clear" in log.getvalue()
    assert "hush" not in log.getvalue() + str(caught.value)


async def test_a_server_that_hangs_up_is_given_up() -> None:
    """After the deadline, in one line."""

    def hang_up(request: Request) -> Response | None:
        raise HangUpError

    net = NetSettings(retry_deadline_s=0.1, retry_first_s=0.001, retry_most_s=0.01)
    async with DavServer(before=hang_up).running() as url:
        with pytest.raises(SinkError, match=r"127\.0\.0\.1") as caught:
            await to(f"{url}/dump", net=net).open()
    assert "\n" not in str(caught.value)


async def test_flatten_means_one_put() -> None:
    """The command line's wish goes before what the server is good at."""
    async with DavServer().running() as url:
        sink = make_sink(f"{url}/dump", Settings(dump=DumpSettings(flatten=True), net=NET))
        await sink.open()
        assert sink.head_order is HeadOrder.FIRST
        await sink.abort()
    both = Settings(dump=DumpSettings(flatten=True), http=HttpSettings(ranges="always"))
    with pytest.raises(UsageError, match="exclude each other"):
        make_sink("http://h/dump", both)
