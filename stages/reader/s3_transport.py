"""``s3://bucket/key`` as a source: the HTTP transport, with every request signed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from stages.reader.http_connections import origin_of
from stages.reader.http_transport import HttpTransport
from stages.reader.remote_link import SourceError
from stages.sink.s3_credentials import S3Signer
from stages.sink.s3_location import find_place, parse_s3_url

if TYPE_CHECKING:
    from pipeline.config.targets import NetSettings, S3Settings
    from stages.reader.remote_link import Link

_EMPTY_SHA256: Final = hashlib.sha256().hexdigest()


def open_s3(
    url: str,
    s3: S3Settings,
    net: NetSettings,
    link: Link,
    pause: Callable[[], float] | None = None,
) -> HttpTransport:
    """The object at `url`; for the rest see `HttpTransport`.

    Raises:
        UsageError: the URL names no object, or the endpoint is none.
        SinkError: there are no credentials.
        SourceError: not reached, or refused.
    """
    name = parse_s3_url(url)
    signer = S3Signer(str(name), s3.profile)
    place = find_place(name.bucket, s3, os.environ, signer.load())
    home = origin_of(place.url(name.key))

    def sign(at: str, headers: Mapping[str, str]) -> dict[str, str]:
        if origin_of(at) != home:
            raise SourceError(f"{name}: redirected to another host, which gets no credentials")
        return signer.sign("GET", at, headers, _EMPTY_SHA256, place.region)

    return HttpTransport(str(name), place.url(name.key), net, link, sign, pause)
