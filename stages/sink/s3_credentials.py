"""Credentials and signatures for S3, by botocore: the usual chain, refreshed when it must be.

The chain: environment, web identity (STS), profile with everything a profile may say (assumed
roles, SSO, a process), container metadata, instance metadata. docs/adr/0010 has what botocore
costs and why the chain is not ours.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import SinkError, UnsupportedError
from stages.sink.retry import TransientError

if TYPE_CHECKING:
    from botocore.credentials import Credentials
    from botocore.session import Session

_MAX_SHOWN: Final = 300
_PROFILE_KEYS: Final = ("region", "endpoint_url")


class S3Signer:
    """Signs requests with whatever credentials the chain finds."""

    def __init__(self, target: str, profile: str | None) -> None:
        self._target = target
        self._profile = profile
        self._session: Session | None = None
        self._credentials: Credentials | None = None

    def load(self) -> Mapping[str, str]:
        """Find credentials; region and endpoint of the profile, where it has them.

        Blocks: files are read, and metadata services are asked.

        Raises:
            SinkError: there are no credentials, or the profile is broken.
            UnsupportedError: botocore is not installed.
        """
        try:
            from botocore.session import Session
        except ImportError as error:
            problem = "s3:// needs the package botocore (dumpstream[s3]), or s3.presigned"
            raise UnsupportedError(problem) from error
        # Its warnings come with tracebacks, and its errors say the same.
        logging.getLogger("botocore").setLevel(logging.CRITICAL)
        with _one_line(self._target):
            session = Session(profile=self._profile)
            self._credentials = session.get_credentials()
            config: dict[str, Any] = session.get_scoped_config()
        if self._credentials is None:
            raise SinkError(
                f"{self._target}: no credentials in the environment, the profile, web identity or "
                "instance metadata"
            )
        return {key: str(config[key]) for key in _PROFILE_KEYS if key in config}

    def sign(
        self, method: str, url: str, headers: Mapping[str, str], sha256: str, region: str
    ) -> dict[str, str]:
        """`headers` with those that authorise the request; blocks when credentials are refreshed.

        Args:
            method: in capitals.
            url: encoded as it is sent, with its query.
            headers: all but Host, which is signed too, and Content-Length.
            sha256: of the body, hexadecimal; the server refuses any other body.
            region: of the bucket.

        Raises:
            TransientError: the service that refreshes credentials is not reached.
            SinkError: the credentials expired and cannot be refreshed.
        """
        from botocore.awsrequest import AWSRequest

        if self._credentials is None:
            raise SinkError(f"{self._target}: credentials were not loaded")
        with _one_line(self._target):
            frozen = self._credentials.get_frozen_credentials()
        request = AWSRequest(method, url, headers=dict(headers))
        _auth_class()(frozen, region, sha256).add_auth(request)
        return {name: str(value) for name, value in request.headers.items()}


@contextmanager
def _one_line(target: str) -> Iterator[None]:
    """Whatever the chain fails with, as an error of ours; it may read files and run programs."""
    from botocore import exceptions as boto

    try:
        yield
    except (boto.ConnectionError, boto.HTTPClientError) as error:
        raise TransientError(f"{target}: credentials: {_shown(error)}") from error
    except (boto.BotoCoreError, boto.ClientError, OSError, RuntimeError, ValueError) as error:
        raise SinkError(f"{target}: credentials: {_shown(error)}") from error


def _shown(error: Exception) -> str:
    return " ".join(str(error).split())[:_MAX_SHOWN]


def _auth_class() -> type[Any]:
    from botocore.auth import S3SigV4Auth

    class _PayloadAuth(S3SigV4Auth):  # type: ignore[misc]
        """Takes the body's digest instead of the body."""

        def __init__(self, credentials: object, region: str, sha256: str) -> None:
            super().__init__(credentials, "s3", region)
            self._sha256 = sha256

        def payload(self, request: object) -> str:
            return self._sha256

    return _PayloadAuth
