"""Sources behind the proxies that the environment names: through a real one."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio.to_thread
import pytest

from pipeline.config.layers import load_settings
from pipeline.config.targets import NetSettings
from pipeline.errors import ConfigError, DumpError, UnsupportedError
from stages.reader.http_transport import HttpTransport
from stages.reader.remote_file import RemoteFile
from stages.reader.remote_image import open_slow
from stages.reader.remote_link import Link, SourceError
from tests.support.certificates import Authority
from tests.support.http_proxy import HttpProxy
from tests.support.vmcore_writer import PAGE, VmcoreWriter, described, prstatus
from tests.support.web_server import Request, Response, web_server

pytestmark = pytest.mark.anyio

CONTENT = VmcoreWriter().note("CORE", 1, prstatus()).load(paddr=0, data=described(0, 40)).pack()
NET = NetSettings(
    connect_timeout_s=2,
    stall_timeout_s=2,
    retry_deadline_s=1,
    retry_first_s=0.001,
    retry_most_s=0.01,
)


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine has set."""
    for name in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name.upper()}_PROXY", raising=False)


class Server:
    """Answers ranges of `CONTENT`, and keeps what it was asked."""

    def __init__(self) -> None:
        self.seen: list[Request] = []

    def handler(self) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            self.seen.append(request)
            first, _, last = request.headers["range"].removeprefix("bytes=").partition("-")
            body = CONTENT[int(first) : int(last) + 1]
            about = f"bytes {first}-{int(first) + len(body) - 1}/{len(CONTENT)}"
            return Response(206, body, {"content-range": about})

        return answer


async def read(url: str, net: NetSettings = NET) -> bytes:
    """All of it, in parts."""

    def work() -> bytes:
        file = RemoteFile(HttpTransport(url, url, net, Link(max_in_flight=4, part_bytes=50_000)))
        try:
            return file.read(0, len(CONTENT))
        finally:
            file.close()

    return await anyio.to_thread.run_sync(work)


async def test_http_goes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy is asked for the whole URL, every time; the server sees its own name."""
    server, proxy = Server(), HttpProxy()
    async with web_server(server.handler()) as url, proxy.running() as address:
        monkeypatch.setenv("http_proxy", address)
        assert await read(f"{url}/vmcore?a=b") == CONTENT

    assert set(proxy.seen) == {f"GET {url}/vmcore?a=b HTTP/1.1"}
    assert {request.headers["host"] for request in server.seen} == {url.removeprefix("http://")}


async def test_https_goes_through_a_tunnel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By CONNECT, and the certificate that is verified is the server's own."""
    authority = Authority(tmp_path)
    pem = authority.issue("server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem.cert, pem.key)
    server, proxy = Server(), HttpProxy()
    async with web_server(server.handler(), context) as url, proxy.running() as address:
        monkeypatch.setenv("HTTPS_PROXY", f"http://{address}")
        assert await read(url, NetSettings(ca_file=authority.ca_file)) == CONTENT
        with pytest.raises(SourceError, match=f"the proxy {address}: certificate not trusted"):
            await read(url)

    assert set(proxy.seen) == {f"CONNECT {url.removeprefix('https://')} HTTP/1.1"}


@pytest.mark.parametrize(
    ("name", "value", "is_direct"),
    [
        ("HTTP_PROXY", None, True),
        ("https_proxy", None, True),
        ("ALL_PROXY", None, False),
        ("no_proxy", "127.0.0.0/8", True),
        ("NO_PROXY", "elsewhere", False),
    ],
)
async def test_which_go_through(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str | None, is_direct: bool
) -> None:
    """The variables mean what they mean for targets."""
    server, proxy = Server(), HttpProxy()
    async with web_server(server.handler()) as url, proxy.running() as address:
        if value is not None:
            monkeypatch.setenv("http_proxy", address)
        monkeypatch.setenv(name, address if value is None else value)
        assert await read(url) == CONTENT

    assert (proxy.seen == []) is is_direct


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_password_goes_to_the_proxy_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """User and password of the proxy's URL are sent to it; a wrong one fails at once, unshown."""
    server, proxy = Server(), HttpProxy("Basic bWU6aHVzaEA=")
    async with web_server(server.handler()) as url, proxy.running() as address:
        monkeypatch.setenv("all_proxy", f"http://me:hush%40@{address}")
        assert await read(url) == CONTENT
        monkeypatch.setenv("all_proxy", f"http://me:wrong@{address}")
        proxy.seen.clear()
        with pytest.raises(SourceError, match="HTTP 407") as caught:
            await read(url.replace("http", scheme))

    assert not any("proxy-authorization" in request.headers for request in server.seen)
    assert len(proxy.seen) == 1
    assert "wrong" not in str(caught.value)


async def test_redirection_chooses_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that is reached directly may send on to one that is not."""
    server, proxy = Server(), HttpProxy()

    async with web_server(server.handler()) as url, proxy.running() as address:
        there = url.replace("127.0.0.1", "localhost")

        async def home(_request: Request) -> Response:
            return Response(302, headers={"location": f"{there}/vmcore"})

        async with web_server(home) as start:
            monkeypatch.setenv("http_proxy", address)
            monkeypatch.setenv("no_proxy", "127.0.0.1")
            assert await read(start) == CONTENT

    assert set(proxy.seen) == {f"GET {there}/vmcore HTTP/1.1"}


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_dead_proxy_is_named(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    """What cannot be reached is the proxy, and the line says so."""
    monkeypatch.setenv("all_proxy", "http://me:hush@127.0.0.1:1")

    with pytest.raises(SourceError) as caught:
        await read(f"{scheme}://a.example/x")

    said = f"{scheme}://a.example/x: by way of the proxy 127.0.0.1:1: Connection refused ("
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("url", "proxy", "error"),
    [
        ("http://a.example/x", "socks5://me:hush@127.0.0.1:1", ConfigError),
        ("https://a.example/x", "https://me:hush@127.0.0.1:1", UnsupportedError),
    ],
)
async def test_proxy_of_another_kind(
    monkeypatch: pytest.MonkeyPatch, url: str, proxy: str, error: type[DumpError]
) -> None:
    """What cannot be used is refused, and its password is not shown."""
    monkeypatch.setenv("all_proxy", proxy)

    with pytest.raises(error, match="proxy") as caught:
        await read(url)

    assert "hush" not in str(caught.value)


async def test_object_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image in a bucket is read through the proxy too, signed for the store's own host."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-show-this")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    server, proxy = Server(), HttpProxy()
    async with web_server(server.handler()) as url, proxy.running() as address:
        monkeypatch.setenv("http_proxy", address)
        settings = load_settings(sets=[f"s3.endpoint={url}", "s3.region=here"]).settings
        image = await anyio.to_thread.run_sync(open_slow, "s3://bucket/vmcore", settings)
        image.close()

    assert image.saved.n_pages == len(described(0, 40)) // PAGE
    assert set(proxy.seen) == {f"GET {url}/bucket/vmcore HTTP/1.1"}
    assert all("host" in request.headers["authorization"] for request in server.seen)
    assert {request.headers["host"] for request in server.seen} == {url.removeprefix("http://")}
