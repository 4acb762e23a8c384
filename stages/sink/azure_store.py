"""An Azure block blob as a `PartStore`: Put Block in any order, Put Block List as the commit.

References: Microsoft "Blob service REST API" (Put Block, Put Block List, Get Block List, Get Blob
Properties), "Specifying conditional headers".

The service checks each block's MD5. It keeps no digest of committed blocks. Blocks that were sent
and not committed cannot be deleted by themselves: the service drops them after a week.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import quote
from xml.sax.saxutils import escape

from pipeline.errors import SinkError
from stages.sink.azure_requests import AzureRefusedError, AzureRequests, refusal
from stages.sink.manifest import SUFFIX
from stages.sink.part_store import Seal, SentPart, UploadGoneError
from stages.sink.parts import Part, PartLimits
from stages.sink.xml_answer import parse_xml

_MIB: Final = 1 << 20
# 50,000 are allowed, but manifests list 10,000 pieces.
LIMITS: Final = PartLimits(least_bytes=4 * _MIB, most_bytes=4000 * _MIB, most_parts=10_000)
_RUN_KEY: Final = "x-ms-meta-dumpstream_run"
_COMPLETE_PATIENCE_S: Final = 600.0
_DONE_BEFORE: Final = frozenset({"BlobAlreadyExists", "ConditionNotMet", "InvalidBlockList"})
"""What a repeated commit is answered with when the first one succeeded."""


class AzureStore:
    """PartStore for one blob of a container."""

    def __init__(
        self,
        requests: AzureRequests,
        block_bytes: int | None = None,
    ) -> None:
        """`block_bytes`: smallest block to send, None for the default."""
        self.target = requests.target
        self._requests = requests
        least = LIMITS.least_bytes if block_bytes is None else block_bytes
        self.limits = PartLimits(least, LIMITS.most_bytes, LIMITS.most_parts)
        self._run = secrets.token_hex(8)
        self._overwrite = False
        self._put_a_manifest = False
        self._doubt: AzureRefusedError | None = None

    async def open(self, *, overwrite: bool) -> None:
        self._overwrite = overwrite
        answer = await self._requests.call("HEAD")
        if answer.is_good and not overwrite:
            raise SinkError(f"{self.target}: exists; -f overwrites it")
        missing = answer.headers.get("x-ms-error-code") == "ContainerNotFound"
        # Without the right to read, 403 says nothing about the right to write.
        may_write_only = answer.status == 403 and self._requests.has_signature
        if not answer.is_good and (missing or (answer.status != 404 and not may_write_only)):
            raise refusal(self.target, "look for the blob", answer)

    async def begin(self) -> str:
        return self._run

    async def resume(self, upload_id: str) -> Mapping[int, str] | None:
        self._run = upload_id
        try:
            answer = await self._requests.good(
                "list the blocks", "GET", "comp=blocklist&blocklisttype=uncommitted"
            )
        except AzureRefusedError as error:
            if error.code == "BlobNotFound":
                raise UploadGoneError(str(error)) from error
            raise
        root = parse_xml("BlockList", answer.body)
        ids = [
            each.text or "" for each in root.iterfind(".//{*}UncommittedBlocks/{*}Block/{*}Name")
        ]
        tags = {number: each for each in ids if (number := self._number(each)) is not None}
        if not tags:
            raise UploadGoneError(f"{self.target}: none of its blocks is there any more")
        return tags

    def _block_id(self, number: int) -> str:
        """All ids of a blob must be of one length."""
        return base64.b64encode(f"{self._run}-{number:05}".encode()).decode()

    def _number(self, block_id: str) -> int | None:
        """Part number of one of this upload's blocks, None for others."""
        try:
            text = base64.b64decode(block_id, validate=True).decode("ascii", "replace")
        except (binascii.Error, ValueError):
            return None
        found = re.fullmatch(f"{re.escape(self._run)}-([0-9]{{5}})", text)
        return int(found[1]) if found else None

    def seal(self, data: memoryview) -> Seal:
        return Seal(hashlib.sha256(data).digest(), _md5(data))

    async def put_part(self, part: Part, data: memoryview, seal: Seal) -> str:
        block_id = self._block_id(part.number)
        await self._requests.good(
            f"block {part.number}",
            "PUT",
            f"blockid={quote(block_id, safe='')}&comp=block",
            {"content-md5": seal.check},
            data,
        )
        return block_id

    def marks(self, _parts: Sequence[SentPart]) -> Mapping[str, str]:
        return {}

    async def put_manifest(self, data: bytes) -> None:
        self._put_a_manifest = True
        headers = {
            "content-md5": _md5(data),
            "content-type": "application/json",
            "x-ms-blob-type": "BlockBlob",
        }
        await self._requests.good("store the manifest", "PUT", "", headers, data, suffix=SUFFIX)

    async def complete(self, parts: Sequence[SentPart]) -> None:
        listed = "".join(f"<Uncommitted>{escape(sent.tag)}</Uncommitted>" for sent in parts)
        body = f'<?xml version="1.0" encoding="utf-8"?><BlockList>{listed}</BlockList>'.encode()
        headers = {
            "content-md5": _md5(body),
            "content-type": "application/xml",
            "x-ms-blob-content-type": "application/octet-stream",
            _RUN_KEY: self._run,
        }
        if not self._overwrite:
            headers["if-none-match"] = "*"
        try:
            await self._requests.good(
                "commit the blocks",
                "PUT",
                "comp=blocklist",
                headers,
                body,
                patience_s=_COMPLETE_PATIENCE_S,
            )
        except AzureRefusedError as error:
            if error.code not in _DONE_BEFORE:
                raise
            # An earlier attempt may have succeeded although its answer was lost: `confirm` looks.
            self._doubt = error

    async def confirm(self, parts: Sequence[SentPart]) -> None:
        size = sum(sent.part.n_bytes for sent in parts)
        head = await self._requests.call("HEAD")
        is_ours = head.is_good and head.headers.get(_RUN_KEY) == self._run
        if self._doubt is not None and not is_ours:
            if self._doubt.code != "InvalidBlockList":
                problem = f"{self.target}: exists since the upload began; -f overwrites it"
                raise SinkError(problem) from self._doubt
            raise self._doubt
        if head.status == 403 and self._requests.has_signature:
            return  # may write, may not look
        if not head.is_good:
            raise refusal(self.target, "look for the blob", head)
        if head.headers.get("content-length") != str(size):
            seen = head.headers.get("content-length")
            raise SinkError(f"{self.target}: {seen} bytes are stored, {size} were sent")

    async def abort(self) -> None:
        if self._put_a_manifest and not (await self._requests.call("HEAD")).is_good:
            await self._requests.call("DELETE", suffix=SUFFIX)

    async def close(self) -> None:
        await self._requests.close()


def _md5(data: bytes | memoryview) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
