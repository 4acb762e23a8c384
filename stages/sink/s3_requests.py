"""Signed requests about one S3 object and what lies next to it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import anyio.to_thread

from pipeline.errors import SinkError
from stages.sink.s3_errors import refusal
from stages.sink.s3_location import S3Name, S3Place, find_place

if TYPE_CHECKING:
    from pipeline.config.targets import S3Settings
    from stages.sink.s3_credentials import S3Signer
    from stages.sink.web_client import Answer, WebClient

_EMPTY_SHA256: Final = hashlib.sha256().hexdigest()


class S3Requests:
    """Knows where the object is and who may ask for it; `open` comes first, `close` last."""

    def __init__(
        self,
        name: S3Name,
        settings: S3Settings,
        client: WebClient,
        signer: S3Signer,
        environ: Mapping[str, str],
    ) -> None:
        self.target = str(name)
        self._name = name
        self._settings = settings
        self._client = client
        self._signer = signer
        self._environ = environ
        self._place: S3Place | None = None

    async def open(self) -> None:
        """Find credentials and the service; asks only metadata services.

        Raises:
            SinkError: there are no credentials.
            UsageError: the endpoint or the region is none.
        """
        if self._place is None:
            profile = await anyio.to_thread.run_sync(self._signer.load)
            self._place = find_place(self._name.bucket, self._settings, self._environ, profile)

    async def find(self, headers: Mapping[str, str] | None = None) -> Answer:
        """The answer to HEAD, whatever its status, from the bucket's own region."""
        answer = await self.call("HEAD", headers=headers)
        place = self._place
        region = answer.headers.get("x-amz-bucket-region")
        if not answer.is_good and region and place and place.region != region:
            self._place = replace(place, region=region)
            answer = await self.call("HEAD", headers=headers)
        return answer

    async def good(
        self,
        what: str,
        method: str,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | memoryview = b"",
        *,
        sha256: str = _EMPTY_SHA256,
        suffix: str = "",
        patience_s: float = 0,
    ) -> Answer:
        """As `call`, but only a good answer comes back.

        Args:
            what: is tried, in words, for the error.
            method: see `call`, as for everything that follows.
            query: see `call`.
            headers: see `call`.
            body: see `call`.
            sha256: see `call`.
            suffix: see `call`.
            patience_s: see `call`.

        Raises:
            TransientError: not reached, or the server is busy.
            S3RefusedError: the server said no.
        """
        answer = await self.call(
            method, query, headers, body, sha256=sha256, suffix=suffix, patience_s=patience_s
        )
        if not answer.is_good:
            raise refusal(self.target, what, answer)
        return answer

    async def call(
        self,
        method: str,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | memoryview = b"",
        *,
        sha256: str = _EMPTY_SHA256,
        suffix: str = "",
        patience_s: float = 0,
    ) -> Answer:
        """Make one request.

        Args:
            method: in capitals.
            query: not encoded yet.
            headers: beside those that authorise.
            body: must not change until this returns.
            sha256: of the body, hexadecimal.
            suffix: of a neighbour's key, such as the manifest's.
            patience_s: wait at least this long for the answer to begin.

        Raises:
            TransientError: not reached, or the connection was lost or stalled.
            SinkError: the server is not to be trusted, or the credentials have expired.
        """
        if self._place is None:
            raise SinkError(f"{self.target}: not open")
        url = self._place.url(self._name.key + suffix)
        if query:
            url = f"{url}?{'&'.join(f'{_quote(k)}={_quote(query[k])}' for k in sorted(query))}"
        sign = partial(self._signer.sign, method, url, headers or {}, sha256, self._place.region)
        signed = await anyio.to_thread.run_sync(sign)
        return await self._client.call(method, url, signed, body, patience_s=patience_s)

    async def close(self) -> None:
        """Close connections; never raises."""
        await self._client.close()


def _quote(text: str) -> str:
    return quote(text, safe="-._~")
