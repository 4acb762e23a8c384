"""``az://container/blob``: puts the Azure sink together."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from stages.sink.azure_account import BlobName, find_account, parse_az_url
from stages.sink.azure_requests import AzureRequests
from stages.sink.azure_store import AzureStore
from stages.sink.parts_sink import PartsOptions, PartsSink
from stages.sink.throttle import TokenBucket
from stages.sink.web_client import WebClient

if TYPE_CHECKING:
    from pipeline.config.settings import Settings
    from stages.sink.azure_stored import AzureStored
    from stages.sink.journal import Journal
    from stages.sink.manifest import Form
    from stages.sink.part_store import PartStore


def make_sink(
    url: str, settings: Settings, journal: Journal | None = None, *, form: Form = "kdump"
) -> PartsSink:
    """The sink for an Azure target.

    Args:
        url: ``az://container/blob``.
        settings: all; ``net``, ``azure`` and ``dump.overwrite`` count.
        journal: to be written, and gone on with if it has an upload; None discards the parts of a
            failed upload.
        form: of what is sent.

    Raises:
        UsageError: the URL names no blob, or the environment no account.
    """
    name = parse_az_url(url)
    block_size = settings.azure.block_size
    block_bytes = None if block_size == "auto" else block_size
    store = AzureStore(make_requests(name, settings), block_bytes)
    options = PartsOptions(
        name=name.blob.rpartition("/")[2],
        part_bytes=block_bytes,
        buffer_bytes=settings.azure.buffer_bytes,
        overwrite=settings.dump.overwrite,
        form=form,
    )
    return PartsSink(store, options, settings.net, journal)


def make_stored(url: str, settings: Settings) -> AzureStored:
    """A dump that is kept there, to be verified.

    Raises:
        UsageError: the URL names no blob, or the environment no account.
    """
    from stages.sink.azure_stored import AzureStored

    return AzureStored(make_requests(parse_az_url(url), settings))


def make_probe(url: str, settings: Settings) -> PartStore:
    """The store, to measure how fast it takes blocks.

    Raises:
        UsageError: the URL names no blob, or the environment no account.
    """
    return AzureStore(make_requests(parse_az_url(url), settings))


def make_requests(name: BlobName, settings: Settings) -> AzureRequests:
    """Authorised requests about `name`."""
    client = WebClient(str(name), settings.net, TokenBucket(settings.net.rate_limit))
    return AzureRequests(name, find_account(settings.azure, os.environ), client)
