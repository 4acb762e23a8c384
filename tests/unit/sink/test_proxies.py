"""Proxies of the environment: which one is taken for what, and requests that go through it."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from pipeline.config.targets import HttpSettings, NetSettings
from pipeline.errors import ConfigError, SinkError
from stages.sink.http import HttpSink
from stages.sink.http_url import parse_http_url
from stages.sink.proxies import proxy_for, show_proxy
from stages.sink.retry import TransientError
from stages.sink.throttle import TokenBucket
from stages.sink.web_client import WebClient
from tests.support.certificates import Authority
from tests.support.chunk_stream import ChunkStream, send
from tests.support.dav_server import DavServer
from tests.support.http_proxy import HttpProxy
from tests.support.web_server import web_server

NET = NetSettings(stall_timeout_s=2, connect_timeout_s=2, retry_deadline_s=2, retry_first_s=0.01)
P = "http://proxy:3128"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine has set."""
    for name in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name.upper()}_PROXY", raising=False)


@pytest.mark.parametrize(
    ("url", "environ", "wanted"),
    [
        ("http://a/x", {}, None),
        ("http://a/x", {"http_proxy": P}, P),
        ("http://a/x", {"HTTP_PROXY": P}, None),
        ("http://a/x", {"HTTPS_PROXY": P}, None),
        ("https://a/x", {"HTTPS_PROXY": P}, P),
        ("https://a/x", {"https_proxy": P, "HTTPS_PROXY": "http://other"}, P),
        ("https://a/x", {"https_proxy": "", "HTTPS_PROXY": P}, P),
        ("https://a/x", {"https_proxy": "", "all_proxy": "", "ALL_PROXY": P}, P),
        ("https://a/x", {"http_proxy": P}, None),
        ("https://a/x", {"ALL_PROXY": P}, P),
        ("https://a/x", {"ALL_PROXY": "http://other", "https_proxy": P}, P),
        ("https://a/x", {"https_proxy": "proxy:3128"}, P),
        ("http://a/x", {"HTTP_PROXY": "http://other", "ALL_PROXY": P}, P),
    ],
)
def test_variable(url: str, environ: dict[str, str], wanted: str | None) -> None:
    """The scheme's own before the one for all, lower case before capitals, HTTP_PROXY never."""
    assert proxy_for(url, environ) == wanted


@pytest.mark.parametrize(
    ("host", "listed", "is_direct"),
    [
        ("store.lab.example", "lab.example", True),
        ("store.lab.example", ".lab.example", True),
        ("lab.example", ".lab.example", True),
        ("STORE.lab.example", "x, Store.LAB.example", True),
        ("store.lab.example", "a b store.lab.example", True),
        ("notlab.example", "lab.example", False),
        ("lab.example.org", "lab.example", False),
        ("a", "*", True),
        ("a", "", False),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("11.1.2.3", "10.0.0.0/8", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "2.3", False),
        ("[fd00::1]", "fd00::/8", True),
        ("[fd00::1]", "[fd00::1]", True),
        ("a", "10.0.0.0/8", False),
    ],
)
def test_exceptions(host: str, listed: str, is_direct: bool) -> None:
    """Names with what is below them, addresses, networks, everything."""
    got = proxy_for(f"http://{host}:8080/x", {"http_proxy": P, "NO_PROXY": listed})

    assert got == (None if is_direct else P)


@pytest.mark.parametrize("value", ["socks5://proxy:1080", "http://", "http://a:port", "http://[a"])
def test_no_proxy_that_can_be_used(value: str) -> None:
    """What is no HTTP proxy is a wrong setting, and is not shown: it may have a password."""
    with pytest.raises(ConfigError, match="environment: https_proxy: is no http://HOST") as caught:
        proxy_for("https://a/x", {"HTTPS_PROXY": value})

    assert value not in str(caught.value).removeprefix("environment: https_proxy: is no http://")


def test_shown_without_secrets() -> None:
    """Host and port are all that an error says."""
    assert show_proxy("http://me:hush@proxy:3128") == "proxy:3128"
    assert show_proxy("http://me:hush@proxy") == "proxy"


