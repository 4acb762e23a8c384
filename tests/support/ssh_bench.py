"""`fake_ssh` set up for a test: a program, the files at its other end, and sinks that use it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Literal

from pipeline.config.targets import NetSettings, SshSettings
from stages.sink.sftp import SftpSink
from stages.sink.ssh import SshSink
from stages.sink.ssh_url import SshTarget, parse_ssh_url
from tests.support import fake_ssh

QUICK = NetSettings(
    connect_timeout_s=5,
    stall_timeout_s=5,
    retry_deadline_s=5,
    retry_first_s=0.001,
    retry_most_s=0.01,
)


class Bench:
    """A stand-in for ssh, and a directory at its other end."""

    def __init__(self, folder: Path) -> None:
        self.files = folder / "files"
        self.files.mkdir()
        self.program = folder / "ssh"
        script = Path(fake_ssh.__file__).read_text()
        self.program.write_text(f"#!{sys.executable} -ES\n{script}")
        self.program.chmod(0o755)

    def faults(self, **faults: object) -> None:
        """What goes wrong from now on; see `fake_ssh`."""
        (self.program.parent / "faults.json").write_text(json.dumps(faults))

    def counted(self, what: str) -> int:
        """How often `what` has happened."""
        path = self.program.parent / f"{what}.count"
        return path.stat().st_size if path.exists() else 0

    def last_pid(self) -> int:
        """The process of the last connection."""
        return int((self.program.parent / "pid").read_text())

    def _target(self, scheme: str, name: str) -> SshTarget:
        return parse_ssh_url(f"{scheme}://host{self.files}/{name}")

    def sftp(
        self,
        name: str = "dump",
        *,
        net: NetSettings = QUICK,
        overwrite: bool = False,
        connections: int = 1,
        verify: Literal["samples", "all", "none"] = "all",
    ) -> SftpSink:
        """A sink over SFTP."""
        ssh = SshSettings(program=str(self.program), connections=connections, verify=verify)
        return SftpSink(self._target("sftp", name), ssh, net, overwrite=overwrite, fsync=True)

    def ssh(
        self,
        name: str = "dump",
        *,
        net: NetSettings = QUICK,
        overwrite: bool = False,
        remote_program: str = "",
    ) -> SshSink:
        """A sink over a command."""
        ssh = SshSettings(program=str(self.program), remote_program=remote_program)
        return SshSink(self._target("ssh", name), ssh, net, overwrite=overwrite)

    def left(self) -> list[str]:
        """What is there."""
        return sorted(path.name for path in self.files.iterdir())
