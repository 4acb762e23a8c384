"""The S3 sink against a strict fake that fails on request; lab tests use real servers."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from pipeline.config.settings import Settings
from pipeline.config.targets import NetSettings, S3Settings
from pipeline.errors import SinkError, StageError, UsageError
from stages.sink.journal import Journal, identify_source
from stages.sink.manifest import DumpFacts, parse_manifest
from stages.sink.measure import measure_target
from stages.sink.parts_sink import PartsOptions, PartsSink
from stages.sink.s3 import make_store
from stages.sink.s3_location import S3Name, find_place, parse_s3_url
from stages.sink.s3_store import composite_checksum
from tests.support.chunk_stream import ChunkStream, send
from tests.support.fake_s3 import FakeS3, Stored, error
from tests.support.web_server import HangUpError, Request, Response, web_server

MIB = 1 << 20
NET = NetSettings(retry_first_s=0.001, retry_most_s=0.01, retry_deadline_s=5, stall_timeout_s=5)


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDTEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-show-this")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")


def stream(data_bytes: int = 22 * MIB, **more: Any) -> ChunkStream:
    return ChunkStream(data_bytes, low_bytes=300_000, chunk_bytes=1 * MIB, **more)


class Rig:
    """A fake server and sinks for it."""

    def __init__(self, endpoint: str, server: FakeS3) -> None:
        self.endpoint = endpoint
        self.server = server

    def sink(
        self,
        key: str = "host/vmcore",
        *,
        net: NetSettings = NET,
        overwrite: bool = False,
        journal: Journal | None = None,
        **s3: str,
    ) -> PartsSink:
        settings = S3Settings(endpoint=self.endpoint, **s3)  # type: ignore[arg-type]
        options = PartsOptions("vmcore", None, settings.buffer_bytes, overwrite)
        return PartsSink(make_store(S3Name("dumps", key), settings, net), options, net, journal)

    def stored(self, key: str = "host/vmcore") -> bytes:
        return self.server.objects[key].data


@asynccontextmanager
async def rig(
    fault: Callable[[str, Request], Response | None] | None = None,
    after: Callable[[str, Request], None] | None = None,
) -> AsyncIterator[Rig]:
    server = FakeS3()
    server.fault = fault or server.fault
    server.after = after or server.after
    async with web_server(server) as endpoint:
        yield Rig(endpoint, server)


@pytest.mark.parametrize("checksum", ["sha256", "crc32c", "none"])
@pytest.mark.parametrize("data_bytes", [1, 3 * MIB, 22 * MIB])
async def test_object_is_the_dump(checksum: str, data_bytes: int) -> None:
    """What is stored equals the dump, in one part or several, and nothing stays half done."""
    the_stream = stream(data_bytes)
    async with rig() as it:
        receipt = await send(the_stream, it.sink(checksum=checksum))

        assert it.stored() == the_stream.expected()
        assert receipt.n_bytes == the_stream.size
        assert receipt.target == "s3://dumps/host/vmcore"
        assert it.server.uploads == {}
    assert the_stream.slots.n_out == 0


async def test_manifest_lies_next_to_the_object() -> None:
    """Its digests are those of the stored object, and it says what the run told the sink."""
    async with rig() as it:
        sink = it.sink()
        sink.describe(DumpFacts(kernel_release="6.12.1"))
        await send(stream(), sink)

        manifest = parse_manifest(it.stored("host/vmcore.manifest.json"))
        data = it.stored()
    for piece in manifest.pieces():
        assert hashlib.sha256(data[piece.offset : piece.end]).digest() == piece.sha256
    assert manifest.size == len(data)
    assert manifest.facts.kernel_release == "6.12.1"


async def test_commit_is_the_last_thing() -> None:
    """Before `commit` there is no object, although every part is stored."""
    async with rig() as it:
        sink = it.sink()

        async def no_commit() -> None:
            assert it.server.objects == {}
            raise RuntimeError("crash before commit")

        sink.commit = no_commit  # type: ignore[method-assign]
        with pytest.raises(RuntimeError):
            await send(stream(), sink)

        assert it.server.objects == {}
        assert it.server.uploads == {}


async def test_part_one_goes_last() -> None:
    """The part with the head is ready last; those under way beside it may arrive after it."""
    async with rig() as it:
        await send(stream(), it.sink(net=NET))

        numbers = [
            int(request.query["partNumber"])
            for request in it.server.requests
            if "partNumber" in request.query
        ]
    assert sorted(numbers) == [1, 2, 3, 4, 5]
    assert numbers[0] != 1


async def test_existing_object_is_refused_at_once() -> None:
    """Without -f nothing is sent; with it the object is replaced."""
    async with rig() as it:
        it.server.objects["host/vmcore"] = Stored(b"precious")
        with pytest.raises(SinkError, match="s3://dumps/host/vmcore: exists; -f overwrites it"):
            await send(stream(), it.sink())
        assert it.stored() == b"precious"
        assert it.server.n_requests == {"HEAD": 1}

        await send(stream(), it.sink(overwrite=True))

        assert it.stored() == stream().expected()


async def test_object_that_appears_meanwhile_is_kept() -> None:
    """Another machine's dump under the same name survives the race, and our parts are gone."""
    async with rig() as it:
        sink = it.sink()
        await sink.open()
        it.server.objects["host/vmcore"] = Stored(b"precious")
        sink.open = anyio.lowlevel.checkpoint  # type: ignore[method-assign]
        with pytest.raises(SinkError, match="exists since the upload began"):
            await send(stream(), sink)

        assert it.stored() == b"precious"
        assert it.server.uploads == {}


