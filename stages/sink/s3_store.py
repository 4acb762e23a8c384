"""An S3 multipart upload as a `PartStore`.

References: AWS "Amazon S3 API Reference" (CreateMultipartUpload, UploadPart, ListParts,
CompleteMultipartUpload, AbortMultipartUpload, HeadObject) and "Checking object integrity".

Every request is signed with the SHA-256 of its body, so a server refuses any byte that differs,
over plain http as well. The checksum of `S3Settings.checksum` is stored with each part besides: the
object then has a composite checksum, the digest over the parts' digests, which `verify` compares
without downloading anything.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio.to_thread

from pipeline.errors import SinkError
from stages.sink.digest import crc32c
from stages.sink.manifest import SUFFIX
from stages.sink.part_store import Seal, SentPart, UploadGoneError
from stages.sink.parts import Part, PartLimits
from stages.sink.retry import TransientError
from stages.sink.s3_errors import S3RefusedError, refusal
from stages.sink.s3_requests import S3Requests
from stages.sink.s3_xml import (
    Checksum,
    CompletedPart,
    complete_document,
    is_error,
    parse_composite,
    parse_parts,
    parse_upload_id,
)

if TYPE_CHECKING:
    from pipeline.config.targets import S3Settings
    from stages.sink.web_client import Answer

_MIB: Final = 1 << 20
LIMITS: Final = PartLimits(least_bytes=5 * _MIB, most_bytes=5 << 30, most_parts=10_000)
_RUN_KEY: Final = "x-amz-meta-dumpstream-run"
_MAX_PAGES: Final = 64
"""Of ListParts; 10,000 parts are 10 pages."""
_COMPLETE_PATIENCE_S: Final = 600.0
"""A server may put thousands of parts together before it answers."""


class S3Store:
    """PartStore for one object of a bucket."""

    limits = LIMITS

    def __init__(self, requests: S3Requests, settings: S3Settings) -> None:
        self.target = requests.target
        self._requests = requests
        self._settings = settings
        self._upload_id = ""
        self._run = secrets.token_hex(8)
        self._overwrite = False
        self._put_a_manifest = False
        self._doubt: S3RefusedError | None = None

    @property
    def _checksum(self) -> Checksum:
        return self._settings.checksum

    async def open(self, *, overwrite: bool) -> None:
        self._overwrite = overwrite
        await self._requests.open()
        answer = await self._requests.find()
        if answer.is_good and not overwrite:
            raise SinkError(f"{self.target}: exists; -f overwrites it")
        # Without the right to read, 403 says nothing about the right to write: `begin` will tell.
        if not answer.is_good and answer.status not in (403, 404):
            raise refusal(self.target, "look for the object", answer)

    async def begin(self) -> str:
        headers = {"content-type": "application/octet-stream", _RUN_KEY: self._run}
        if self._checksum != "none":
            headers["x-amz-checksum-algorithm"] = self._checksum.upper()
            headers["x-amz-checksum-type"] = "COMPOSITE"
        headers |= self._storage_headers()
        answer = await self._requests.good("begin the upload", "POST", {"uploads": ""}, headers)
        self._upload_id = parse_upload_id(answer.body)
        return f"{self._run}:{self._upload_id}"

    def _storage_headers(self) -> dict[str, str]:
        wanted = {
            "x-amz-server-side-encryption": self._settings.server_side_encryption,
            "x-amz-server-side-encryption-aws-kms-key-id": self._settings.kms_key_id,
            "x-amz-storage-class": self._settings.storage_class,
        }
        return {name: value for name, value in wanted.items() if value}

    async def resume(self, upload_id: str) -> Mapping[int, str] | None:
        run, _, self._upload_id = upload_id.partition(":")
        tags: dict[int, str] = {}
        marker = 0
        for _ in range(_MAX_PAGES):
            query = {"max-parts": "1000", "part-number-marker": str(marker)}
            try:
                answer = await self._requests.good(
                    "list the parts", "GET", {**query, "uploadId": self._upload_id}
                )
            except S3RefusedError as error:
                if error.code == "NoSuchUpload":
                    raise UploadGoneError(str(error)) from error
                raise
            page = parse_parts(answer.body)
            tags |= {part.number: part.etag for part in page.parts}
            if page.next_marker is None:
                self._run = run
                return tags
            if page.next_marker <= marker:
                break
            marker = page.next_marker
        raise SinkError(f"{self.target}: the list of parts has no end")

    def seal(self, data: memoryview) -> Seal:
        sha256 = hashlib.sha256(data).digest()
        match self._checksum:
            case "sha256":
                return Seal(sha256, _base64(sha256))
            case "crc32c":
                return Seal(sha256, _base64(crc32c(data).to_bytes(4, "big")))
            case "none":
                return Seal(sha256, "")

    async def put_part(self, part: Part, data: memoryview, seal: Seal) -> str:
        what = f"part {part.number}"
        headers = {}
        if seal.check:
            headers[f"x-amz-checksum-{self._checksum}"] = seal.check
        answer = await self._requests.good(
            what,
            "PUT",
            {"partNumber": str(part.number), "uploadId": self._upload_id},
            headers,
            data,
            sha256=seal.sha256.hex(),
        )
        etag = answer.headers.get("etag", "")
        if not etag:
            raise SinkError(f"{self.target}: {what}: the server gave no ETag")
        stored = answer.headers.get(f"x-amz-checksum-{self._checksum}")
        if stored is None and seal.check:
            # The server ignores checksums, perhaps the signed one as well: its ETag is left.
            await check_md5_tag(self.target, what, etag, data)
        elif stored is not None and stored != seal.check:
            raise TransientError(f"{self.target}: {what}: stored with checksum {stored}")
        return etag

    def marks(self, parts: Sequence[SentPart]) -> Mapping[str, str]:
        found: dict[str, str] = {}
        if self._checksum != "none":
            found[self._checksum] = composite_checksum([one.seal.check for one in parts])
        found["etag"] = multipart_etag([one.tag for one in parts])
        return {name: value for name, value in found.items() if value}

    async def put_manifest(self, data: bytes) -> None:
        self._put_a_manifest = True
        await self._requests.good(
            "store the manifest",
            "PUT",
            {},
            {"content-type": "application/json", **self._storage_headers()},
            data,
            sha256=hashlib.sha256(data).hexdigest(),
            suffix=SUFFIX,
        )

    async def complete(self, parts: Sequence[SentPart]) -> None:
        completed = [CompletedPart(one.part.number, one.tag, one.seal.check) for one in parts]
        body = complete_document(completed, self._checksum)
        headers = {"content-type": "application/xml"}
        if not self._overwrite:
            headers["if-none-match"] = "*"
        what = "complete the upload"
        try:
            answer = await self._requests.good(
                what,
                "POST",
                {"uploadId": self._upload_id},
                headers,
                body,
                sha256=hashlib.sha256(body).hexdigest(),
                patience_s=_COMPLETE_PATIENCE_S,
            )
        except S3RefusedError as error:
            if error.code != "NoSuchUpload" and error.status != 412:
                raise
            # An earlier attempt may have succeeded although its answer was lost: `confirm` looks.
            self._doubt = error
            return
        if is_error(answer.body):
            raise refusal(self.target, what, answer)
        self._check_composite(answer, parts)

    async def confirm(self, parts: Sequence[SentPart]) -> None:
        size = sum(sent.part.n_bytes for sent in parts)
        head = await self._requests.good("look for the object", "HEAD")
        if self._doubt is not None and head.headers.get(_RUN_KEY) != self._run:
            if self._doubt.status == 412:
                problem = f"{self.target}: exists since the upload began; -f overwrites it"
                raise SinkError(problem) from self._doubt
            raise self._doubt
        if head.headers.get("content-length") != str(size):
            seen = head.headers.get("content-length")
            raise SinkError(f"{self.target}: {seen} bytes are stored, {size} were sent")

    def _check_composite(self, answer: Answer, parts: Sequence[SentPart]) -> None:
        seen = parse_composite(answer.body, self._checksum)
        wanted = composite_checksum([one.seal.check for one in parts])
        # Some servers leave the number of parts out.
        if seen and seen.partition("-")[0] != wanted.partition("-")[0]:
            raise SinkError(f"{self.target}: stored with checksum {seen}, sent with {wanted}")

    async def abort(self) -> None:
        if self._put_a_manifest and not (await self._requests.call("HEAD")).is_good:
            await self._requests.call("DELETE", suffix=SUFFIX)
        if self._upload_id:
            answer = await self._requests.call("DELETE", {"uploadId": self._upload_id})
            if not answer.is_good and answer.status != 404:
                raise refusal(self.target, "abort the upload", answer)

    async def close(self) -> None:
        await self._requests.close()


async def check_md5_tag(target: str, what: str, etag: str, data: memoryview) -> None:
    """See that a part's ETag is the MD5 of `data`, which it is without server-side keys.

    Raises:
        TransientError: it is the MD5 of something else.
    """
    seen = etag.strip('"').lower()
    if not re.fullmatch("[0-9a-f]{32}", seen):
        return
    digest = await anyio.to_thread.run_sync(partial(hashlib.md5, data, usedforsecurity=False))
    if digest.hexdigest() != seen:
        raise TransientError(f"{target}: {what}: stored with MD5 {seen}")


def multipart_etag(tags: Sequence[str]) -> str:
    """What most servers call the object: the MD5 over the parts' MD5s, and their number."""
    plain = [tag.strip('"').lower() for tag in tags]
    if not plain or not all(re.fullmatch("[0-9a-f]{32}", tag) for tag in plain):
        return ""
    digest = hashlib.md5(bytes.fromhex("".join(plain)), usedforsecurity=False)
    return f"{digest.hexdigest()}-{len(plain)}"


def composite_checksum(checks: Sequence[str]) -> str:
    """What S3 calls the object's checksum: that of the parts' own, in base64, and their number."""
    if not checks or not all(checks):
        return ""
    digests = b"".join(base64.b64decode(check) for check in checks)
    is_crc = len(digests) == 4 * len(checks)
    whole = crc32c(digests).to_bytes(4, "big") if is_crc else hashlib.sha256(digests).digest()
    return f"{_base64(whole)}-{len(checks)}"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
