"""A dump that is an S3 object."""

from __future__ import annotations

from stages.sink.manifest import SUFFIX
from stages.sink.s3_errors import refusal
from stages.sink.s3_requests import S3Requests
from stages.sink.stored import Looks, ranged_body

_CHECKSUMS = ("sha256", "crc32c")


class S3Stored:
    """StoredDump; the composite checksum, where the server keeps one, tells of every byte."""

    def __init__(self, requests: S3Requests) -> None:
        self.target = requests.target
        self._requests = requests

    async def look(self) -> Looks | None:
        await self._requests.open()
        answer = await self._requests.find({"x-amz-checksum-mode": "ENABLED"})
        if answer.status == 404:
            return None
        size = answer.headers.get("content-length", "")
        if not answer.is_good or not size.isdigit():
            raise refusal(self.target, "look for the object", answer)
        marks = {"etag": answer.headers.get("etag", "").strip('"')}
        for name in _CHECKSUMS:
            value = answer.headers.get(f"x-amz-checksum-{name}")
            if value is not None:
                marks[name] = value
        return Looks(int(size), marks)

    async def read(self, offset: int, length: int) -> bytes:
        headers = {"range": f"bytes={offset}-{offset + length - 1}"}
        answer = await self._requests.call("GET", headers=headers)
        if answer.status == 416:
            return b""
        if not answer.is_good:
            raise refusal(self.target, "read the object", answer)
        return ranged_body(self.target, answer, offset, length)

    async def read_manifest(self) -> bytes | None:
        answer = await self._requests.call("GET", suffix=SUFFIX)
        if answer.status == 404:
            return None
        if not answer.is_good:
            raise refusal(self.target, "read the manifest", answer)
        return answer.body

    async def close(self) -> None:
        await self._requests.close()
