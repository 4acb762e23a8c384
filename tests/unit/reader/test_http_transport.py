"""Byte ranges over HTTP: retries, redirections, changed objects, servers that lie."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import anyio.to_thread
import pytest

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
