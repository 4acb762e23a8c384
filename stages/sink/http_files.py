"""The files next to each other on a web server that an upload is made of, and what it refuses.

Every method is one request, and raises `TransientError` where another try may succeed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Final

from pipeline.errors import SinkError
from stages.sink.http_client import StreamingClient
from stages.sink.http_url import HttpTarget
from stages.sink.retry import TransientError
from stages.sink.web_client import Answer

_UNABLE: Final = frozenset({400, 405, 411, 416, 422, 501})
"""What servers say to a method or header that they do not know."""
_WORDS: Final = {
    401: "wrong or missing credentials",
    403: "not allowed",
    404: "not found (is the directory there?)",
    405: "the server takes no PUT there",
    409: "conflict (is the directory there?)",
    411: "the server takes no body of unknown length",
    413: "too large for the server",
    501: "the server takes no PUT there",
    507: "no space left",
}


class HttpFiles:
    """Requests about a dump and its neighbours, which have its name and a suffix."""

    def __init__(
        self, target: HttpTarget, client: StreamingClient, credentials: Mapping[str, str]
    ) -> None:
        self.target = target
        self._client = client
        self._credentials = credentials

    async def size(self, suffix: str) -> int | None:
        """Bytes that a file has, None when there is none or the server does not say.

        Raises:
            SinkError: wrong credentials.
        """
        answer = await self._call("HEAD", suffix)
        if answer.is_transient:
            raise self.refusal("look at it", suffix, answer)
        if answer.status == 401:
            raise self.refusal("look at it", suffix, answer)
        text = answer.headers.get("content-length", "")
        return int(text) if answer.is_good and text.isdigit() else None

    async def exists(self, suffix: str) -> bool:
        """True when there is something of that name, as far as we may know."""
        return await self.size(suffix) is not None

    async def put(self, suffix: str, data: bytes = b"") -> None:
        """Make a file, over one that is there."""
        self._require(await self._call("PUT", suffix, {}, data), "write", suffix)

    async def try_put(self, suffix: str, data: bytes) -> None:
        """Make a file, to see whether the server takes any.

        Raises:
            SinkError: it does not. That is what 500 means here: nginx says it when the directory
                is missing or closed to it.
        """
        answer = await self._call("PUT", suffix, {}, data)
        if answer.status == 500:
            hint = "the server failed; is the directory there, and may it write?"
            raise SinkError(f"{self.target.show(suffix)}: write: {hint} (HTTP 500)")
        self._require(answer, "write", suffix)

    async def put_range(self, suffix: str, offset: int, data: bytes | memoryview) -> None:
        """Write into a file that is there."""
        answer = await self._put_range(suffix, offset, data)
        self._require(answer, f"write at {offset}", suffix)

    async def takes_range(self, suffix: str, offset: int, data: bytes) -> bool:
        """Write into a file if the server can; False when it says that it cannot."""
        answer = await self._put_range(suffix, offset, data)
        if answer.status in _UNABLE:
            return False
        self._require(answer, f"write at {offset}", suffix)
        return True

    async def _put_range(self, suffix: str, offset: int, data: bytes | memoryview) -> Answer:
        span = f"bytes {offset}-{offset + len(data) - 1}/*"
        return await self._call("PUT", suffix, {"content-range": span}, data)

    async def read(self, suffix: str, offset: int, n_bytes: int) -> bytes:
        """Bytes of a file, fewer only at its end.

        Raises:
            CannotReadError: the server gives out no parts of files, or not to us.
        """
        span = f"bytes={offset}-{offset + n_bytes - 1}"
        answer = await self._call("GET", suffix, {"range": span})
        if answer.is_transient:
            raise self.refusal("read it back", suffix, answer)
        if answer.status == 416:
            return b""
        if answer.status != 206:
            raise CannotReadError(f"{self.target.show(suffix)}: HTTP {answer.status} to a GET")
        return answer.body

    async def can_move(self, old: str, new: str, *, overwrite: bool) -> bool:
        """Give a file another name if the server can."""
        answer = await self._move(old, new, overwrite=overwrite)
        if answer.is_transient and answer.status not in (500, 502):
            raise self.refusal("rename it", old, answer)
        return answer.is_good

    async def move(self, old: str, new: str, *, overwrite: bool) -> None:
        """Give a file another name.

        Raises:
            SinkError: the name was taken meanwhile, or the server refuses.
        """
        answer = await self._move(old, new, overwrite=overwrite)
        if answer.status == 412:
            raise SinkError(f"{self.target.show(new)}: appeared meanwhile; -f overwrites it")
        self._require(answer, "rename it", old)

    async def _move(self, old: str, new: str, *, overwrite: bool) -> Answer:
        headers = {"destination": self.target.url(new), "overwrite": "T" if overwrite else "F"}
        return await self._call("MOVE", old, headers)

    async def delete(self, suffix: str) -> None:
        """Remove a file; that it is not there is fine."""
        answer = await self._call("DELETE", suffix)
        if answer.status != 404:
            self._require(answer, "remove it", suffix)

    async def close(self) -> None:
        await self._client.close()

    async def _call(
        self,
        method: str,
        suffix: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | memoryview = b"",
    ) -> Answer:
        url = self.target.url(suffix)
        return await self._client.call(method, url, {**self._credentials, **(headers or {})}, body)

    async def put_stream(self, suffix: str, stream: AsyncIterator[bytes]) -> None:
        """Make a file of bytes whose number is not known yet."""
        headers = {**self._credentials, "content-type": "application/octet-stream"}
        answer = await self._client.send_stream("PUT", self.target.url(suffix), headers, stream)
        self._require(answer, "write", suffix)

    def _require(self, answer: Answer, what: str, suffix: str) -> None:
        if not answer.is_good:
            raise self.refusal(what, suffix, answer)

    def refusal(self, what: str, suffix: str, answer: Answer) -> SinkError:
        """The error for an answer that is not good."""
        where = self.target.show(suffix)
        if 300 <= answer.status < 400:
            place = answer.headers.get("location", "elsewhere").partition("?")[0]
            return SinkError(f"{where}: redirected to {place}; name that as the target")
        words = _WORDS.get(answer.status, "refused")
        problem = f"{where}: {what}: {words} (HTTP {answer.status})"
        if answer.is_transient:
            return TransientError(problem, answer.retry_after_s)
        return SinkError(problem)


class CannotReadError(SinkError):
    """The server does not let us see what we wrote."""
