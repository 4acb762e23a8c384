"""Azurite: Microsoft's own emulator of Azure Blob Storage."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stages.sink.azure_account import AzureAccount
from tests.lab.net.running import Running, find_server, free_ports, listens, running
from tests.lab.net.s3_admin import Reply, fetch

ACCOUNT = "dumpstreamtest"


@dataclass(frozen=True)
class AzureServer:
    """One that is running, with the container ``dumps``."""

    process: Running
    port: int
    key: str

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}/{ACCOUNT}"

    def call(self, method: str, path: str, query: str = "", body: bytes = b"") -> Reply:
        """A signed request; `path` starts with the container."""
        account = AzureAccount(ACCOUNT, self.endpoint, base64.b64decode(self.key), None)
        url = f"{self.endpoint}/{path}" + (f"?{query}" if query else "")
        url, headers = account.authorise(method, url, {}, len(body))
        return fetch(method, url, headers, body)


@contextmanager
def azurite(folder: Path) -> Iterator[AzureServer]:
    """A server that keeps its data in `folder`."""
    program = find_server("azurite-blob", "npm install -g azurite")
    (port,) = free_ports(1)
    key = base64.b64encode(secrets.token_bytes(64)).decode()
    words: list[object] = [program, "--blobHost", "127.0.0.1", "--blobPort", port]
    words += ["--location", folder, "--skipApiVersionCheck", "--disableTelemetry", "--silent"]
    process = Running(
        words,
        log=folder / "azurite.log",
        is_up=lambda: listens(port),
        env={"AZURITE_ACCOUNTS": f"{ACCOUNT}:{key}"},
    )
    with running(process):
        server = AzureServer(process, port, key)
        made = server.call("PUT", "dumps", "restype=container")
        assert made.status == 201, made.body
        yield server
