"""HTTP for sinks: TLS is always verified, answers are bounded, failures are one line."""

from __future__ import annotations

import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from pipeline.config.targets import NetSettings
from pipeline.errors import SinkError, UnsupportedError
from stages.sink.http_client import StreamingClient
from stages.sink.retry import TransientError
from stages.sink.throttle import TokenBucket
from stages.sink.web_client import WebClient
from tests.support.certificates import Authority
from tests.support.web_server import HangUpError, Request, Response, web_server

NET = NetSettings(stall_timeout_s=0.3, connect_timeout_s=2)


def client(net: NetSettings = NET, rate: int = 0) -> WebClient:
    return WebClient("web://target", net, TokenBucket(rate))


@asynccontextmanager
async def secure_server(folder: Path, *, days: int = 1) -> AsyncIterator[tuple[str, Authority]]:
    authority = Authority(folder)
    pem = authority.issue("server", days=days)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem.cert, pem.key)
    async with web_server(echo, context) as url:
        yield url, authority


async def echo(request: Request) -> Response:
    return Response(200, request.body, {"X-Method": request.method})


async def test_body_arrives_and_comes_back() -> None:
    """A body of many steps arrives whole, with its length announced."""
    body = bytes(range(256)) * 10_000
    async with web_server(echo) as url:
        it = client()
        answer = await it.call("PUT", f"{url}/x", {}, memoryview(body))
        await it.close()

    assert answer.status == 200
    assert answer.headers["x-method"] == "PUT"
    assert answer.body == body


async def test_trusted_authority_is_enough(tmp_path: Path) -> None:
    """With the authority's file the server is trusted."""
    async with secure_server(tmp_path) as (url, authority):
        it = client(NetSettings(ca_file=authority.ca_file))
        assert (await it.call("GET", url, {})).is_good
        await it.close()


async def test_unknown_authority_is_refused(tmp_path: Path) -> None:
    """A certificate that nobody vouches for ends it at once, in one line, without a retry."""
    async with secure_server(tmp_path) as (url, _):
        it = client()
        with pytest.raises(SinkError, match="certificate not trusted") as caught:
            await it.call("GET", url, {})
        await it.close()

    assert not isinstance(caught.value, TransientError)
    assert str(caught.value).startswith("web://target: 127.0.0.1: ")
    assert "\n" not in str(caught.value)


async def test_expired_certificate_is_refused(tmp_path: Path) -> None:
    """So is one whose time has passed."""
    async with secure_server(tmp_path, days=-1) as (url, authority):
        it = client(NetSettings(ca_file=authority.ca_file))
        with pytest.raises(SinkError, match="certificate has expired"):
            await it.call("GET", url, {})
        await it.close()


async def test_missing_ca_file_is_one_line(tmp_path: Path) -> None:
    """A CA file that is not there, or is none, is named."""
    (tmp_path / "none.pem").write_text("hello")
    for name in ("nowhere.pem", "none.pem"):
        it = client(NetSettings(ca_file=str(tmp_path / name)))
        with pytest.raises(SinkError, match=rf"net\.ca_file {name}"):
            await it.call("GET", "https://127.0.0.1:1", {})


async def test_unknown_host_is_not_tried_again() -> None:
    """A name that does not exist is a mistake, not a fault of the network."""
    it = client()
    with pytest.raises(SinkError) as caught:
        await it.call("GET", "http://no-such-host.invalid/secret?sig=hunter2", {})
    await it.close()

    assert "no-such-host.invalid" in str(caught.value)
    assert "hunter2" not in str(caught.value)


async def test_server_that_hangs_up_is_transient() -> None:
    """A connection that ends without an answer may be tried again."""

    async def hang_up(_request: Request) -> Response:
        raise HangUpError

    async with web_server(hang_up) as url:
        it = client()
        with pytest.raises(TransientError, match=r"web://target: 127\.0\.0\.1: "):
            await it.call("GET", url, {})
        await it.close()


async def test_server_that_never_answers_is_given_up() -> None:
    """After the stall time the request has failed; the next one waits longer."""

    async def sleep(_request: Request) -> Response:
        await anyio.sleep(60)
        return Response()

    async with web_server(sleep) as url:
        it = client()
        for seconds in ("0.3", "0.6"):
            with pytest.raises(TransientError, match=f"no answer for {seconds} s"):
                await it.call("GET", url, {})
        await it.close()


async def test_server_that_reads_nothing_is_given_up() -> None:
    """A peer that stops reading is noticed while the body is being sent."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)

    async def hold(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await anyio.sleep(60)

    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, hold)
        it = client()
        with pytest.raises(TransientError, match=r"took nothing|no answer"):
            await it.call("PUT", f"http://127.0.0.1:{port}", {}, bytes(64 << 20))
        await it.close()
        group.cancel_scope.cancel()


async def test_endless_answer_is_cut_off() -> None:
    """A server can't fill our memory with an answer."""

    async def much(_request: Request) -> Response:
        return Response(200, bytes(9 << 20))

    async with web_server(much) as url:
        it = client(NetSettings())
        with pytest.raises(SinkError, match="an answer of more than"):
            await it.call("GET", url, {})
        await it.close()


async def test_rate_is_kept_inside_one_body() -> None:
    """The rate limit holds for single requests too, smoothly."""
    async with web_server(echo) as url:
        it = client(NetSettings(), rate=4 << 20)
        started = anyio.current_time()
        await it.call("PUT", url, {}, bytes(2 << 20))
        await it.close()

    assert anyio.current_time() - started >= 0.3


async def test_redirects_are_not_followed() -> None:
    """A redirect would take a signed request, and what it carries, to somebody else."""

    async def elsewhere(_request: Request) -> Response:
        return Response(307, b"", {"location": "http://127.0.0.1:1/"})

    async with web_server(elsewhere) as url:
        it = client()
        assert (await it.call("PUT", url, {}, b"x")).status == 307
        await it.close()


@pytest.mark.parametrize(("text", "seconds"), [("7", 7), ("100000", 120), ("soon", None)])
async def test_retry_after_is_bounded(text: str, seconds: float | None) -> None:
    """A server may ask for a pause, but not for a day."""

    async def busy(_request: Request) -> Response:
        return Response(503, b"", {"Retry-After": text})

    async with web_server(busy) as url:
        it = client()
        answer = await it.call("GET", url, {})
        await it.close()

    assert answer.is_transient
    assert answer.retry_after_s == seconds


async def test_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the environment names a proxy, requests go through it, except those it exempts."""
    async with web_server(echo) as url:
        monkeypatch.setenv("http_proxy", url)
        it = client()
        assert (await it.call("GET", "http://far.invalid/x", {})).is_good
        await it.close()

        monkeypatch.setenv("no_proxy", "far.invalid")
        it = client()
        with pytest.raises(SinkError, match=r"far\.invalid"):
            await it.call("GET", "http://far.invalid/x", {})
        await it.close()


async def test_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra the first request says which one it is."""
    monkeypatch.setitem(sys.modules, "httpx2", None)

    for it in (client(), StreamingClient("web://target", NET, TokenBucket(0))):
        with pytest.raises(UnsupportedError, match=r"^web://target: needs .*\[http\]"):
            await it.call("GET", "http://127.0.0.1:1/", {})