@pytest.mark.anyio
@pytest.mark.parametrize("ranges", ["always", "never"])
async def test_every_request_of_a_dump(
    monkeypatch: pytest.MonkeyPatch, ranges: str, tmp_path: Path
) -> None:
    """Pieces and streams over https go through CONNECT; the certificate is the server's own."""
    authority = Authority(tmp_path)
    pem = authority.issue("server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem.cert, pem.key)
    server, proxy = DavServer(), HttpProxy()
    net = NetSettings(ca_file=authority.ca_file)
    async with web_server(server.handle, context) as url, proxy.running() as address:
        monkeypatch.setenv("HTTPS_PROXY", f"http://{address}")
        http = HttpSettings(ranges=ranges)  # type: ignore[arg-type]
        sink = HttpSink(parse_http_url(f"{url}/dump"), http, net, overwrite=False)
        await send(ChunkStream(1_000_000), sink)

    assert "/dump" in server.files
    assert set(proxy.seen) == {f"CONNECT {url.removeprefix('https://')} HTTP/1.1"}


@pytest.mark.anyio
async def test_stream_without_a_request_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream chooses its proxy by its own URL, whatever was asked for before."""
    from stages.sink.http_client import StreamingClient

    server, proxy = DavServer(), HttpProxy()

    async def body() -> object:
        yield b"dump"

    async with server.running() as url, proxy.running() as address:
        monkeypatch.setenv("http_proxy", address)
        client = StreamingClient("web://target", NET, TokenBucket(0))
        answer = await client.send_stream("PUT", f"{url}/x", {}, body())  # type: ignore[arg-type]
        await client.close()

    assert answer.is_good
    assert server.files["/x"] == b"dump"
    assert proxy.seen == [f"PUT {url}/x HTTP/1.1"]


@pytest.mark.anyio
async def test_each_host_has_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """One client reaches one host directly and another by the proxy, in either order."""
    server, proxy = DavServer(files={"/x": bytearray(b"1")}), HttpProxy()
    async with server.running() as url, proxy.running() as address:
        monkeypatch.setenv("http_proxy", f"http://{address}")
        monkeypatch.setenv("no_proxy", "localhost")
        client = WebClient("web://target", NET, TokenBucket(0))
        for host, n_seen in (("localhost", 0), ("127.0.0.1", 1), ("localhost", 1)):
            answer = await client.call("GET", f"{url.replace('127.0.0.1', host)}/x", {})
            assert (answer.status, len(proxy.seen)) == (200, n_seen)
        await client.close()


@pytest.mark.anyio
async def test_password_goes_to_the_proxy_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """User and password of the proxy's URL are sent to it; a wrong one fails at once, unshown."""
    server, proxy = DavServer(files={"/x": bytearray(b"1")}), HttpProxy("Basic bWU6aHVzaA==")
    async with server.running() as url, proxy.running() as address:
        secure = url.replace("http://", "https://")
        monkeypatch.setenv("all_proxy", f"http://me:hush@{address}")
        client = WebClient("web://target", NET, TokenBucket(0))
        assert (await client.call("GET", f"{url}/x", {})).status == 200
        assert "proxy-authorization" not in server.seen[0].headers
        monkeypatch.setenv("all_proxy", f"http://me:wrong@{address}")
        with pytest.raises(SinkError, match="407") as caught:
            await client.call("GET", f"{secure}/x", {})
        await client.close()

    assert not isinstance(caught.value, TransientError)
    assert "wrong" not in str(caught.value)
    assert f"by way of the proxy {address}" in str(caught.value)


@pytest.mark.anyio
async def test_dead_proxy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be reached is the proxy, and the line says so."""
    monkeypatch.setenv("http_proxy", "http://me:hush@127.0.0.1:1")
    client = WebClient("web://target", NET, TokenBucket(0))
    with pytest.raises(TransientError) as caught:
        await client.call("GET", "http://a.example/x", {})
    await client.close()

    said = "web://target: a.example by way of the proxy 127.0.0.1:1: Connection refused"
    assert str(caught.value) == said
