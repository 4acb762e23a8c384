"""The real servers that dumps go to, each with its data in a folder of the caller's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.network.ours import Target
from tests.lab.net.lighttpd import RangeOption, lighttpd
from tests.lab.net.nginx import nginx
from tests.lab.net.s3_admin import ACCESS_KEY, SECRET_KEY
from tests.lab.net.seaweedfs import seaweedfs
from tests.lab.net.sshd import SshServer, ssh_server
from tests.lab.net.web import WebServer
from tests.support.certificates import Authority


@dataclass(frozen=True, slots=True)
class Place:
    """A server that is running.

    Attributes:
        port: where it listens.
        pid: of the server.
        at: the target when it is reached by way of a port: its own, or that of a line before it.
        stored: what `verify` is given; None is the target itself.
    """

    port: int
    pid: int
    at: Callable[[int], Target]
    stored: Path | None = None

    @property
    def target(self) -> Target:
        return self.at(self.port)

    @property
    def to_verify(self) -> Target:
        return self.target if self.stored is None else Target(str(self.stored))


@contextmanager
def s3(folder: Path) -> Iterator[Place]:
    """SeaweedFS."""
    env = {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    }

    def at(port: int) -> Target:
        endpoint = {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}"}
        return Target("s3://dumps/vmcore", env=env | endpoint)

    with seaweedfs(folder) as server:
        yield Place(server.port, server.process.pid, at)


def ssh_sets(server: SshServer) -> tuple[str, ...]:
    """The settings that `SshServer.client` has, for a command line."""
    files = (("identity", "id"), ("known_hosts", "known_hosts"))
    return ("ssh.config=none", *(f"ssh.{name}={server.folder / file}" for name, file in files))


@contextmanager
def ssh(folder: Path, scheme: str = "sftp") -> Iterator[Place]:
    """OpenSSH, one of the two ways."""
    with ssh_server(folder) as server:
        yield ssh_place(server, scheme)


def ssh_place(server: SshServer, scheme: str = "sftp") -> Place:
    """The target ``vmcore`` there."""

    def at(port: int) -> Target:
        sets = ssh_sets(server)
        if scheme == "ssh":
            sets = (*sets, "ssh.remote_program=")
        return Target(server.url("vmcore", scheme=scheme, port=port), sets)

    return Place(server.port, server.process.pid, at, server.files / "vmcore")


@contextmanager
def http_put(folder: Path) -> Iterator[Place]:
    """One PUT for all of it, to nginx with TLS."""
    authority = Authority(folder)
    with nginx(folder, authority.issue("server")) as server:
        yield _web_place(server, authority)


@contextmanager
def http_ranges(folder: Path) -> Iterator[Place]:
    """Ranges written where they belong, by lighttpd with TLS."""
    authority = Authority(folder)
    option: RangeOption = "deprecated-unsafe-partial-put"
    with lighttpd(folder, authority.issue("server"), option) as server:
        yield _web_place(server, authority)


def _web_place(server: WebServer, authority: Authority) -> Place:
    """With TLS: without it, all that was sent is read back, and a line is used twice."""

    def at(port: int) -> Target:
        url = f"https://127.0.0.1:{port}/vmcore"
        return Target(url, (f"net.ca_file={authority.ca_file}",))

    return Place(server.tls_port, server.process.pid, at, server.root / "vmcore")


@contextmanager
def tcp(folder: Path) -> Iterator[Place]:
    """``dumpstream receive``."""
    dumps = folder / "dumps"
    dumps.mkdir()
    words = ["-m", "pipeline", "receive", "-f", "--listen", "127.0.0.1:0", str(dumps)]
    with (
        (folder / "receiver.log").open("wb") as log,
        subprocess.Popen(
            [sys.executable, *words], stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline().rpartition(":")[2])
            yield Place(port, process.pid, _receiver_at, dumps / "vmcore")
        finally:
            process.terminate()


def _receiver_at(port: int) -> Target:
    return Target(f"tcp://127.0.0.1:{port}/vmcore")


MakePlace = Callable[[Path], AbstractContextManager[Place]]
PLACES: dict[str, MakePlace] = {
    "s3": s3,
    "tcp": tcp,
    "sftp": ssh,
    "https put": http_put,
    "https ranges": http_ranges,
}
