"""Authorised requests about one Azure blob and what lies next to it, and what refusals mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from pipeline.errors import SinkError
from stages.sink.azure_account import AzureAccount, BlobName
from stages.sink.retry import TransientError
from stages.sink.xml_answer import parse_error

if TYPE_CHECKING:
    from stages.sink.web_client import Answer, WebClient

_TRANSIENT: Final = frozenset({"InternalError", "Md5Mismatch", "OperationTimedOut", "ServerBusy"})
_WORDS: Final = {
    "AuthenticationFailed": "wrong key, or the signature has expired",
    "AuthorizationFailure": "this network or account may not write there",
    "AuthorizationPermissionMismatch": "the signature does not allow it",
    "BlobNotFound": "there is no such blob",
    "ContainerNotFound": "there is no such container",
    "InvalidAuthenticationInfo": "wrong key or signature",
}


class AzureRefusedError(SinkError):
    """The service understood and said no."""

    def __init__(self, problem: str, code: str) -> None:
        self.code = code
        super().__init__(problem)


class AzureRequests:
    """Knows where the blob is and who may ask for it; `close` comes last."""

    def __init__(self, name: BlobName, account: AzureAccount, client: WebClient) -> None:
        self.target = str(name)
        self.has_signature = account.sas is not None
        """Access by a shared signature, which may allow writing only."""
        self._name = name
        self._account = account
        self._client = client

    async def good(
        self,
        what: str,
        method: str,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        body: bytes | memoryview = b"",
        *,
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
            suffix: see `call`.
            patience_s: see `call`.

        Raises:
            TransientError: not reached, or the service is busy.
            AzureRefusedError: the service said no.
        """
        answer = await self.call(method, query, headers, body, suffix=suffix, patience_s=patience_s)
        if not answer.is_good:
            raise refusal(self.target, what, answer)
        return answer

    async def call(
        self,
        method: str,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        body: bytes | memoryview = b"",
        *,
        suffix: str = "",
        patience_s: float = 0,
    ) -> Answer:
        """Make one request.

        Args:
            method: in capitals.
            query: encoded.
            headers: in lower case, beside those that authorise.
            body: must not change until this returns.
            suffix: of a neighbour's name, such as the manifest's.
            patience_s: wait at least this long for the answer to begin.

        Raises:
            TransientError: not reached, or the connection was lost or stalled.
            SinkError: the server is not to be trusted.
        """
        url = self._account.url(self._name.container, self._name.blob + suffix)
        url = f"{url}?{query}" if query else url
        url, signed = self._account.authorise(method, url, headers or {}, len(body))
        return await self._client.call(method, url, signed, body, patience_s=patience_s)

    async def close(self) -> None:
        """Close connections; never raises."""
        await self._client.close()


def refusal(target: str, what: str, answer: Answer) -> SinkError:
    """The error for an answer that is not good.

    Args:
        target: URL without secrets.
        what: was tried, in words.
        answer: of the service.
    """
    said = parse_error(answer.body)
    code = said.code or answer.headers.get("x-ms-error-code", "")
    words = _WORDS.get(code) or f"{code}: {said.message}".strip(": ") or "refused"
    problem = f"{target}: {what}: {words} (HTTP {answer.status})"
    if answer.is_transient or code in _TRANSIENT:
        return TransientError(problem, answer.retry_after_s)
    return AzureRefusedError(problem, code)
