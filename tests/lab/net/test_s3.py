"""The S3 sink against SeaweedFS (strict) and ``rclone serve s3`` (lenient)."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import anyio
import pytest
from msgspec.structs import replace as replace_struct

from pipeline.errors import SinkError, StageError
from stages.inspect.verify_stored import verify_stored
from stages.sink.journal import Journal
from stages.sink.manifest import parse_manifest
from stages.sink.stored import find_stored
from tests.lab.net.rclone import rclone_s3
from tests.lab.net.s3_admin import ACCESS_KEY, SECRET_KEY
from tests.lab.net.seaweedfs import S3Server, seaweedfs
from tests.lab.net.uploads import MIB, NET, Upload, check, new_journal, run_and_kill
from tests.support.faulty_proxy import Faults, Line, faulty_proxy

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as it:
        yield it


@pytest.fixture(scope="module")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with rclone_s3(tmp_path_factory.mktemp("rclone")) as it:
        yield it


@pytest.fixture(params=["weed", "rclone"])
def server(request: pytest.FixtureRequest) -> S3Server:
    """Each of the servers in turn."""
    it = request.getfixturevalue(request.param)
    assert isinstance(it, S3Server)
    return it


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")


def upload(server: S3Server, key: str, data_bytes: int = 40 * MIB) -> Upload:
    return Upload(f"s3://dumps/{key}", server.admin.endpoint, data_bytes)


def through(port: int, it: Upload) -> Upload:
    """The same upload by way of a proxy."""
    return replace(it, endpoint=f"http://127.0.0.1:{port}")


def require_stored(server: S3Server, it: Upload) -> None:
    """What is stored, and its manifest, are what was sent, and no upload is left open."""
    path = quote(it.url.removeprefix("s3://"))
    data = server.admin.call("GET", path)
    assert data.status == 200
    manifest = parse_manifest(server.admin.call("GET", f"{path}.manifest.json").body)
    check(manifest, data.body, it.stream())
    assert b"<UploadId>" not in server.admin.call("GET", "dumps", uploads="").body


async def require_verified(it: Upload, proof: str, *, full: bool = False) -> int:
    """`verify` finds nothing wrong, for that reason; how much it read."""
    found = await verify_stored(find_stored(it.url, it.settings), it.net, full=full)
    assert found.problems == []
    assert proof in found.proof
    return found.n_read


@pytest.mark.parametrize("checksum", ["sha256", "crc32c", "none"])
@pytest.mark.parametrize("data_bytes", [1, 40 * MIB])
async def test_object_is_the_dump(server: S3Server, data_bytes: int, checksum: str) -> None:
    """The object equals the dump, with each kind of checksum, under a key that needs encoding."""
    it = upload(server, f"a host/vmcore+{checksum}{data_bytes}", data_bytes)

    await replace(it, s3=(("checksum", checksum),)).run()

    require_stored(server, it)


@pytest.mark.parametrize(
    ("checksum", "proof"), [("sha256", "sha256"), ("crc32c", "crc32c"), ("none", "etag")]
)
async def test_strict_server_proves_by_itself(weed: S3Server, checksum: str, proof: str) -> None:
    """Where the server keeps checksums, verifying reads nothing but the manifest."""
    it = replace(upload(weed, f"verify-{checksum}"), s3=(("checksum", checksum),))
    await it.run()

    assert await require_verified(it, f"own {proof} of every part") == 0
    assert await require_verified(it, "all of it", full=True) == it.stream().size


async def test_lenient_server_is_sampled(rclone: S3Server) -> None:
    """Where it keeps none, the head, the end and a few parts are read."""
    it = upload(rclone, "verify")
    await it.run()

    assert 0 < await require_verified(it, "pieces read and hashed") < it.stream().size


async def test_replaced_object_is_found(weed: S3Server) -> None:
    """An object of the same size with other bytes does not pass."""
    it = upload(weed, "replaced", 1 * MIB)
    await it.run()
    weed.admin.call("PUT", "dumps/replaced", bytes(it.stream().size))

    found = await verify_stored(find_stored(it.url, it.settings), it.net, full=False)

    assert not found.ok


async def test_existing_object_is_refused(server: S3Server) -> None:
    """An object that is there is kept, and the line says how to overwrite it."""
    it = upload(server, "exists", 1)
    await it.run()

    with pytest.raises(SinkError, match="s3://dumps/exists: exists; -f overwrites it"):
        await it.run()

    require_stored(server, it)


async def test_wrong_secret_is_one_line(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong credentials are said at once, without showing them, and nothing is left."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")

    with pytest.raises(SinkError, match=r"s3://dumps/wrong-secret: .*HTTP 403") as caught:
        await upload(server, "wrong-secret").run()

    assert "\n" not in str(caught.value)
    assert "not-the-secret" not in str(caught.value)
    assert server.admin.call("HEAD", "dumps/wrong-secret").status == 404


async def test_unknown_key_is_one_line(weed: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that the server does not know is named as the reason."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDOTHER")

    with pytest.raises(SinkError, match="the access key is not known there"):
        await upload(weed, "unknown-key").run()


async def test_missing_bucket_is_one_line(server: S3Server) -> None:
    """A bucket that is not there is said before anything is sent."""
    with pytest.raises(SinkError, match=r"s3://nothere/vmcore: .*no such bucket"):
        await Upload("s3://nothere/vmcore", server.admin.endpoint, 1).run()


@pytest.mark.parametrize(
    "faults",
    [
        Faults(reset_every=7 * MIB, refuse_s=0.2),
        Faults(http_fail_every=3, http_fail_burst=2),
        Faults(up=Line(stall_after=12 * MIB, stall_s=4)),
        Faults(up=Line(corrupt_at=13 * MIB)),
    ],
    ids=["reset", "busy", "stall", "corrupt"],
)
async def test_faults_on_the_way_are_borne(
    weed: S3Server, faults: Faults, request: pytest.FixtureRequest
) -> None:
    """Whatever the network does, the object is whole at the end."""
    it = upload(weed, f"faults-{request.node.callspec.id}")
    async with faulty_proxy(weed.port, faults) as proxy:
        sink = await through(proxy.port, it).run()

    assert sink.n_retries >= 1
    require_stored(weed, it)


async def test_lenient_server_cannot_store_damage(rclone: S3Server) -> None:
    """A server that checks nothing is checked by the ETag it answers with."""
    it = upload(rclone, "corrupt-lenient")
    async with faulty_proxy(rclone.port, Faults(up=Line(corrupt_at=13 * MIB))) as proxy:
        failure = None
        try:
            await through(proxy.port, it).run()
        except StageError as error:
            failure = str(error)
        assert proxy.seen.corrupted == 1
    if failure is None:
        require_stored(rclone, it)
    else:  # It sometimes refuses to take a part twice; then an honest error is all there is.
        assert "already been streamed" in failure
        assert rclone.admin.call("HEAD", "dumps/corrupt-lenient").status == 404


async def test_server_restart_is_borne(tmp_path: Path) -> None:
    """A server that goes away for seconds in the middle does not cost the dump."""
    with seaweedfs(tmp_path) as server:
        it = upload(server, "restart", 150 * MIB)
        async with faulty_proxy(server.port, Faults(up=Line(rate=40e6))) as proxy:
            async with anyio.create_task_group() as group:
                group.start_soon(through(proxy.port, it).run)
                await anyio.sleep(1.5)
                await anyio.to_thread.run_sync(server.process.stop)
                await anyio.sleep(1)
                await anyio.to_thread.run_sync(server.process.start)
            assert proxy.seen.up_bytes > it.stream().size
        require_stored(server, it)


async def test_killed_upload_is_resumed(weed: S3Server, tmp_path: Path) -> None:
    """After kill -9, only what is missing is sent, and the object is whole."""
    it = upload(weed, "killed", 150 * MIB)
    path = run_and_kill(it, tmp_path, 6)
    n_before = path.read_text().count('"kind":"part"')
    async with faulty_proxy(weed.port) as proxy:
        await through(proxy.port, it).run(Journal.open(path))
        sent = proxy.seen.up_bytes

    require_stored(weed, it)
    assert sent <= it.stream().size - (n_before - 1) * 5 * MIB + 1 * MIB
    assert not path.exists()


async def test_cancelled_upload_leaves_nothing(weed: S3Server) -> None:
    """An upload that is cancelled in the middle has neither object nor parts."""
    it = upload(weed, "cancelled", 200 * MIB)
    async with faulty_proxy(weed.port, Faults(up=Line(rate=40e6))) as proxy:
        with anyio.move_on_after(1.5):
            await through(proxy.port, it).run()

    assert weed.admin.call("HEAD", "dumps/cancelled").status == 404
    assert b"<UploadId>" not in weed.admin.call("GET", "dumps", uploads="").body


async def test_cancelled_upload_with_a_journal_can_be_resumed(
    weed: S3Server, tmp_path: Path
) -> None:
    """The same with a journal: the parts wait for the next process."""
    it = upload(weed, "resumed", 120 * MIB)
    journal = new_journal(tmp_path, it)
    async with faulty_proxy(weed.port, Faults(up=Line(rate=40e6))) as proxy:
        with anyio.move_on_after(1.8):
            await through(proxy.port, it).run(journal)
    assert b"<UploadId>" in weed.admin.call("GET", "dumps", uploads="").body

    await it.run(Journal.open(journal.path))

    require_stored(weed, it)


async def test_presigned_urls_need_no_key(
    weed: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a document of presigned URLs the machine that dumps has no credentials at all."""
    document = tmp_path / "urls.json"
    document.write_text(json.dumps(presigned(weed, "host/presigned", n_parts=12)))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    it = upload(weed, "host/presigned")

    await replace(it, s3=(("presigned", str(document)),)).run()

    require_stored(weed, it)


