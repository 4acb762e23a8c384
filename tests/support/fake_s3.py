"""S3's multipart protocol in memory, strict, failing on request; real servers are in the lab."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anyio

from stages.sink.digest import crc32c
from tests.support.web_server import HangUpError, Request, Response

LEAST_PART = 5 << 20


def error(status: int, code: str, message: str = "so it is", **headers: str) -> Response:
    """An S3 error document."""
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Response(status, text.encode(), headers)


@dataclass
class Upload:
    key: str
    headers: dict[str, str]
    parts: dict[int, bytes] = field(default_factory=dict)


@dataclass
class Stored:
    data: bytes
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class FakeS3:
    """One bucket, path style.

    Attributes:
        fault: asked before each request; an answer from it takes the real one's place.
        after: asked after each request was served; may hang up, so that the answer is lost.
        page_size: of ListParts.
        n_requests: by what was asked, such as ``PUT part``.
    """

    bucket: str = "dumps"
    page_size: int = 1000
    fault: Callable[[str, Request], Response | None] = lambda _what, _request: None
    after: Callable[[str, Request], None] = lambda _what, _request: None
    objects: dict[str, Stored] = field(default_factory=dict)
    uploads: dict[str, Upload] = field(default_factory=dict)
    n_requests: dict[str, int] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    _stored_one: anyio.Event = field(default_factory=anyio.Event)

    def wait_for_parts(self, n_parts: int) -> Callable[[], Awaitable[None]]:
        """A function that returns when an upload has that many parts and has been told so."""

        async def wait() -> None:
            while not any(len(upload.parts) >= n_parts for upload in self.uploads.values()):
                await self._stored_one.wait()
            await anyio.wait_all_tasks_blocked()

        return wait

    async def __call__(self, request: Request) -> Response:
        """A `Handler` for `web_server`."""
        what = _kind(request)
        self.n_requests[what] = self.n_requests.get(what, 0) + 1
        self.requests.append(request)
        response = self.fault(what, request) or self._serve(what, request)
        self.after(what, request)
        return response

    def _serve(self, what: str, request: Request) -> Response:
        bucket, _, key = request.path.removeprefix("/").partition("/")
        if bucket != self.bucket:
            return error(404, "NoSuchBucket")
        if hashlib.sha256(request.body).hexdigest() != request.headers.get("x-amz-content-sha256"):
            return error(400, "XAmzContentSHA256Mismatch")
        match what:
            case "HEAD" | "GET":
                return self._get(key, request.headers.get("range", ""))
            case "PUT":
                self.objects[key] = Stored(request.body)
                return Response(headers={"etag": '"x"'})
            case "DELETE":
                self.objects.pop(key, None)
                return Response(204)
            case "begin":
                return self._begin(key, request)
        upload = self.uploads.get(request.query["uploadId"])
        if upload is None or upload.key != key:
            return error(404, "NoSuchUpload")
        match what:
            case "PUT part":
                return self._put_part(upload, request)
            case "list":
                return self._list(upload, request)
            case "complete":
                return self._complete(upload, request)
            case "abort":
                del self.uploads[request.query["uploadId"]]
                return Response(204)
        raise HangUpError

    def _get(self, key: str, span: str) -> Response:
        stored = self.objects.get(key)
        if stored is None:
            return error(404, "NoSuchKey")
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", span)
        if wanted is not None:
            first, last = (int(text) for text in wanted.groups())
            data = stored.data[first : last + 1]
            place = f"bytes {first}-{first + len(data) - 1}/{len(stored.data)}"
            return Response(206, data, {"content-range": place})
        return Response(
            200, stored.data, {"content-length": str(len(stored.data))} | stored.headers
        )

    def _begin(self, key: str, request: Request) -> Response:
        name = f"upload-{len(self.uploads) + 1}"
        self.uploads[name] = Upload(key, request.headers)
        text = f"<InitiateMultipartUploadResult><UploadId>{name}</UploadId>"
        return Response(200, f"{text}</InitiateMultipartUploadResult>".encode())

    def _put_part(self, upload: Upload, request: Request) -> Response:
        headers = {"etag": _etag(request.body)}
        for name, digest in _checksums(request.body).items():
            given = request.headers.get(name)
            if given is not None and given != digest:
                return error(400, "BadDigest")
            headers |= {name: digest} if given else {}
        upload.parts[int(request.query["partNumber"])] = request.body
        self._stored_one.set()
        self._stored_one = anyio.Event()
        return Response(200, b"", headers)

    def _list(self, upload: Upload, request: Request) -> Response:
        after = int(request.query.get("part-number-marker", "0"))
        numbers = sorted(number for number in upload.parts if number > after)
        page = numbers[: self.page_size]
        text = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{_etag(upload.parts[number])}</ETag>"
            f"<Size>{len(upload.parts[number])}</Size></Part>"
            for number in page
        )
        if len(page) < len(numbers):
            text += "<IsTruncated>true</IsTruncated>"
            text += f"<NextPartNumberMarker>{page[-1]}</NextPartNumberMarker>"
        return Response(200, f"<ListPartsResult>{text}</ListPartsResult>".encode())

    def _complete(self, upload: Upload, request: Request) -> Response:
        if request.headers.get("if-none-match") == "*" and upload.key in self.objects:
            return error(412, "PreconditionFailed")
        listed = re.findall(
            r"<Part><PartNumber>(\d+)</PartNumber><ETag>(.*?)</ETag>", request.body.decode()
        )
        numbers = [int(number) for number, _ in listed]
        if numbers != list(range(1, len(numbers) + 1)):
            return error(400, "InvalidPartOrder")
        for number, etag in listed:
            data = upload.parts.get(int(number))
            if data is None or etag.replace("&quot;", '"') != _etag(data):
                return error(400, "InvalidPart")
            if len(data) < LEAST_PART and int(number) != numbers[-1]:
                return error(400, "EntityTooSmall")
        whole = b"".join(upload.parts[number] for number in numbers)
        named = {key: each for key, each in upload.headers.items() if key.startswith("x-amz-meta-")}
        composite = _composite([upload.parts[number] for number in numbers])
        self.objects[upload.key] = Stored(whole, named | {"x-amz-checksum-sha256": composite})
        del self.uploads[request.query["uploadId"]]
        text = f"<ChecksumSHA256>{composite}</ChecksumSHA256>"
        return Response(
            200, f"<CompleteMultipartUploadResult>{text}</CompleteMultipartUploadResult>".encode()
        )


def _kind(request: Request) -> str:
    query = request.query
    if "uploads" in query:
        return "begin"
    if "uploadId" not in query:
        return request.method
    return {"PUT": "PUT part", "GET": "list", "POST": "complete", "DELETE": "abort"}[request.method]


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


def _checksums(data: bytes) -> dict[str, str]:
    return {
        "x-amz-checksum-sha256": base64.b64encode(hashlib.sha256(data).digest()).decode(),
        "x-amz-checksum-crc32c": base64.b64encode(crc32c(data).to_bytes(4, "big")).decode(),
    }


def _composite(parts: list[bytes]) -> str:
    digests = b"".join(hashlib.sha256(part).digest() for part in parts)
    return f"{base64.b64encode(hashlib.sha256(digests).digest()).decode()}-{len(parts)}"
