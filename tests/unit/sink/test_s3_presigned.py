"""Uploads with presigned URLs: no key here, no URL in any message."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pipeline.config.targets import NetSettings, S3Settings
from pipeline.errors import SinkError, StageError, UsageError
from stages.sink.journal import Journal, identify_source
from stages.sink.parts_sink import PartsOptions, PartsSink
from stages.sink.s3 import make_store
from stages.sink.s3_location import S3Name
from tests.support.chunk_stream import ChunkStream, send
from tests.support.fake_s3 import error
from tests.support.web_server import Request, Response, web_server

MIB = 1 << 20
NET = NetSettings(retry_first_s=0.001, retry_most_s=0.01, retry_deadline_s=2)
NAME = S3Name("dumps", "vmcore")


class Steps:
    """Serves each presigned step at a path of its own; the query is the secret."""

    def __init__(self) -> None:
        self.url = ""
        self.parts: dict[int, bytes] = {}
        self.asked: list[str] = []
        self.whole: bytes | None = None
        self.manifest: bytes | None = None
        self.damage = 0

    async def __call__(self, request: Request) -> Response:
        self.asked.append(f"{request.method} {request.path}")
        kind, _, number = request.path.strip("/").partition("/")
        if kind != "broker" and request.query.get("sig") != "hunter2":
            return error(403, "AccessDenied")
        match kind:
            case "broker":
                return Response(200, f" {self.url}/part/{number}?sig=hunter2\n".encode())
            case "part":
                return self._part(int(number), request)
            case "complete":
                self.whole = b"".join(self.parts[one] for one in sorted(self.parts))
                return Response(200, b"<CompleteMultipartUploadResult/>")
            case "head" if self.whole is not None:
                return Response(200, self.whole)
            case "manifest":
                self.manifest = request.body
                return Response()
            case "abort":
                self.parts.clear()
                return Response(204)
        return error(404, "NoSuchKey")

    def _part(self, number: int, request: Request) -> Response:
        body = request.body
        if self.damage:
            self.damage -= 1
            body = b"?" + body[1:]
        self.parts[number] = body
        return Response(200, b"", {"etag": f'"{hashlib.md5(body).hexdigest()}"'})

    def document(self, **changes: object) -> bytes:
        steps = ("complete", "abort", "head", "manifest")
        urls = {step: f"{self.url}/{step}?sig=hunter2" for step in steps}
        parts = [f"{self.url}/part/{number}?sig=hunter2" for number in range(1, 6)]
        whole = {"parts": parts, "part_size": 5 * MIB, **urls} | changes
        return json.dumps({key: one for key, one in whole.items() if one is not None}).encode()


@asynccontextmanager
async def steps() -> AsyncIterator[Steps]:
    it = Steps()
    async with web_server(it) as url:
        it.url = url
        yield it


def stream() -> ChunkStream:
    return ChunkStream(22 * MIB, low_bytes=300_000, chunk_bytes=1 * MIB)


def sink(presigned: str, journal: Journal | None = None) -> PartsSink:
    store = make_store(NAME, S3Settings(presigned=presigned), NET)
    return PartsSink(store, PartsOptions("vmcore", None, 48 * MIB, overwrite=False), NET, journal)


def written(folder: Path, data: bytes) -> str:
    path = folder / "urls"
    path.write_bytes(data)
    return str(path)


async def test_urls_from_a_file(tmp_path: Path) -> None:
    """Every step by its own URL makes the object and its manifest, without any credentials."""
    async with steps() as it:
        await send(stream(), sink(written(tmp_path, it.document())))

        assert it.whole == stream().expected()
        assert it.manifest is not None


async def test_urls_from_a_broker(tmp_path: Path) -> None:
    """With a template each part's URL is asked for when it is needed."""
    async with steps() as it:
        document = it.document(parts=f"{it.url}/broker/{{part}}")
        await send(stream(), sink(written(tmp_path, document)))

        assert it.whole == stream().expected()
        assert sum(one.startswith("GET /broker/") for one in it.asked) == 5


async def test_document_by_url(tmp_path: Path) -> None:
    """The document may lie on a server; a URL with a secret stands in a file."""
    async with steps() as it:

        async def handler(request: Request) -> Response:
            return Response(200, it.document())

        async with web_server(handler) as where:
            await send(stream(), sink(f"{where}/urls.json"))
            it.whole = None
            await send(stream(), sink(written(tmp_path, f"{where}/u?token=x\n".encode())))

        assert it.whole == stream().expected()


async def test_secret_in_the_setting_is_refused() -> None:
    """Settings are shown and stored, so a URL with a query or a user is not taken from them."""
    for url in ("https://h/urls?token=hunter2", "https://me:hunter2@h/urls"):
        with pytest.raises(UsageError, match="belongs in a file") as caught:
            await sink(url).open()
        assert "hunter2" not in str(caught.value)


async def test_damaged_part_is_sent_again(tmp_path: Path) -> None:
    """No checksum can be signed beforehand, so the ETag that comes back is compared."""
    async with steps() as it:
        it.damage = 1
        the_sink = sink(written(tmp_path, it.document()))
        await send(stream(), the_sink)

        assert the_sink.n_retries == 1
        assert it.whole == stream().expected()


async def test_expired_urls_are_one_line(tmp_path: Path) -> None:
    """A URL that is no longer valid fails the part, is not shown, and the upload is aborted."""
    async with steps() as it:
        expired = it.document(parts=[f"{it.url}/part/{one}?sig=old-hunter" for one in range(1, 6)])
        with pytest.raises(StageError, match=r"part .: access denied") as caught:
            await send(stream(), sink(written(tmp_path, expired)))

        assert "DELETE /abort" in it.asked
    assert "sig=" not in str(caught.value)


async def test_journal_resumes_without_a_list(tmp_path: Path) -> None:
    """Where parts cannot be listed, those in the journal count as stored."""
    (tmp_path / "image").write_bytes(b"x")
    source = identify_source(str(tmp_path / "image"))
    journal = Journal.create(tmp_path, target=str(NAME), source=source, settings={})
    async with steps() as it:
        presigned = written(tmp_path, it.document(complete=f"{it.url}/complete?sig=wrong"))
        with pytest.raises(SinkError, match="complete the upload: access denied"):
            await send(stream(), sink(presigned, journal))
        asked = len(it.asked)

        presigned = written(tmp_path, it.document())
        await send(stream(), sink(presigned, Journal.open(journal.path)))

        assert not any(one.startswith("PUT /part/") for one in it.asked[asked:])
        assert it.whole == stream().expected()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"part_size": 1000}, "part_size is 1000"),
        ({"parts": []}, "0 parts"),
        ({"parts": "https://h/x"}, "lacks {part}"),
        ({"parts": ["ftp://h/hunter2"]}, "no http or https URL"),
        ({"complete": None}, "complete"),
        ({"typo": 1}, "typo"),
    ],
)
async def test_useless_document_is_one_line(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    """What is wrong with the document is said without showing any URL of it."""
    it = Steps()
    it.url = "https://h"
    with pytest.raises(SinkError) as caught:
        await sink(written(tmp_path, it.document(**changes))).open()

    assert said in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_missing_document_is_one_line(tmp_path: Path) -> None:
    """A file that is not there is named."""
    with pytest.raises(SinkError, match="nowhere: No such file"):
        await sink(str(tmp_path / "nowhere")).open()
