"""From ``s3://bucket/key``, settings, environment and profile to the URL of an object; pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.config.targets import S3Settings

_DEFAULT_REGION: Final = "us-east-1"
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_REGION: Final = re.compile(r"[A-Za-z0-9-]{1,63}")
_MAX_KEY_BYTES: Final = 1024 - len(".manifest.json")


@dataclass(frozen=True, slots=True)
class S3Name:
    """Bucket and key of a dump."""

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


@dataclass(frozen=True, slots=True)
class S3Place:
    """The service that has the bucket.

    Attributes:
        endpoint: URL without a path for AWS, with whatever path the settings have otherwise; None
            is AWS itself, whose host follows from the region.
    """

    bucket: str
    region: str
    endpoint: str | None
    path_style: bool

    def url(self, key: str) -> str:
        """URL of an object, encoded as it is signed."""
        path = quote(key, safe="/-._~")
        base = self.endpoint or f"https://s3.{self.region}.{_domain(self.region)}"
        if self.path_style:
            return f"{base}/{self.bucket}/{path}"
        scheme, _, rest = base.partition("://")
        return f"{scheme}://{self.bucket}.{rest}/{path}"


def _domain(region: str) -> str:
    return "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"


def parse_s3_url(url: str) -> S3Name:
    """Bucket and key in ``s3://bucket/key``; the key is taken as it stands.

    Raises:
        UsageError: no bucket or no key, or something that S3 does not allow.
    """
    bucket, _, key = url.partition("://")[2].partition("/")
    if "@" in bucket:
        raise UsageError(
            "s3://: keys do not belong in a URL, where every process list shows them; the "
            "environment, a profile or the instance's role has them"
        )
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(f"s3://{bucket}: not a bucket's name; a target is s3://bucket/key")
    if not key or key.endswith("/"):
        raise UsageError(f"s3://{bucket}/{key}: a target needs a key, as in s3://bucket/key")
    if len(key.encode()) > _MAX_KEY_BYTES or not key.isprintable():
        raise UsageError(f"s3://{bucket}: a key has at most {_MAX_KEY_BYTES} printable bytes")
    return S3Name(bucket, key)


def find_place(
    bucket: str,
    settings: S3Settings,
    environ: Mapping[str, str],
    profile: Mapping[str, str],
) -> S3Place:
    """The service for `bucket`; the settings come first, then the environment, then the profile.

    Args:
        bucket: its name.
        settings: of the target.
        environ: of the process.
        profile: ``region`` and ``endpoint_url`` of the AWS profile, where it has them.

    Raises:
        UsageError: the endpoint is no http or https URL, or the region no region.
    """
    region = (
        settings.region
        or environ.get("AWS_REGION")
        or environ.get("AWS_DEFAULT_REGION")
        or profile.get("region")
        or _DEFAULT_REGION
    )
    if not _REGION.fullmatch(region):
        raise UsageError(f"s3.region: {region!r} is not a region")
    endpoint = (
        settings.endpoint
        or environ.get("AWS_ENDPOINT_URL_S3")
        or environ.get("AWS_ENDPOINT_URL")
        or profile.get("endpoint_url")
    )
    if endpoint is not None:
        endpoint = _checked_endpoint(endpoint)
    path_style = settings.path_style
    if path_style == "auto":
        # A bucket with dots has no certificate under the service's wildcard.
        path_style = endpoint is not None or "." in bucket
    return S3Place(bucket, region, endpoint, path_style)


def _checked_endpoint(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError("s3.endpoint: expected a URL such as https://storage.example:9000")
    if parts.username is not None or parts.query or parts.fragment:
        raise UsageError("s3.endpoint: only scheme, host, port and path are allowed")
    return url.rstrip("/")
