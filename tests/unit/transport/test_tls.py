"""TLS between the ends: both must be who they should be, and failures are one clear line."""

from __future__ import annotations

import ssl
from pathlib import Path

import anyio
import pytest

from pipeline.config.settings import Settings
from pipeline.config.targets import NetSettings, TcpSettings
from pipeline.errors import SinkError, UsageError
from stages.sink.tcp import make_sink
from stages.transport.tls import client_context, server_context
from tests.support.certificates import Authority, Pem
from tests.support.chunk_stream import ChunkStream, send
from tests.support.faulty_proxy import Faults, Line, faulty_proxy
from tests.support.raw_peer import ended, hello, raw_peer
from tests.support.running_receiver import make_tcp_sink, options, running_receiver

MIB = 1 << 20


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "dumps"
    made.mkdir()
    return made


def server(authority: Authority, pem: Pem | None = None) -> ssl.SSLContext:
    pem = pem or authority.issue("receiver")
    return server_context(pem.cert, pem.key, authority.ca_file)


def client(authority: Authority, pem: Pem | None = None) -> ssl.SSLContext:
    pem = pem or authority.issue("sender")
    return client_context(authority.ca_file, pem.cert, pem.key)


async def refusal(port: int, tls: ssl.SSLContext) -> str:
    """What the sender says; at once, although its deadline is far."""
    sink = make_tcp_sink(port, tls=tls)
    with anyio.fail_after(3), pytest.raises(SinkError) as caught:
        await sink.open()
    text = str(caught.value)
    assert text.startswith(f"tls://127.0.0.1:{port}/dump: ")
    assert "\n" not in text
    return text


async def test_upload(authority: Authority, folder: Path) -> None:
    """With certificates on both sides the dump arrives."""
    source = ChunkStream(2 * MIB)
    async with running_receiver(folder, tls=server(authority)) as receiver:
        await send(source, make_tcp_sink(receiver.port, tls=client(authority)))

    assert await anyio.Path(folder / "dump").read_bytes() == source.expected()


