"""A dump that is an Azure blob."""

from __future__ import annotations

from stages.sink.azure_requests import AzureRequests, refusal
from stages.sink.manifest import SUFFIX
from stages.sink.stored import Looks, ranged_body


class AzureStored:
    """StoredDump; the service keeps no digest of a blob made of blocks, so only reading proves."""

    def __init__(self, requests: AzureRequests) -> None:
        self.target = requests.target
        self._requests = requests

    async def look(self) -> Looks | None:
        answer = await self._requests.call("HEAD")
        if answer.status == 404:
            return None
        size = answer.headers.get("content-length", "")
        if not answer.is_good or not size.isdigit():
            raise refusal(self.target, "look for the blob", answer)
        return Looks(int(size))

    async def read(self, offset: int, length: int) -> bytes:
        headers = {"range": f"bytes={offset}-{offset + length - 1}"}
        answer = await self._requests.call("GET", headers=headers)
        if answer.status == 416:
            return b""
        if not answer.is_good:
            raise refusal(self.target, "read the blob", answer)
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
