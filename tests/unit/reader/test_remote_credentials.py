"""Who we say we are to the web server of a source, and to whom we never say it."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio.to_thread
import pytest

from pipeline.config.layers import load_settings
from pipeline.errors import DumpError, UsageError
from stages.reader.remote_image import open_slow
from stages.reader.remote_link import SourceError
from tests.support.captured_log import captured_log
from tests.support.web_server import Request, Response, web_server

pytestmark = pytest.mark.anyio

PASSWORD = "letmein-9"
BASIC = "Basic " + base64.b64encode(f"ann:{PASSWORD}".encode()).decode()


@pytest.fixture(autouse=True)
def _nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No secrets of whoever runs the tests."""
    for name in ("DUMPSTREAM_HTTP_TOKEN", "DUMPSTREAM_HTTP_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def netrc(folder: Path, host: str = "127.0.0.1") -> str:
    """A netrc file with one user of `host`."""
    path = folder / "netrc"
    path.write_text(f"machine {host} login ann password {PASSWORD}\n")
    path.chmod(0o600)
    return str(path)


class Server:
    """Answers every range with bytes that are no image, or as it is told."""

    def __init__(self, answer: Callable[[Request], Response] | None = None) -> None:
        self.asked: list[str | None] = []
        self._answer = answer

    def handler(self) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            self.asked.append(request.headers.get("authorization"))
            if self._answer is not None:
                return self._answer(request)
            return Response(206, b"x" * 100, {"content-range": "bytes 0-99/100"})

        return answer


async def open_there(url: str, *sets: str) -> DumpError:
    """What opening `url` ends with: its content is no image."""
    settings = load_settings(sets=["net.retry_deadline_s=1", *sets]).settings
    with pytest.raises(DumpError) as caught:
        await anyio.to_thread.run_sync(open_slow, url, settings)
    return caught.value


async def test_user_of_a_netrc_file(tmp_path: Path) -> None:
    """The host's user and password go with every request; a warning says they go in clear."""
    server = Server()
    async with web_server(server.handler()) as url:
        with captured_log() as log:
            error = await open_there(f"{url}/vmcore", f"http.netrc={netrc(tmp_path)}")

    assert server.asked == [BASIC]
    assert PASSWORD not in f"{error}{log.getvalue()}"
    assert "credentials_in_clear" in log.getvalue()


async def test_user_in_the_url(tmp_path: Path) -> None:
    """The URL may name the user whose password netrc has; another user's is not sent."""
    server = Server()
    async with web_server(server.handler()) as url:
        place = url.removeprefix("http://")
        for user in ("ann", "bob"):
            error = await open_there(f"http://{user}@{place}/v", f"http.netrc={netrc(tmp_path)}")
            assert f"{user}@" not in str(error)

    assert server.asked == [BASIC, None]


async def test_token_goes_before_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for targets."""
    monkeypatch.setenv("DUMPSTREAM_HTTP_TOKEN", "abc.def")
    server = Server()
    async with web_server(server.handler()) as url:
        await open_there(f"{url}/vmcore", f"http.netrc={netrc(tmp_path)}")

    assert server.asked == ["Bearer abc.def"]


async def test_other_host_learns_nothing(tmp_path: Path) -> None:
    """A redirection to another origin is followed without credentials; at home they are sent."""
    other = Server()
    async with web_server(other.handler()) as there:

        def send_on(request: Request) -> Response:
            place = f"{there}/signed" if request.path == "/moved" else "/moved"
            return Response(302, headers={"location": place})

        home = Server(send_on)
        async with web_server(home.handler()) as url:
            error = await open_there(f"{url}/vmcore", f"http.netrc={netrc(tmp_path)}")

    assert home.asked == [BASIC, BASIC]
    assert other.asked == [None]
    assert "not a memory image" in str(error)


async def test_password_in_a_url_is_refused() -> None:
    """Every process list would show it; the message does not."""
    settings = load_settings().settings
    with pytest.raises(UsageError, match="netrc is the place") as caught:
        open_slow(f"http://ann:{PASSWORD}@127.0.0.1:9/vmcore", settings)

    assert PASSWORD not in str(caught.value)


async def test_broken_file_of_secrets(tmp_path: Path) -> None:
    """What cannot be read is said, and what stands in it is not."""
    path = tmp_path / "netrc"
    path.write_text(f"machine 127.0.0.1 login ann pass {PASSWORD}\n")
    settings = load_settings(sets=[f"http.netrc={path}"]).settings
    with pytest.raises(SourceError, match="is not netrc") as caught:
        open_slow("http://127.0.0.1:9/vmcore", settings)

    assert PASSWORD not in str(caught.value)


async def test_signed_requests_stay_where_they_are_meant_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An object store that sends us to another server is not followed there."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDTEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secrettest")
    other = Server()
    async with web_server(other.handler()) as there:
        home = Server(lambda _: Response(307, headers={"location": f"{there}/bucket/key"}))
        async with web_server(home.handler()) as url:
            error = await open_there("s3://bucket/key", f"s3.endpoint={url}", "s3.region=us-east-1")

    assert [(asked or "")[:16] for asked in home.asked] == ["AWS4-HMAC-SHA256"]
    assert other.asked == []
    assert "another host" in str(error)