@pytest.mark.parametrize(
    "faults",
    [Faults(reset_every=MIB), Faults(up=Line(corrupt_at=MIB)), Faults(down=Line(corrupt_at=5000))],
    ids=["resets", "corrupt record up", "corrupt record down"],
)
async def test_faults_are_survived(authority: Authority, folder: Path, faults: Faults) -> None:
    """A damaged record breaks the connection, not the upload."""
    source = ChunkStream(4 * MIB)
    async with (
        running_receiver(folder, tls=server(authority)) as receiver,
        faulty_proxy(receiver.port, faults) as proxy,
    ):
        sending = options(window_bytes=MIB // 4)
        await send(source, make_tcp_sink(proxy.port, tls=client(authority), sending=sending))
    assert await anyio.Path(folder / "dump").read_bytes() == source.expected()


async def test_receiver_of_another_authority(
    authority: Authority, folder: Path, tmp_path: Path
) -> None:
    """A receiver that our authority did not sign gets nothing."""
    stranger = Authority(tmp_path, "stranger")
    async with running_receiver(folder, tls=server(stranger)) as receiver:
        text = await refusal(receiver.port, client(authority))

        assert "the receiver's certificate is not valid: " in text
        assert receiver.names() == []


async def test_receiver_with_another_name(authority: Authority, folder: Path) -> None:
    """The name in the certificate must be the one that was asked for."""
    async with running_receiver(folder, tls=server(authority)) as receiver:
        sink = make_tcp_sink(receiver.port, tls=client(authority))
        object.__setattr__(sink.sender._endpoint, "server_name", "elsewhere.example")
        with pytest.raises(SinkError, match="Hostname mismatch"):
            await sink.open()


async def test_expired_receiver(authority: Authority, folder: Path) -> None:
    """An expired certificate is not valid, and the line says why."""
    expired = authority.issue("receiver", days=-1)
    async with running_receiver(folder, tls=server(authority, expired)) as receiver:
        assert "certificate has expired" in await refusal(receiver.port, client(authority))


async def test_sender_without_certificate(authority: Authority, folder: Path) -> None:
    """An unauthenticated peer is refused before anything is made, and told what it lacks."""
    async with running_receiver(folder, tls=server(authority)) as receiver:
        bare = client_context(authority.ca_file, None, None)
        assert "wants a certificate (tcp.cert_file)" in await refusal(receiver.port, bare)
        assert receiver.names() == []


async def test_sender_of_another_authority(
    authority: Authority, folder: Path, tmp_path: Path
) -> None:
    """Nor does a certificate of one's own making help."""
    stranger = Authority(tmp_path, "stranger").issue("sender")
    async with running_receiver(folder, tls=server(authority)) as receiver:
        text = await refusal(receiver.port, client(authority, stranger))
        assert "does not trust our certificate" in text
        assert receiver.names() == []


async def test_expired_sender(authority: Authority, folder: Path) -> None:
    """An expired certificate of ours is named as such."""
    expired = authority.issue("sender", days=-1)
    async with running_receiver(folder, tls=server(authority)) as receiver:
        assert "our certificate has expired" in await refusal(
            receiver.port, client(authority, expired)
        )


async def test_plain_receiver_behind_tls_url(authority: Authority, folder: Path) -> None:
    """A receiver without TLS is recognised."""
    async with running_receiver(folder) as receiver:
        assert "does not speak TLS" in await refusal(receiver.port, client(authority))


async def test_plain_sender_to_tls_receiver(authority: Authority, folder: Path) -> None:
    """What is no TLS gets no answer of the protocol."""
    async with running_receiver(folder, tls=server(authority)) as receiver:
        async with raw_peer(receiver.port) as peer:
            await peer.send(hello())
            assert await ended(peer.stream)
        assert receiver.names() == []


async def test_upload_of_another_peer(authority: Authority, folder: Path) -> None:
    """A token alone is not enough: an upload belongs to the subject that began it."""
    async with running_receiver(folder, tls=server(authority)) as receiver:
        first = make_tcp_sink(receiver.port, tls=client(authority))
        await first.open()
        other = make_tcp_sink(receiver.port, tls=client(authority, authority.issue("other")))
        other.sender._hello = first.sender._hello
        with pytest.raises(SinkError, match="begun by another peer"):
            await other.open()


async def test_renewed_certificate_goes_on(authority: Authority, folder: Path) -> None:
    """The same subject with a new key is the same peer."""
    async with running_receiver(folder, tls=server(authority)) as receiver:
        first = make_tcp_sink(receiver.port, tls=client(authority))
        await first.open()
        renewed = make_tcp_sink(receiver.port, tls=client(authority, authority.issue("sender")))
        renewed.sender._hello = first.sender._hello
        await renewed.open()


class TestContexts:
    def test_verification_is_always_on(self, authority: Authority) -> None:
        """Both ends verify, and nothing older than TLS 1.3 is spoken."""
        ours, theirs = client(authority), server(authority)
        assert ours.check_hostname
        assert {ours.verify_mode, theirs.verify_mode} == {ssl.CERT_REQUIRED}
        assert {ours.minimum_version, theirs.minimum_version} == {ssl.TLSVersion.TLSv1_3}

    def test_no_setting_turns_it_off(self) -> None:
        """No name of a setting even sounds like it."""
        words = ("verify", "insecure", "check", "trust_all")
        names = [*NetSettings.__struct_fields__, *TcpSettings.__struct_fields__]
        assert not [name for name in names if any(word in name for word in words)]

    def test_key_with_passphrase(self, authority: Authority) -> None:
        """Nobody is asked for a passphrase when a machine has crashed."""
        pem = authority.issue("sealed", passphrase=b"secret")
        with pytest.raises(UsageError, match="needs a passphrase"):
            client_context(authority.ca_file, pem.cert, pem.key)

    @pytest.mark.parametrize("content", [None, "", "no certificate"])
    def test_files_that_are_none(
        self, authority: Authority, tmp_path: Path, content: str | None
    ) -> None:
        """A file that is missing or holds something else is named."""
        path = tmp_path / "wrong.pem"
        if content is not None:
            path.write_text(content)
        with pytest.raises(UsageError, match=r"wrong\.pem"):
            client_context(str(path), None, None)
        with pytest.raises(UsageError, match=r"wrong\.pem"):
            client_context(authority.ca_file, str(path), None)


class TestMakeSink:
    def test_settings_are_used(self, authority: Authority) -> None:
        """Window, chunks and names come from the settings."""
        pem = authority.issue("sender")
        settings = Settings(
            net=NetSettings(ca_file=authority.ca_file, rate_limit=MIB),
            tcp=TcpSettings(window_bytes=2 * MIB, cert_file=pem.cert, key_file=pem.key),
        )
        sink = make_sink("tls://[::1]:99/dump", settings)

        assert sink.sender.window.limit_bytes == 2 * MIB
        assert sink.target == "tls://[::1]:99/dump"

    @pytest.mark.parametrize(
        ("url", "wanted"),
        [
            ("tcp://", "no host"),
            ("tcp://user:secret@host/x", "nothing else"),
            ("tcp://host:99999/x", "(?i)port"),
            ("tcp://host/../x", "no name for a dump"),
            ("tcp://host/a/b", "no name for a dump"),
            ("tcp://host/x?y", "nothing else"),
        ],
    )
    def test_wrong_urls(self, url: str, wanted: str) -> None:
        """Parts that the protocol has no place for are refused, and no secret is repeated."""
        with pytest.raises(UsageError, match=wanted) as caught:
            make_sink(url, Settings())
        assert "secret" not in str(caught.value)

    def test_certificate_without_encryption(self) -> None:
        """A certificate with tcp:// is a mistake that must not pass."""
        settings = Settings(tcp=TcpSettings(cert_file="x"))
        with pytest.raises(UsageError, match="only tls:// encrypts"):
            make_sink("tcp://host/x", settings)
