"""What the tests know of a real web server: its folder, its port, its URLs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.lab.net.running import Running
from tests.support.certificates import Pem

USER = "collector"
PASSWORD = "correct horse"


@dataclass(frozen=True, slots=True)
class WebServer:
    """A running server.

    Attributes:
        root: the folder that it serves; ``closed`` in it wants `USER` and `PASSWORD`.
    """

    process: Running
    root: Path
    port: int
    tls_port: int

    def url(self, name: str, *, port: int | None = None) -> str:
        return f"http://127.0.0.1:{port or self.port}/{name}"

    def tls_url(self, name: str) -> str:
        return f"https://127.0.0.1:{self.tls_port}/{name}"

    def left(self, name: str) -> list[str]:
        """What is there of the dump `name`, under whatever name."""
        return sorted(path.name for path in self.root.glob(f"{name}*"))


def make_root(folder: Path) -> Path:
    """The folder to serve, with a closed one inside."""
    root = folder / "root"
    (root / "closed").mkdir(parents=True)
    return root


def bundle(pem: Pem, path: Path) -> Path:
    """Certificate and key in one file, as some servers want them."""
    path.write_text(Path(pem.cert).read_text() + Path(pem.key).read_text())
    return path
