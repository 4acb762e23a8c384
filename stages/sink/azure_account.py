"""Azure storage accounts: where the service is, and who asks; from settings and environment, pure.

References: Microsoft "Authorize with Shared Key" (version 2015-02-21 and later), "Configure Azure
Storage connection strings", "Grant limited access with shared access signatures".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, quote, urlsplit

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.config.targets import AzureSettings

API_VERSION: Final = "2021-12-02"
_ACCOUNT: Final = re.compile(r"[a-z0-9]{3,24}")
_CONTAINER: Final = re.compile(r"[a-z0-9$](?:[a-z0-9-]{1,61})[a-z0-9]|\$root|\$web")
_MAX_BLOB_NAME: Final = 1024 - len(".manifest.json")
_SIGNED: Final = (
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
)
"""Headers in the order of the string to sign."""


@dataclass(frozen=True, slots=True)
class BlobName:
    """Container and name of a blob."""

    container: str
    blob: str

    def __str__(self) -> str:
        return f"az://{self.container}/{self.blob}"


@dataclass(frozen=True, slots=True)
class AzureAccount:
    """An account; secrets are not shown.

    Attributes:
        endpoint: URL of the blob service, without a slash at its end.
        key: the account's, decoded; None with `sas`.
        sas: query of a shared access signature, without its question mark; None with `key`.
    """

    name: str
    endpoint: str
    key: bytes | None = field(repr=False)
    sas: str | None = field(repr=False)

    def url(self, container: str, blob: str) -> str:
        """URL of a blob, encoded as it is signed."""
        return f"{self.endpoint}/{container}/{quote(blob, safe='/-._~')}"

    def authorise(
        self, method: str, url: str, headers: Mapping[str, str], n_bytes: int
    ) -> tuple[str, dict[str, str]]:
        """URL and headers that authorise a request.

        Args:
            method: in capitals.
            url: with its query.
            headers: in lower case, all but Host and Content-Length.
            n_bytes: of the body.
        """
        stamped = {**headers, "x-ms-version": API_VERSION, "x-ms-date": formatdate(usegmt=True)}
        if self.key is None:
            return f"{url}{'&' if '?' in url else '?'}{self.sas}", stamped
        text = self._string_to_sign(method, url, stamped, n_bytes)
        digest = hmac.digest(self.key, text.encode(), hashlib.sha256)
        signature = base64.b64encode(digest).decode()
        return url, {**stamped, "authorization": f"SharedKey {self.name}:{signature}"}

    def _string_to_sign(
        self, method: str, url: str, headers: Mapping[str, str], n_bytes: int
    ) -> str:
        sized = {**headers, "content-length": str(n_bytes) if n_bytes else ""}
        lines = [method, *(sized.get(name, "") for name in _SIGNED)]
        lines += [f"{name}:{headers[name]}" for name in sorted(headers) if name[:5] == "x-ms-"]
        parts = urlsplit(url)
        lines.append(f"/{self.name}{parts.path}")
        lines += [f"{name}:{value}" for name, value in sorted(parse_qsl(parts.query))]
        return "\n".join(lines)


def parse_az_url(url: str) -> BlobName:
    """Container and blob in ``az://container/blob``.

    Raises:
        UsageError: no container or no blob, or something that Azure does not allow.
    """
    container, _, blob = url.partition("://")[2].partition("/")
    if "@" in container or "?" in blob:
        raise UsageError(
            "az://: keys and signatures do not belong in a URL, where every process list shows "
            "them; AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN has them"
        )
    if not _CONTAINER.fullmatch(container):
        raise UsageError(f"az://{container}: not a container's name; wanted az://container/blob")
    if not blob or blob.endswith(("/", ".")):
        raise UsageError(f"az://{container}/{blob}: a target needs a blob's name")
    if len(blob) > _MAX_BLOB_NAME or not blob.isprintable():
        raise UsageError(f"az://{container}: a name has at most {_MAX_BLOB_NAME} characters")
    return BlobName(container, blob)


def find_account(settings: AzureSettings, environ: Mapping[str, str]) -> AzureAccount:
    """The account to use; settings come first, then the environment.

    Raises:
        UsageError: none is named, there is no key and no signature, or the key is not base64.
    """
    given = _connection_string(environ.get("AZURE_STORAGE_CONNECTION_STRING", ""))
    name = settings.account or environ.get("AZURE_STORAGE_ACCOUNT") or given.get("accountname", "")
    if not _ACCOUNT.fullmatch(name):
        raise UsageError(
            "az://: which account? azure.account, AZURE_STORAGE_ACCOUNT or "
            "AZURE_STORAGE_CONNECTION_STRING names it"
        )
    sas = environ.get("AZURE_STORAGE_SAS_TOKEN") or given.get("sharedaccesssignature")
    key = environ.get("AZURE_STORAGE_KEY") or given.get("accountkey")
    if not sas and not key:
        raise UsageError(
            f"az:// account {name}: no AZURE_STORAGE_KEY, AZURE_STORAGE_SAS_TOKEN or "
            "AZURE_STORAGE_CONNECTION_STRING in the environment"
        )
    endpoint = settings.endpoint or given.get("blobendpoint") or _public_endpoint(name, given)
    return AzureAccount(
        name=name,
        endpoint=_checked_endpoint(endpoint),
        key=None if sas else _decoded(key or ""),
        sas=sas.lstrip("?") if sas else None,
    )


def _connection_string(text: str) -> dict[str, str]:
    """``Key=value;...``, keys in lower case; values may hold ``=``."""
    pairs = (item.partition("=") for item in text.split(";") if "=" in item)
    return {key.strip().lower(): value.strip() for key, _, value in pairs}


def _public_endpoint(name: str, given: Mapping[str, str]) -> str:
    scheme = given.get("defaultendpointsprotocol", "https")
    return f"{scheme}://{name}.blob.{given.get('endpointsuffix', 'core.windows.net')}"


def _checked_endpoint(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
        raise UsageError(
            "azure.endpoint: expected a URL such as https://account.blob.core.windows.net"
        )
    return url.rstrip("/")


def _decoded(key: str) -> bytes:
    try:
        return base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError):
        raise UsageError("az://: the account's key is not base64") from None
