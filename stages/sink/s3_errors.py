"""What an S3 server's refusals mean: to be tried again or not, and in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pipeline.errors import SinkError
from stages.sink.retry import TransientError
from stages.sink.xml_answer import parse_error

if TYPE_CHECKING:
    from stages.sink.web_client import Answer

# Busy servers, and bodies that were damaged or cut on their way.
_TRANSIENT: Final = frozenset(
    {
        "BadDigest",
        "ConnectionClosedByRequester",
        "IncompleteBody",
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "XAmzContentChecksumMismatch",
        "XAmzContentSHA256Mismatch",
    }
)
_WORDS: Final = {
    "AccessDenied": "access denied: these credentials may not write there",
    "ExpiredToken": "the credentials have expired",
    "InvalidAccessKeyId": "the access key is not known there",
    "NoSuchBucket": "there is no such bucket",
    "RequestTimeTooSkewed": "this machine's clock is too far off",
    "SignatureDoesNotMatch": "wrong secret key (or region)",
}
_STATUS_WORDS: Final = {
    301: "the bucket is in another region",
    401: "not authorised",
    403: "access denied",
    404: "not found",
}


class S3RefusedError(SinkError):
    """The server understood and said no."""

    def __init__(self, problem: str, code: str, status: int) -> None:
        self.code = code
        self.status = status
        super().__init__(problem)


def refusal(target: str, what: str, answer: Answer) -> SinkError:
    """The error for an answer that is not good.

    Args:
        target: URL without secrets.
        what: was tried, in words.
        answer: of the server.
    """
    code, message = parse_error(answer.body)
    said = _WORDS.get(code) or (f"{code}: {message}" if code else "")
    said = said or _STATUS_WORDS.get(answer.status, "refused")
    problem = f"{target}: {what}: {said} (HTTP {answer.status})"
    # An error inside a good answer is Complete's way to say that it failed half way.
    if answer.is_transient or answer.is_good or code in _TRANSIENT:
        return TransientError(problem, answer.retry_after_s)
    return S3RefusedError(problem, code, answer.status)