async def test_presigned_upload_that_fails_is_aborted(weed: S3Server, tmp_path: Path) -> None:
    """More data than there are URLs: one line, no object, no parts left, no URL shown."""
    document = tmp_path / "urls.json"
    document.write_text(json.dumps(presigned(weed, "host/too-few", n_parts=3)))
    it = replace(upload(weed, "host/too-few"), s3=(("presigned", str(document)),))

    with pytest.raises(StageError, match="does not fit into 3 parts") as caught:
        await it.run()

    assert "X-Amz-Signature" not in str(caught.value)
    assert weed.admin.call("HEAD", "dumps/host/too-few").status == 404
    assert b"<UploadId>" not in weed.admin.call("GET", "dumps", uploads="").body


def presigned(server: S3Server, key: str, n_parts: int) -> dict[str, object]:
    """What whoever has the key hands over."""
    path = f"dumps/{key}"
    body = server.admin.call("POST", path, uploads="").body.decode()
    upload_id = body.partition("<UploadId>")[2].partition("</UploadId>")[0]
    sign = server.admin.presign
    return {
        "parts": [
            sign("PUT", path, partNumber=str(number), uploadId=upload_id)
            for number in range(1, n_parts + 1)
        ],
        "part_size": 5 * MIB,
        "complete": sign("POST", path, uploadId=upload_id),
        "abort": sign("DELETE", path, uploadId=upload_id),
        "list": sign("GET", path, uploadId=upload_id),
        "head": sign("HEAD", path),
        "manifest": sign("PUT", f"{path}.manifest.json"),
    }