async def test_busy_server_is_borne() -> None:
    """Bursts of 503 and hang-ups at every kind of request end in a whole object."""
    seen: dict[str, int] = {}

    def fault(what: str, _request: Request) -> Response | None:
        seen[what] = seen.get(what, 0) + 1
        if seen[what] % 3 == 1:
            return error(503, "SlowDown")
        if seen[what] % 3 == 2:
            raise HangUpError
        return None

    async with rig(fault) as it:
        sink = it.sink()
        await send(stream(), sink)

        assert it.stored() == stream().expected()
        assert sink.n_retries >= 10


async def test_lost_answers_are_borne() -> None:
    """Requests that were served although their answer was lost are not taken for failures."""
    lost: set[str] = set()

    def after(what: str, _request: Request) -> None:
        if what not in lost:
            lost.add(what)
            raise HangUpError

    async with rig(after=after) as it:
        await send(stream(), it.sink())

        assert lost >= {"HEAD", "begin", "PUT part", "complete", "PUT"}
        assert it.stored() == stream().expected()


async def test_error_inside_a_good_answer_is_seen() -> None:
    """Complete may answer 200 and then say that it failed: it is tried again."""
    failures = [error(200, "InternalError")]

    def fault(what: str, _request: Request) -> Response | None:
        return failures.pop() if what == "complete" and failures else None

    async with rig(fault) as it:
        await send(stream(), it.sink())

        assert it.stored() == stream().expected()
        assert it.server.n_requests["complete"] == 2


async def test_damage_on_the_way_is_sent_again() -> None:
    """A part whose bytes changed on the way is refused by the server and sent once more."""
    damaged: list[str] = []

    def fault(what: str, request: Request) -> Response | None:
        if what == "PUT part" and not damaged:
            damaged.append(request.query["partNumber"])
            request.body = bytes([request.body[0] ^ 1]) + request.body[1:]
        return None

    async with rig(fault) as it:
        sink = it.sink()
        await send(stream(), sink)

        assert damaged
        assert sink.n_retries == 1
        assert it.stored() == stream().expected()


async def test_lenient_server_is_caught_by_its_etag() -> None:
    """Where a server ignores all checksums, a wrong MD5 in the ETag still shows the damage."""
    answers = [Response(200, b"", {"etag": f'"{"0" * 32}"'})]

    def fault(what: str, _request: Request) -> Response | None:
        return answers.pop() if what == "PUT part" and answers else None

    async with rig(fault) as it:
        sink = it.sink()
        await send(stream(), sink)

        assert sink.n_retries == 1
        assert it.stored() == stream().expected()


async def test_deadline_ends_a_hopeless_upload() -> None:
    """A server that only fails ends the run in one line, and the parts are discarded."""

    def fault(what: str, _request: Request) -> Response | None:
        return error(500, "InternalError", "we are sorry") if what == "PUT part" else None

    net = NetSettings(retry_first_s=0.001, retry_most_s=0.01, retry_deadline_s=0.2)
    async with rig(fault) as it:
        with pytest.raises(StageError, match=r"part .*: InternalError: we are sorry") as caught:
            await send(stream(), it.sink(net=net))

        assert it.server.uploads == {}
        assert it.server.objects == {}
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (404, "NoSuchBucket", "there is no such bucket"),
        (403, "InvalidAccessKeyId", "the access key is not known there"),
        (403, "SignatureDoesNotMatch", "wrong secret key"),
        (400, "ExpiredToken", "the credentials have expired"),
        (403, "AccessDenied", "access denied"),
        (403, "RequestTimeTooSkewed", "clock"),
        (418, "", "refused"),
    ],
)
async def test_refusals_are_one_clear_line(status: int, code: str, said: str) -> None:
    """What is wrong is said at once, with the target, without secrets, and nothing is left."""

    def fault(what: str, _request: Request) -> Response | None:
        return error(status, code, "AWSSecretAccessKey=x") if what == "begin" else None

    async with rig(fault) as it:
        with pytest.raises(SinkError) as caught:
            await it.sink().open()

        assert it.server.uploads == {}
    message = str(caught.value)
    assert said in message
    assert message.startswith("s3://dumps/host/vmcore: begin the upload: ")
    assert "do-not-show" not in message
    assert "Secret" not in message


