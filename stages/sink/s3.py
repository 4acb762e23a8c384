"""``s3://bucket/key``: puts the S3 sink together."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from stages.sink.parts_sink import PartsOptions, PartsSink
from stages.sink.s3_credentials import S3Signer
from stages.sink.s3_location import S3Name, parse_s3_url
from stages.sink.s3_requests import S3Requests
from stages.sink.s3_store import S3Store
from stages.sink.throttle import TokenBucket
from stages.sink.web_client import WebClient

if TYPE_CHECKING:
    from pipeline.config.settings import Settings
    from pipeline.config.targets import NetSettings, S3Settings
    from stages.sink.journal import Journal
    from stages.sink.manifest import Form
    from stages.sink.part_store import PartStore
    from stages.sink.s3_stored import S3Stored


def make_sink(
    url: str, settings: Settings, journal: Journal | None = None, *, form: Form = "kdump"
) -> PartsSink:
    """The sink for an S3 target.

    Args:
        url: ``s3://bucket/key``.
        settings: all; ``net``, ``s3`` and ``dump.overwrite`` count.
        journal: to be written, and gone on with if it has an upload; None discards the parts of a
            failed upload.
        form: of what is sent.

    Raises:
        UsageError: the URL names no object.
    """
    name = parse_s3_url(url)
    part_size = settings.s3.part_size
    options = PartsOptions(
        name=name.key.rpartition("/")[2],
        part_bytes=None if part_size == "auto" else part_size,
        buffer_bytes=settings.s3.buffer_bytes,
        overwrite=settings.dump.overwrite,
        form=form,
    )
    return PartsSink(make_store(name, settings.s3, settings.net), options, settings.net, journal)


def make_stored(url: str, settings: Settings) -> S3Stored:
    """A dump that is kept there, to be verified.

    Raises:
        UsageError: the URL names no object.
    """
    from stages.sink.s3_stored import S3Stored

    name = parse_s3_url(url)
    client = WebClient(str(name), settings.net, TokenBucket(settings.net.rate_limit))
    return S3Stored(make_requests(name, settings.s3, client))


def make_probe(url: str, settings: Settings) -> PartStore:
    """The store, to measure how fast it takes parts.

    Raises:
        UsageError: the URL names no object.
    """
    return make_store(parse_s3_url(url), settings.s3, settings.net)


def make_store(name: S3Name, s3: S3Settings, net: NetSettings) -> PartStore:
    """The store that `name` is in, reached by signed requests or by presigned URLs."""
    client = WebClient(str(name), net, TokenBucket(net.rate_limit))
    if s3.presigned is not None:
        from stages.sink.s3_presigned import PresignedStore

        return PresignedStore(name, s3.presigned, client)
    return S3Store(make_requests(name, s3, client), s3)


def make_requests(name: S3Name, s3: S3Settings, client: WebClient) -> S3Requests:
    """Signed requests about `name`."""
    return S3Requests(name, s3, client, S3Signer(str(name), s3.profile), os.environ)
