"""The Azure sink against Azurite."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from pipeline.errors import SinkError, StageError, UsageError
from stages.inspect.verify_stored import verify_stored
from stages.sink.journal import Journal
from stages.sink.manifest import parse_manifest
from stages.sink.stored import find_stored
from tests.lab.net.azurite import ACCOUNT, AzureServer, azurite
from tests.lab.net.uploads import MIB, Upload, check, run_and_kill
from tests.support.faulty_proxy import Faults, Line, faulty_proxy

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureServer]:
    with azurite(tmp_path_factory.mktemp("azurite")) as it:
        yield it


@pytest.fixture(autouse=True)
def credentials(server: AzureServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_KEY", server.key)
    monkeypatch.delenv("AZURE_STORAGE_SAS_TOKEN", raising=False)
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING", raising=False)


def upload(server: AzureServer, name: str, data_bytes: int = 30 * MIB) -> Upload:
    return Upload(f"az://dumps/{name}", server.endpoint, data_bytes)


def require_stored(server: AzureServer, it: Upload) -> None:
    """What is stored, and its manifest, are what was sent."""
    name = quote(it.url.removeprefix("az://"))
    data = server.call("GET", name)
    assert data.status == 200
    manifest = parse_manifest(server.call("GET", f"{name}.manifest.json").body)
    check(manifest, data.body, it.stream())


@pytest.mark.parametrize("data_bytes", [1, 5 * MIB, 40 * MIB])
async def test_blob_is_the_dump(server: AzureServer, data_bytes: int) -> None:
    """Blocks in any order make up the dump, under a name that needs encoding."""
    it = upload(server, f"a host/vmcore+{data_bytes}", data_bytes)

    await it.run()

    require_stored(server, it)


async def test_blob_is_verified_where_it_is(server: AzureServer) -> None:
    """The service keeps no digests: samples are read, or all of it."""
    it = upload(server, "verify")
    await it.run()

    for full in (False, True):
        found = await verify_stored(find_stored(it.url, it.settings), it.net, full=full)
        assert found.problems == []
        assert (found.n_read == it.stream().size) is full


async def test_existing_blob_is_refused(server: AzureServer) -> None:
    """A blob that is there is kept, and the line says how to overwrite it."""
    it = upload(server, "exists", 1)
    await it.run()

    with pytest.raises(SinkError, match="az://dumps/exists: exists; -f overwrites it"):
        await it.run()


async def test_signature_instead_of_key(
    server: AzureServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shared access signature is enough, and is in no message."""
    monkeypatch.delenv("AZURE_STORAGE_KEY")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "?" + container_sas(server))
    it = upload(server, "by-signature")

    await it.run()

    require_stored(server, it)


async def test_wrong_signature_is_one_line(
    server: AzureServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the service refuses is said without showing the signature."""
    monkeypatch.delenv("AZURE_STORAGE_KEY")
    sas = container_sas(server).replace("sig=", "sig=A")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", sas)

    with pytest.raises((SinkError, StageError)) as caught:
        await upload(server, "wrong-signature", 1).run()

    assert "\n" not in str(caught.value)
    assert "sig=" not in str(caught.value)


async def test_wrong_key_is_one_line(server: AzureServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong key is said at once, and nothing is left."""
    monkeypatch.setenv("AZURE_STORAGE_KEY", base64.b64encode(b"wrong" * 8).decode())

    with pytest.raises(SinkError, match=r"az://dumps/wrong-key: look for the blob: .*HTTP 403"):
        await upload(server, "wrong-key").run()


async def test_missing_container_is_one_line(server: AzureServer) -> None:
    """A container that is not there is said before anything is sent."""
    it = Upload("az://nothere/vmcore", server.endpoint, 1)

    with pytest.raises(SinkError, match="there is no such container"):
        await it.run()


@pytest.mark.parametrize(
    "faults",
    [
        Faults(reset_every=6 * MIB),
        Faults(http_fail_every=3, http_fail_burst=2),
        Faults(up=Line(stall_after=9 * MIB, stall_s=4)),
        Faults(up=Line(corrupt_at=7 * MIB)),
    ],
    ids=["reset", "busy", "stall", "corrupt"],
)
async def test_faults_on_the_way_are_borne(
    server: AzureServer, faults: Faults, request: pytest.FixtureRequest
) -> None:
    """Whatever the network does, the blob is whole at the end."""
    name = request.node.callspec.id
    async with faulty_proxy(server.port, faults) as proxy:
        there = server.endpoint.replace(str(server.port), str(proxy.port))
        it = Upload(f"az://dumps/faults-{name}", there, 30 * MIB)
        sink = await it.run()

    assert sink.n_retries >= 1
    require_stored(server, it)


async def test_killed_upload_is_resumed(server: AzureServer, tmp_path: Path) -> None:
    """After kill -9, only what is missing is sent, and the blob is whole."""
    it = upload(server, "killed", 100 * MIB)
    path = run_and_kill(it, tmp_path, 5)
    n_before = path.read_text().count('"kind":"part"')
    async with faulty_proxy(server.port) as proxy:
        there = server.endpoint.replace(str(server.port), str(proxy.port))
        await Upload(it.url, there, it.data_bytes).run(Journal.open(path))
        sent = proxy.seen.up_bytes

    require_stored(server, it)
    assert sent <= it.stream().size - (n_before - 1) * 4 * MIB + 1 * MIB


async def test_account_is_needed(server: AzureServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an account the line says what names it."""
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT")

    with pytest.raises(UsageError, match="which account"):
        upload(server, "x").sink()


def container_sas(server: AzureServer) -> str:
    """A service signature that allows reading and writing in ``dumps`` for an hour."""
    expiry = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    version = "2020-12-06"
    fields = ["rcwd", "", expiry, f"/blob/{ACCOUNT}/dumps", "", "", "", version, "c"]
    text = "\n".join([*fields, *[""] * 7])
    digest = hmac.digest(base64.b64decode(server.key), text.encode(), hashlib.sha256)
    given = {"sp": "rcwd", "se": expiry, "sv": version, "sr": "c"}
    return urlencode({**given, "sig": base64.b64encode(digest).decode()})
