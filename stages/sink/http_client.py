"""`WebClient` that can also send a body while it is being made."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from stages.sink.web_client import Answer, WebClient


class StreamingClient(WebClient):
    """One that sends what has no known length, in chunked encoding."""

    async def send_stream(
        self, method: str, url: str, headers: Mapping[str, str], stream: AsyncIterator[bytes]
    ) -> Answer:
        """Make one request whose body is `stream`; an error that the stream raises comes out here.

        Raises:
            TransientError: the connection was lost or stalled.
            SinkError: the server's certificate is not trusted, or its name is unknown.
        """
        client = self._open(url)
        import httpx2

        request = client.build_request(
            method,
            url,
            headers=dict(headers),
            content=self._paced(stream),
            timeout=self._timeout(0),
        )
        try:
            answer = await client.send(request, stream=True)
            try:
                return Answer(answer.status_code, dict(answer.headers), await self._read(answer))
            finally:
                await answer.aclose()
        except (httpx2.TransportError, OSError) as error:
            raise self._failure(url, error) from error

    async def _paced(self, stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for piece in stream:
            await self._bucket.take(len(piece))
            yield piece