async def test_bucket_in_another_region_is_followed() -> None:
    """The server names the region; the request is signed for it without asking the user."""

    def fault(_what: str, request: Request) -> Response | None:
        if "/eu-north-1/s3/" in request.headers["authorization"]:
            return None
        return Response(301, b"", {"x-amz-bucket-region": "eu-north-1"})

    async with rig(fault) as it:
        await send(stream(), it.sink())

        assert it.stored() == stream().expected()


async def test_torn_stream_leaves_nothing() -> None:
    """When a stage before the sink stops early, parts are discarded and no object appears."""
    async with rig() as it:
        torn = stream(fail_at=15 * MIB, torn=True, before_failure=it.server.wait_for_parts(1))
        with pytest.raises(StageError, match="stopped before its end"):
            await send(torn, it.sink())

        assert it.server.uploads == {}
        assert it.server.objects == {}
        assert it.server.n_requests["PUT part"] == 2


async def test_slow_server_stops_the_source() -> None:
    """With a server that does not answer, the source is held by the buffers and gets no further."""
    the_stream = stream(200 * MIB)
    gate = anyio.Event()
    server = FakeS3()

    async def handler(request: Request) -> Response:
        if "partNumber" in request.query:
            await gate.wait()
        return await server(request)

    async with web_server(handler) as endpoint:
        sink = Rig(endpoint, server).sink()
        async with anyio.create_task_group() as group:
            group.start_soon(send, the_stream, sink)
            await anyio.sleep(1)
            # 4 parts under way, one open for the head, one that fills; slots and channel beside.
            held = (4 + 2) * 5 * MIB + 8 * MIB
            assert 20 * MIB <= the_stream.n_sent <= held
            group.cancel_scope.cancel()


async def test_paged_list_of_parts_is_read_to_its_end(tmp_path: Path) -> None:
    """Resuming an upload asks for every page of its parts."""
    image = tmp_path / "image"
    image.write_bytes(b"x" * 100)
    async with rig() as it:
        it.server.page_size = 1
        journal = await _interrupted(it, image)

        await send(stream(), it.sink(journal=Journal.open(journal.path)))

        assert it.server.n_requests["list"] >= 2
        assert it.stored() == stream().expected()


async def _interrupted(it: Rig, image: Path) -> Journal:
    """The journal of an upload that failed after some parts."""
    journal = Journal.create(
        image.parent,
        target="s3://dumps/host/vmcore",
        source=identify_source(str(image)),
        settings={},
    )
    failing = stream(fail_at=17 * MIB, before_failure=it.server.wait_for_parts(2))
    with pytest.raises(StageError, match="Input/output error"):
        await send(failing, it.sink(journal=journal))
    assert len(it.server.uploads) == 1
    return journal


async def test_resumed_upload_sends_only_what_is_missing(tmp_path: Path) -> None:
    """Parts of the first process are not sent again, and the object is whole."""
    image = tmp_path / "image"
    image.write_bytes(b"x" * 100)
    async with rig() as it:
        journal = await _interrupted(it, image)
        n_before = it.server.n_requests["PUT part"]
        assert n_before >= 2

        await send(stream(), it.sink(journal=Journal.open(journal.path)))

        assert it.server.n_requests["PUT part"] == 5
        assert it.server.n_requests["begin"] == 1
        assert it.stored() == stream().expected()
    assert not journal.path.exists()


async def test_resuming_with_another_dump_is_refused(tmp_path: Path) -> None:
    """Other contents than those sent before: no object is put together from two dumps."""
    image = tmp_path / "image"
    image.write_bytes(b"x" * 100)
    async with rig() as it:
        journal = await _interrupted(it, image)

        with pytest.raises(StageError, match="is not what was sent before"):
            await send(stream(seed=1), it.sink(journal=Journal.open(journal.path)))

        assert it.server.objects == {}
        assert journal.path.exists()


async def test_expired_upload_starts_over(tmp_path: Path) -> None:
    """When the service has dropped the parts, all are sent again."""
    image = tmp_path / "image"
    image.write_bytes(b"x" * 100)
    async with rig() as it:
        journal = await _interrupted(it, image)
        it.server.uploads.clear()

        await send(stream(), it.sink(journal=Journal.open(journal.path)))

        assert it.stored() == stream().expected()


