"""Byte ranges over HTTP: retries, redirections, changed objects, servers that lie."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress

import anyio
import anyio.to_thread
import pytest
from anyio.abc import ByteStream

from pipeline.config.targets import NetSettings
from pipeline.errors import UnsupportedError
from stages.reader.http_transport import HttpTransport
from stages.reader.remote_file import RemoteFile
from stages.reader.remote_link import Link, SourceError
from tests.support.web_server import HangUpError, Request, Response, web_server

pytestmark = pytest.mark.anyio

CONTENT = bytes((at * 31 + at // 97) & 0xFF for at in range(200_000))
NET = NetSettings(
    connect_timeout_s=2,
    stall_timeout_s=2,
    retry_deadline_s=2,
    retry_first_s=0.001,
    retry_most_s=0.01,
)


def part(request: Request, tag: str = '"one"', content: bytes = CONTENT) -> Response:
    """What a good server says."""
    first, _, last = request.headers["range"].removeprefix("bytes=").partition("-")
    body = content[int(first) : int(last) + 1]
    about = f"bytes {first}-{int(first) + len(body) - 1}/{len(content)}"
    return Response(206, body, {"content-range": about, "etag": tag})


async def read(url: str, off: int, n_bytes: int) -> bytes:
    """Open, and read one stretch as an image would."""

    def work() -> bytes:
        transport = HttpTransport(url, url, NET, Link(max_in_flight=4, part_bytes=30_000))
        file = RemoteFile(transport)
        try:
            buffer = bytearray(n_bytes)
            return bytes(buffer[: file.read_into(memoryview(buffer), off)])
        finally:
            file.close()

    return await anyio.to_thread.run_sync(work)


class TestGoodServer:
    async def test_parts_travel_side_by_side(self) -> None:
        """A long read is several requests, together what was asked for, cut at the end."""
        asked: list[str] = []

        async def answer(request: Request) -> Response:
            asked.append(request.headers["range"])
            return part(request)

        async with web_server(answer) as url:
            got = await read(f"{url}/vmcore", 100_000, 150_000)

        assert got == CONTENT[100_000:]
        assert len(asked) == 5  # the first bytes, and four parts; what lies behind the end is not

    async def test_busy_and_broken_answers_are_tried_again(self) -> None:
        """Statuses that pass, a cut connection and a cut body do not fail the read."""
        troubles: list[Callable[[Request], Response]] = [
            lambda _: Response(503),
            lambda _: Response(429, headers={"retry-after": "0"}),
            lambda _: _hang_up(),
        ]

        async def answer(request: Request) -> Response:
            return troubles.pop()(request) if troubles else part(request)

        async with web_server(answer) as url:
            assert await read(url, 5, 100) == CONTENT[5:105]
        assert troubles == []

    async def test_place_that_expires_is_asked_for_again(self) -> None:
        """A signed place is good for a while; after that the first URL gives a new one."""
        asked: list[str] = []

        async def answer(request: Request) -> Response:
            asked.append(request.path)
            if request.path == "/vmcore":
                return Response(302, headers={"location": f"/signed-{len(asked)}"})
            return Response(403) if asked.count(request.path) > 1 else part(request)

        async with web_server(answer) as url:
            assert await read(f"{url}/vmcore", 5, 100) == CONTENT[5:105]

        assert asked == ["/vmcore", "/signed-1", "/signed-1", "/vmcore", "/signed-4"]

    async def test_place_that_stays_forbidden(self) -> None:
        """The first URL is asked once more, and then the answer is the answer."""

        async def answer(request: Request) -> Response:
            if request.path == "/vmcore":
                return Response(302, headers={"location": "/signed"})
            return Response(403)

        async with web_server(answer) as url:
            with pytest.raises(SourceError, match="HTTP 403"):
                await read(f"{url}/vmcore", 5, 100)

    async def test_redirection_is_followed_once(self) -> None:
        """Later requests go straight to where the first was sent."""
        paths: list[str] = []

        async def answer(request: Request) -> Response:
            paths.append(request.path)
            if request.path == "/old":
                return Response(302, headers={"location": "/new"})
            return part(request)

        async with web_server(answer) as url:
            assert await read(f"{url}/old", 5, 100) == CONTENT[5:105]
        assert paths == ["/old", "/new", "/new"]

    async def test_redirection_to_letters_that_were_not_encoded(self) -> None:
        """Servers put UTF-8 and spaces into Location; both are encoded as a browser would."""
        paths: list[str] = []

        async def answer(request: Request) -> Response:
            paths.append(request.target)
            if request.path == "/old":
                return Response(302, headers={"location": "/n\u00c3\u00a4w dump?a=b&c=%20"})
            return part(request)

        async with web_server(answer) as url:
            assert await read(f"{url}/old", 5, 100) == CONTENT[5:105]
        assert set(paths[1:]) == {"/n%C3%A4w%20dump?a=b&c=%20"}

    async def test_less_than_was_asked_for(self) -> None:
        """A server may cut a range; the rest is asked for, and nothing is taken for the end."""

        async def answer(request: Request) -> Response:
            first, _, last = request.headers["range"].removeprefix("bytes=").partition("-")
            cut = min(int(last), int(first) + 7_000)
            request.headers["range"] = f"bytes={first}-{cut}"
            return part(request)

        async with web_server(answer) as url:
            assert await read(url, 10, 150_000) == CONTENT[10:150_010]

    async def test_chunked_answer(self) -> None:
        """A body in chunks is as good as one with a length."""

        async def answer(request: Request) -> Response:
            good = part(request)
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(good.body), good.body)
            return Response(206, body, good.headers | {"transfer-encoding": "chunked"})

        async with web_server(answer) as url:
            assert await read(url, 5, 100_000) == CONTENT[5:100_005]


def _hang_up() -> Response:
    raise HangUpError


class TestBadServer:
    @pytest.mark.parametrize(
        ("response", "problem"),
        [
            (Response(404), "HTTP 404"),
            (Response(206, b"x", {"content-range": "bytes 7-7/10"}), "asked for bytes from 0"),
            (Response(206, b"x", {"content-range": "bytes 0-0/0"}), "makes no sense"),
            (Response(206, b"x"), "Content-Range is ''"),
            (Response(302, headers={"location": "ftp://host/x"}), "redirected to something"),
            (Response(302, headers={"location": "/"}), "redirections"),
            (Response(302, headers={"location": "http://[x/"}), "redirected to something"),
            (Response(302, headers={"location": "http://host:99999/"}), "redirected to something"),
            (Response(206, b"xy", {"content-range": "bytes 0-0/1"}), "more than the 1 bytes"),
            (Response(206, b"x", {"content-range": f"bytes 0-0/{2**62 + 1}"}), "makes no sense"),
            (Response(503, headers={"retry-after": "\u00b2"}), "HTTP 503"),
            (Response(500), "HTTP 500"),
        ],
    )
    async def test_refused_in_one_line(self, response: Response, problem: str) -> None:
        """What cannot be used ends in an error that says what was seen."""

        async def answer(_request: Request) -> Response:
            return response

        async with web_server(answer) as url:
            with pytest.raises(SourceError, match=problem):
                await read(url, 0, 10)

    async def test_no_ranges(self) -> None:
        """A server that sends everything is told apart before it does."""

        async def answer(_request: Request) -> Response:
            return Response(200, CONTENT)

        async with web_server(answer) as url:
            with pytest.raises(UnsupportedError, match="no byte ranges"):
                await read(url, 0, 10)

    @pytest.mark.parametrize("status", [412, 206])
    async def test_object_that_changes(self, status: int) -> None:
        """A dump that is replaced while it is read is an error, never a mixture."""
        n_asked = 0

        async def answer(request: Request) -> Response:
            nonlocal n_asked
            n_asked += 1
            if n_asked == 1:
                return part(request)
            assert request.headers["if-match"] == '"one"'
            return Response(412) if status == 412 else part(request, content=CONTENT + b"more")

        async with web_server(answer) as url:
            with pytest.raises(SourceError, match=r"changed|was 200000 bytes"):
                await read(url, 100_000, 10)

    async def test_nobody_there(self) -> None:
        """A closed port is tried until the deadline, then named with the attempts."""
        async with web_server(lambda _: anyio.sleep_forever()) as url:  # type: ignore[arg-type,return-value]
            pass
        with pytest.raises(SourceError, match=r"refused \(\d+ attempts\)"):
            await read(url, 0, 10)


async def test_body_without_end() -> None:
    """What comes behind the range is not read, however much it is."""

    async def pour(stream: ByteStream) -> None:
        head = b"HTTP/1.1 206 x\r\nContent-Range: bytes 0-9/10\r\nContent-Length: %d\r\n\r\n"
        async with stream:
            await stream.receive()
            with suppress(anyio.BrokenResourceError):
                await stream.send(head % (1 << 40))
                while True:
                    await stream.send(bytes(1 << 20))

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", family=socket.AF_INET)
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, pour)
        with pytest.raises(SourceError, match="sends more than the 10 bytes"):
            await read(f"http://127.0.0.1:{port}/", 0, 10)
        group.cancel_scope.cancel()


async def test_kept_connection_leads_where_it_is_meant_to() -> None:
    """When a signed place expires, its host is not asked what is meant for the first one."""
    home_asked: list[str] = []
    store_asked: list[str] = []
    is_answered = anyio.Event()
    expired = False

    async def store(request: Request) -> Response:
        nonlocal expired
        store_asked.append(request.path)
        if not request.headers["range"].startswith("bytes=130000"):
            if request.headers["range"].startswith("bytes=100000"):
                is_answered.set()
            return part(request)
        if expired:
            return part(request)
        expired = True
        await is_answered.wait()
        await anyio.sleep(0.1)  # the other's connection is idle by now
        return Response(403)

    async with web_server(store) as elsewhere:

        async def home(request: Request) -> Response:
            home_asked.append(request.path)
            return Response(302, headers={"location": f"{elsewhere}/signed"})

        async with web_server(home) as url:
            assert await read(f"{url}/vmcore", 100_000, 60_000) == CONTENT[100_000:160_000]

    assert expired
    assert set(store_asked) == {"/signed"}
    assert home_asked == ["/vmcore", "/vmcore"]


async def test_close_while_parts_wait() -> None:
    """Parts that nobody will ask for any more end in the source's own error."""
    is_asked = anyio.Event()
    is_closed = anyio.Event()

    async def answer(request: Request) -> Response:
        if not request.headers["range"].startswith("bytes=0"):
            is_asked.set()
            await is_closed.wait()
        return part(request)

    def open_it(url: str) -> HttpTransport:
        return HttpTransport(url, url, NET, Link(max_in_flight=1, part_bytes=30_000))

    async def read_all(transport: HttpTransport) -> None:
        file = RemoteFile(transport)
        with pytest.raises(SourceError, match="closed"):
            await anyio.to_thread.run_sync(file.read_into, memoryview(bytearray(90_000)), 90_000)

    async with web_server(answer) as url:
        transport = await anyio.to_thread.run_sync(open_it, url)
        async with anyio.create_task_group() as group:
            group.start_soon(read_all, transport)
            await is_asked.wait()
            transport.close()
            is_closed.set()


async def test_close_does_not_wait_for_a_silent_server() -> None:
    """Whoever waits for an answer learns at once that nobody wants it any more."""
    is_asked = anyio.Event()
    patient = NetSettings(stall_timeout_s=600, connect_timeout_s=600)

    async def answer(request: Request) -> Response:
        if not request.headers["range"].startswith("bytes=0"):
            is_asked.set()
            await anyio.sleep_forever()
        return part(request)

    def open_it(url: str) -> HttpTransport:
        return HttpTransport(url, url, patient, Link(max_in_flight=2, part_bytes=30_000))

    async def read_one(transport: HttpTransport) -> None:
        file = RemoteFile(transport)
        with pytest.raises(SourceError):
            await anyio.to_thread.run_sync(file.read_into, memoryview(bytearray(9_000)), 90_000)

    with anyio.fail_after(10):
        async with web_server(answer) as url:
            transport = await anyio.to_thread.run_sync(open_it, url)
            async with anyio.create_task_group() as group:
                group.start_soon(read_one, transport)
                await is_asked.wait()
                transport.close()
