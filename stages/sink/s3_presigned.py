"""An S3 multipart upload through presigned URLs: the machine that dumps needs no key.

Whoever has the key begins the upload, signs a URL for each step, and hands over a document::

    {"parts": ["https://...", ...],      one URL for UploadPart of each part, in order
     "part_size": 67108864,              bytes a part holds; parts * part_size bounds the dump
     "complete": "https://...",          CompleteMultipartUpload
     "abort": "https://...",             AbortMultipartUpload, optional
     "list": "https://...",              ListParts of up to 1000 parts, for resuming, optional
     "head": "https://...",              HeadObject, to look for the object, optional
     "manifest": "https://..."}          PutObject of KEY.manifest.json, optional

`parts` may instead be a template, ``"https://broker.example/part/{part}"``: a GET there answers
with the URL for that part as plain text, so that URLs can be signed when they are needed.

A presigned request carries only headers that were signed, so no checksum headers: damage on the way
is found by Content-MD5 and by the ETag that comes back.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import anyio.to_thread
import msgspec
from msgspec import Struct, field

from pipeline.errors import SinkError, UsageError
from stages.sink.part_store import Seal, SentPart, UploadGoneError
from stages.sink.parts import Part, PartLimits
from stages.sink.s3_errors import S3RefusedError, refusal
from stages.sink.s3_location import S3Name
from stages.sink.s3_store import LIMITS, check_md5_tag, multipart_etag
from stages.sink.s3_xml import CompletedPart, complete_document, is_error, parse_parts

if TYPE_CHECKING:
    from stages.sink.web_client import Answer, WebClient

_MAX_DOCUMENT: Final = 32 << 20
"""10,000 URLs of 2 KiB, and more."""
_MAX_URL: Final = 16 << 10
_PLACE: Final = "{part}"
_COMPLETE_PATIENCE_S: Final = 600.0


class Presigned(Struct, frozen=True, forbid_unknown_fields=True):
    """The document; see above."""

    parts: list[str] | str
    part_size: int
    complete: str
    abort: str | None = None
    list_parts: str | None = field(default=None, name="list")
    head: str | None = None
    manifest: str | None = None


class PresignedStore:
    """PartStore for one object, whose upload somebody else has begun."""

    def __init__(self, name: S3Name, document: str, client: WebClient) -> None:
        """`document`: the path of a file that holds it, or its URL; or the URL itself."""
        self.target = str(name)
        self._document_at = document
        self._client = client
        self._document: Presigned | None = None
        self._overwrite = False
        self.limits = LIMITS

    async def open(self, *, overwrite: bool) -> None:
        self._overwrite = overwrite
        document = self._document = self._parse(await self._load())
        n_parts = LIMITS.most_parts if isinstance(document.parts, str) else len(document.parts)
        self.limits = PartLimits(document.part_size, document.part_size, n_parts)
        if document.head is not None and not overwrite:
            answer = await self._client.call("HEAD", document.head, {})
            if answer.is_good:
                raise SinkError(f"{self.target}: exists; -f overwrites it")

    async def _load(self) -> bytes:
        at = self._document_at
        if "://" not in at:
            try:
                data = await anyio.to_thread.run_sync(_read_file, Path(at))
            except OSError as error:
                raise SinkError(f"{at}: {error.strerror or error}") from error
            at = data.strip().decode("ascii", "replace")
            if not _is_web(at):
                return data
        elif not _is_web(at) or "?" in at or "@" in at:
            # Settings are shown by `plan` and kept in manifests.
            raise UsageError("s3.presigned: a URL with a secret in it belongs in a file")
        answer = await self._client.call("GET", at, {"accept": "application/json"})
        if not answer.is_good:
            raise refusal(self.target, "get the presigned URLs", answer)
        return answer.body

    def _parse(self, data: bytes) -> Presigned:
        try:
            document = msgspec.json.decode(data, type=Presigned)
        except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as error:
            raise SinkError(f"{self.target}: presigned URLs: {error}") from error
        problem = _problem(document)
        if problem:
            raise SinkError(f"{self.target}: presigned URLs: {problem}")
        return document

    @property
    def _urls(self) -> Presigned:
        if self._document is None:
            raise SinkError(f"{self.target}: not open")
        return self._document

    async def begin(self) -> str:
        return "presigned"

    async def resume(self, upload_id: str) -> Mapping[int, str] | None:
        if self._urls.list_parts is None:
            return None
        try:
            answer = await self._good("list the parts", "GET", self._urls.list_parts)
        except S3RefusedError as error:
            if error.code == "NoSuchUpload":
                raise UploadGoneError(str(error)) from error
            raise
        return {part.number: part.etag for part in parse_parts(answer.body).parts}

    def seal(self, data: memoryview) -> Seal:
        md5 = hashlib.md5(data, usedforsecurity=False).digest()
        return Seal(hashlib.sha256(data).digest(), base64.b64encode(md5).decode())

    async def put_part(self, part: Part, data: memoryview, seal: Seal) -> str:
        what = f"part {part.number}"
        url = await self._part_url(part.number)
        answer = await self._good(what, "PUT", url, {"content-md5": seal.check}, data)
        etag = answer.headers.get("etag", "")
        if not etag:
            raise SinkError(f"{self.target}: {what}: the server gave no ETag")
        await check_md5_tag(self.target, what, etag, data)
        return etag

    async def _part_url(self, number: int) -> str:
        parts = self._urls.parts
        if not isinstance(parts, str):
            return parts[number - 1]
        what = f"get the URL of part {number}"
        answer = await self._good(what, "GET", parts.replace(_PLACE, str(number)))
        url = answer.body[:_MAX_URL].decode("ascii", "replace").strip()
        if not _is_web(url):
            raise SinkError(f"{self.target}: {what}: the answer is no URL")
        return url

    def marks(self, parts: Sequence[SentPart]) -> Mapping[str, str]:
        etag = multipart_etag([one.tag for one in parts])
        return {"etag": etag} if etag else {}

    async def put_manifest(self, data: bytes) -> None:
        if self._urls.manifest is not None:
            md5 = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
            headers = {"content-md5": md5}
            await self._good("store the manifest", "PUT", self._urls.manifest, headers, data)

    async def complete(self, parts: Sequence[SentPart]) -> None:
        completed = [CompletedPart(one.part.number, one.tag, "") for one in parts]
        body = complete_document(completed, "none")
        what = "complete the upload"
        try:
            answer = await self._good(
                what, "POST", self._urls.complete, {}, body, _COMPLETE_PATIENCE_S
            )
        except S3RefusedError as error:
            # An earlier attempt may have succeeded although its answer was lost: `confirm` looks.
            if error.code != "NoSuchUpload" or self._urls.head is None:
                raise
            return
        if is_error(answer.body):
            raise refusal(self.target, what, answer)

    async def confirm(self, parts: Sequence[SentPart]) -> None:
        if self._urls.head is None:
            return
        size = sum(sent.part.n_bytes for sent in parts)
        answer = await self._good("look for the object", "HEAD", self._urls.head)
        seen = answer.headers.get("content-length")
        if seen != str(size):
            raise SinkError(f"{self.target}: {seen} bytes are stored, {size} were sent")

    async def abort(self) -> None:
        if self._document is not None and self._document.abort is not None:
            await self._client.call("DELETE", self._document.abort, {})

    async def close(self) -> None:
        await self._client.close()

    async def _good(
        self,
        what: str,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | memoryview = b"",
        patience_s: float = 0,
    ) -> Answer:
        answer = await self._client.call(method, url, headers or {}, body, patience_s=patience_s)
        if not answer.is_good:
            raise refusal(self.target, what, answer)
        return answer


def _read_file(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MAX_DOCUMENT)


def _problem(document: Presigned) -> str:
    """What makes the document useless, without showing any URL; empty when nothing does."""
    if not LIMITS.least_bytes <= document.part_size <= LIMITS.most_bytes:
        return f"part_size is {document.part_size}, wanted 5 MiB to 5 GiB"
    if isinstance(document.parts, str):
        if _PLACE not in document.parts:
            return f"the template for parts lacks {_PLACE}"
        urls = [document.parts]
    elif not 1 <= len(document.parts) <= LIMITS.most_parts:
        return f"{len(document.parts)} parts, wanted 1 to {LIMITS.most_parts}"
    else:
        urls = list(document.parts)
    urls += [document.complete]
    others = (document.abort, document.list_parts, document.head, document.manifest)
    urls += [url for url in others if url is not None]
    return "" if all(_is_web(url) for url in urls) else "something that is no http or https URL"


def _is_web(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and url.isprintable()
    except ValueError:
        return False