async def test_secret_is_in_no_request_and_no_error() -> None:
    """The secret key signs; it is not sent, and the headers do not hold it."""
    async with rig() as it:
        await send(stream(1), it.sink())

        for request in it.server.requests:
            assert "do-not-show" not in repr(request.headers) + request.target


async def test_no_credentials_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any credentials the line says where they were looked for."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    async with rig() as it:
        with pytest.raises(SinkError, match="no credentials in the environment, the profile"):
            await it.sink().open()


async def test_unknown_profile_is_one_line() -> None:
    """A profile that does not exist is named."""
    async with rig() as it:
        with pytest.raises(SinkError, match="nobody"):
            await it.sink(profile="nobody").open()


async def test_closed_port_is_one_line() -> None:
    """A server that is not there is tried until the deadline, then named."""
    net = NetSettings(retry_first_s=0.001, retry_most_s=0.01, retry_deadline_s=0.1)
    async with rig() as it:
        pass
    with pytest.raises(SinkError, match=r"s3://dumps/host/vmcore: 127.0.0.1: .*refused"):
        await it.sink(net=net).open()


@pytest.mark.parametrize(
    "url",
    ["s3://", "s3:///key", "s3://b/key", "s3://bucket", "s3://bucket/", "s3://bucket/dir/"],
)
def test_url_without_an_object_is_refused(url: str) -> None:
    """A target names a bucket and a key."""
    with pytest.raises(UsageError, match="s3://"):
        parse_s3_url(url)


def test_key_in_the_url_is_refused_without_repeating_it() -> None:
    """Credentials in a URL are refused, and not shown again."""
    with pytest.raises(UsageError) as caught:
        parse_s3_url("s3://AKID:hunter2@bucket/key")

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "environ", "profile", "url"),
    [
        ({}, {}, {}, "https://bucket.s3.us-east-1.amazonaws.com/a%20b/c%2Bd"),
        ({"region": "cn-north-1"}, {}, {}, "https://bucket.s3.cn-north-1.amazonaws.com.cn/a%20b/c%2Bd"),
        ({}, {"AWS_REGION": "eu-west-1"}, {"region": "x"}, "https://bucket.s3.eu-west-1.amazonaws.com/a%20b/c%2Bd"),
        ({}, {}, {"region": "eu-west-2"}, "https://bucket.s3.eu-west-2.amazonaws.com/a%20b/c%2Bd"),
        ({"endpoint": "http://h:9/s3/"}, {}, {}, "http://h:9/s3/bucket/a%20b/c%2Bd"),
        ({}, {"AWS_ENDPOINT_URL_S3": "http://a", "AWS_ENDPOINT_URL": "http://b"}, {}, "http://a/bucket/a%20b/c%2Bd"),
        ({"path_style": False}, {}, {"endpoint_url": "https://h:9"}, "https://bucket.h:9/a%20b/c%2Bd"),
    ],
)  # fmt: skip
def test_place_of_an_object(
    settings: dict[str, str], environ: dict[str, str], profile: dict[str, str], url: str
) -> None:
    """Settings win over the environment, that over the profile; the key is encoded for signing."""
    place = find_place("bucket", S3Settings(**settings), environ, profile)  # type: ignore[arg-type]

    assert place.url("a b/c+d") == url


@pytest.mark.parametrize("endpoint", ["ftp://h", "h:9000", "https://u:p@h", "https://h?x=1"])
def test_wrong_endpoint_is_refused(endpoint: str) -> None:
    """An endpoint is a plain http or https URL."""
    with pytest.raises(UsageError, match=r"s3\.endpoint"):
        find_place("bucket", S3Settings(endpoint=endpoint), {}, {})


def test_composite_checksum_is_the_documented_one() -> None:
    """The worked example: the SHA-256 over the parts' binary SHA-256s, base64, and their number."""
    one = "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0="  # of "abc"
    assert composite_checksum([one]) == "T4tCwi3TcptRm6b2jS2nzFstYG0F2u1a1RKMwD5sY1g=-1"
    assert composite_checksum(["", one]) == ""


async def test_measuring_a_target_leaves_nothing() -> None:
    """`estimate` sends parts of an upload that it aborts: a speed, and no object."""
    async with rig() as it:
        settings = Settings(s3=S3Settings(endpoint=it.endpoint), net=NET)

        facts = await measure_target("s3://dumps/vmcore", settings)

        assert facts.bytes_per_s is not None
        assert facts.bytes_per_s > 1e6
        assert it.server.objects == {}
        assert it.server.uploads == {}
        assert it.server.n_requests["PUT part"] == 8
