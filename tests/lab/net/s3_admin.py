"""What tests do to an S3 server beside the code under test: buckets, objects, presigned URLs."""

from __future__ import annotations

import hashlib
import http.client
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

ACCESS_KEY = "AKIDTEST"
SECRET_KEY = "secrettest"
REGION = "us-east-1"


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class S3Admin:
    """Plain signed requests to the server at `endpoint`; nothing of dumpstream is used."""

    endpoint: str

    @property
    def _credentials(self) -> Credentials:
        return Credentials(ACCESS_KEY, SECRET_KEY)

    def call(self, method: str, path: str, body: bytes = b"", **query: str) -> Reply:
        """`path` starts with the bucket; query keys have - for _."""
        named = {name.replace("_", "-"): value for name, value in query.items()}
        url = f"{self.endpoint}/{path}" + (f"?{urlencode(named)}" if named else "")
        headers = {"x-amz-content-sha256": hashlib.sha256(body).hexdigest()}
        request = AWSRequest(method, url, headers=headers, data=body)
        S3SigV4Auth(self._credentials, "s3", REGION).add_auth(request)
        return fetch(method, url, dict(request.headers.items()), body)

    def presign(self, method: str, path: str, **query: str) -> str:
        """A URL that may be used by whoever has it, for an hour."""
        named = {name.replace("_", "-"): value for name, value in query.items()}
        url = f"{self.endpoint}/{path}" + (f"?{urlencode(named)}" if named else "")
        request = AWSRequest(method, url)
        S3SigV4QueryAuth(self._credentials, "s3", REGION, expires=3600).add_auth(request)
        return str(request.url)


def fetch(method: str, url: str, headers: Mapping[str, str], body: bytes = b"") -> Reply:
    """One request with the standard library's client."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    try:
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, path, body, dict(headers))
        answer = connection.getresponse()
        names = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(answer.status, names, answer.read())
    finally:
        connection.close()
