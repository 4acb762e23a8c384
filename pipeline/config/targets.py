"""Settings of network targets, one section a kind; a section's extra need not be installed."""

from __future__ import annotations

from msgspec import Struct


class NetSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """What every network target has in common: retries, deadlines, manners."""


class S3Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """``s3://bucket/key``."""


class AzureSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """``az://container/blob``."""


class SshSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """``sftp://`` and ``ssh://``."""


class HttpSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """``http://`` and ``https://``, as target and as source."""


class TcpSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """``tcp://`` and ``tls://``, both ends."""