async def test_limited_far_link_is_used(weed: S3Server) -> None:
    """50 ms away and 20 MB/s: at least 85 % of the link carries parts."""
    it = upload(weed, "far", 100 * MIB)
    async with faulty_proxy(weed.port, Faults(Line(0.025, 20e6), Line(0.025))) as proxy:
        started = time.monotonic()
        await through(proxy.port, it).run()
        seconds = time.monotonic() - started

    assert it.stream().size / 20e6 / seconds >= 0.85


async def test_rate_limit_is_kept(weed: S3Server) -> None:
    """The setting bounds all connections together."""
    net = replace_struct(NET, rate_limit=20_000_000)
    it = replace(upload(weed, "slow", 40 * MIB), net=net)
    started = time.monotonic()

    await it.run()

    assert it.stream().size / (time.monotonic() - started) <= 20_000_000 * 1.1


def test_memory_is_bounded(weed: S3Server, tmp_path: Path) -> None:
    """Sending far more than the buffers hold takes no more memory than the buffers."""
    it = upload(weed, "memory", 500 * MIB)
    program = f"""
import anyio
from tests.lab.net.uploads import Upload
anyio.run(Upload({it.url!r}, {it.endpoint!r}, {it.data_bytes}).run)
print(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
"""
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )

    # The interpreter with numpy and all, 48 MiB of parts, 6 MiB of chunks.
    assert int(said.stdout) <= 130 * 1024
