"""A real OpenSSH server on loopback that lets in one key, and the client configuration for it."""

from __future__ import annotations

import getpass
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pipeline.config.targets import SshSettings
from tests.lab.commands import run
from tests.lab.net.running import Running, find_server, free_ports, running

_HOW = "apt-get install openssh-server"
_CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/id.pub
PidFile {folder}/sshd.pid
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
MaxStartups 100
SetEnv PATH={bin}:/usr/local/bin:/usr/bin:/bin
Subsystem sftp internal-sftp
"""


@dataclass(frozen=True, slots=True)
class SshServer:
    """A server, and the files that its tests use.

    Attributes:
        files: a directory at the other end.
        bin: first in the PATH of commands that run at the other end.
    """

    process: Running
    folder: Path
    port: int

    @property
    def files(self) -> Path:
        return self.folder / "files"

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    def url(self, name: str, *, scheme: str = "sftp", port: int | None = None) -> str:
        """The target `name` in `files`; `port` of a proxy when there is one between."""
        user = getpass.getuser()
        return f"{scheme}://{user}@127.0.0.1:{port or self.port}{self.files}/{name}"

    def client(self, **changes: object) -> SshSettings:
        """Settings of a client that the server lets in and that trusts it at any port."""
        settings: dict[str, object] = {
            "config": "none",
            "identity": str(self.folder / "id"),
            "known_hosts": str(self.folder / "known_hosts"),
            **changes,
        }
        return msgspec.convert(settings, SshSettings)


def make_key(path: Path) -> str:
    """A new key pair; the public half without its comment."""
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path])
    return " ".join(path.with_suffix(".pub").read_text().split()[:2])


def trust(known_hosts: Path, public_key: str) -> None:
    """Have clients expect `public_key` on 127.0.0.1, whatever the port."""
    known_hosts.write_text(f"127.0.0.1,[127.0.0.1]:* {public_key}\n")


def _answers(port: int) -> bool:
    """True when the server has said its banner; a bare connection would use up a start-up slot."""
    try:
        with socket.create_connection(("127.0.0.1", port), 0.5) as connection:
            connection.settimeout(2)
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


@contextmanager
def ssh_server(folder: Path) -> Iterator[SshServer]:
    """A server that keeps its keys, and what tests write, in `folder`."""
    program = find_server("sshd", _HOW)
    find_server("ssh", "apt-get install openssh-client")
    for each in ("files", "bin"):
        (folder / each).mkdir(parents=True)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    trust(folder / "known_hosts", make_key(folder / "host_key"))
    make_key(folder / "id")
    (port,) = free_ports(1)
    config = folder / "sshd_config"
    config.write_text(_CONFIG.format(port=port, folder=folder, bin=folder / "bin"))
    process = Running(
        [program, "-D", "-e", "-f", config], log=folder / "sshd.log", is_up=lambda: _answers(port)
    )
    with running(process):
        yield SshServer(process, folder, port)


def clients_of(server: SshServer) -> list[str]:
    """Command lines of ``ssh`` processes that still talk to `server`."""
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    mark = str(server.folder / "known_hosts")
    return [line for line in listed.stdout.splitlines() if line.startswith("ssh ") and mark in line]
