"""A list of real targets of which only the last works, and two of them at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config.settings import DumpSettings, Settings
from pipeline.config.targets import HttpSettings, NetSettings, TargetEntry
from pipeline.flow.items import Receipt
from stages.sink.fallback import TargetPlan, dump_to_first
from stages.sink.fanout import FanOutSink
from stages.sink.targets import make_remote_sink
from tests.lab.net.nginx import nginx
from tests.lab.net.sshd import SshServer, clients_of, make_key, ssh_server, trust
from tests.lab.net.web import WebServer
from tests.support.certificates import Authority
from tests.support.chunk_stream import ChunkStream, send
from tests.support.faulty_proxy import Faults, Line, faulty_proxy

pytestmark = [pytest.mark.lab, pytest.mark.anyio]

MIB = 1 << 20
NET = NetSettings(
    connect_timeout_s=5,
    stall_timeout_s=5,
    retry_deadline_s=3,
    retry_first_s=0.01,
    retry_most_s=0.2,
    journal_dir="none",
)


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with ssh_server(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    pem = Authority(tmp_path_factory.mktemp("ca")).issue("a")
    with nginx(tmp_path_factory.mktemp("nginx"), pem) as server:
        yield server


def settings(ssh: SshServer, **changes: object) -> Settings:
    return Settings(
        net=NET,
        ssh=ssh.client(remote_program="", **changes),
        http=HttpSettings(),
        dump=DumpSettings(overwrite=False),
    )


async def attempt(entry: TargetEntry, wanted: Settings, stream: ChunkStream) -> Receipt:
    return await send(stream, make_remote_sink(entry.url, wanted))


async def test_the_dump_goes_to_the_first_that_takes_it(
    ssh: SshServer, web: WebServer, tmp_path: Path
) -> None:
    """A changed host key, a port without a server, a link that cuts: then the one that works."""
    known = tmp_path / "known_hosts"
    trust(known, make_key(tmp_path / "other"))
    distrusting = settings(ssh, known_hosts=str(known))
    trusting = settings(ssh)
    async with faulty_proxy(web.port, Faults(reset_every=5 * MIB)) as proxy:
        entries = [
            TargetEntry(ssh.url("refused")),
            TargetEntry("http://127.0.0.1:1/nobody"),
            TargetEntry(web.url("cut", port=proxy.port), deadline_s=4),
            TargetEntry(ssh.url("last")),
        ]

        async def one(entry: TargetEntry) -> Receipt:
            wanted = distrusting if entry is entries[0] else trusting
            return await attempt(entry, wanted, ChunkStream(20 * MIB))

        done = await dump_to_first(TargetPlan(entries, restart_s=5), one)
    assert done.entry is entries[3]
    assert (ssh.files / "last").read_bytes() == ChunkStream(20 * MIB).expected()
    reasons = {failure.target: failure.reason for failure in done.failures}
    assert "host key has changed" in reasons[ssh.url("refused").replace("root@", "")]
    assert "onnection refused" in reasons["http://127.0.0.1:1/nobody"]
    cut = [failure for failure in done.failures if failure.target.endswith("/cut")]
    assert len(cut) >= 2, "it can start over, so it was tried again while its deadline allowed"
    assert web.left("cut") == []
    assert not list(ssh.files.glob("refused*"))
    assert clients_of(ssh) == []


async def test_a_target_that_hangs_is_left_at_its_deadline(ssh: SshServer) -> None:
    """Cancelled, undone, and the next one has the dump."""
    wanted = settings(ssh)
    slow = NetSettings(rate_limit=MIB, journal_dir="none")
    entries = [TargetEntry(ssh.url("slow"), deadline_s=2), TargetEntry(ssh.url("quick"))]

    async def one(entry: TargetEntry) -> Receipt:
        net = slow if entry is entries[0] else NET
        limited = Settings(net=net, ssh=wanted.ssh)
        return await attempt(entry, limited, ChunkStream(20 * MIB))

    done = await dump_to_first(TargetPlan(entries, restart_s=5), one)
    assert done.entry is entries[1]
    assert done.failures[0].reason == "not done within its deadline of 2 s"
    assert (ssh.files / "quick").read_bytes() == ChunkStream(20 * MIB).expected()
    assert not (ssh.files / "slow").exists()


async def test_two_targets_at_once_and_one_of_them_dies(ssh: SshServer, web: WebServer) -> None:
    """SFTP has the dump; the web server's link was cut, and nothing is left there."""
    wanted = settings(ssh)
    stream = ChunkStream(40 * MIB)
    async with faulty_proxy(web.port, Faults(up=Line(rate=20e6), reset_every=9 * MIB)) as proxy:
        urls = [ssh.url("both"), web.url("both", port=proxy.port)]
        sinks = [(url, make_remote_sink(url, wanted)) for url in urls]
        sink = FanOutSink(sinks, buffer_bytes=4 * MIB)
        receipt = await send(stream, sink)
    assert receipt.target == ssh.url("both")
    assert (ssh.files / "both").read_bytes() == stream.expected()
    assert "cannot be resumed" in str(sink.branches[1].error)
    assert web.left("both") == []


async def test_two_targets_at_once(ssh: SshServer, web: WebServer) -> None:
    """Both have the dump, each in its form."""
    stream = ChunkStream(20 * MIB)
    urls = [ssh.url("pair"), web.url("pair")]
    sinks = [(url, make_remote_sink(url, settings(ssh))) for url in urls]
    await send(stream, FanOutSink(sinks, buffer_bytes=4 * MIB))
    assert (ssh.files / "pair").read_bytes() == stream.expected()
    assert web.left("pair") == ["pair", "pair.manifest.json"]
