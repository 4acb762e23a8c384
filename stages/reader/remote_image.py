"""Images over a line: what opens them, and the wrapper that says that they are slow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit, urlunsplit

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.memory.addresses import ByteArray, PfnArray
from pipeline.memory.bitmap import PageBitmap
from pipeline.memory.extents import ExtentSet
from stages.reader.image import Image, ImageInfo
from stages.reader.remote_file import RemoteFile
from stages.reader.remote_link import Link

if TYPE_CHECKING:
    from pipeline.config.settings import Settings
    from stages.reader.http_transport import Sign
    from stages.reader.remote_file import Transport

_HTTP_IN_FLIGHT: Final = 32
"""Connections: enough for 1.6 GB/s at 20 ms in parts of 1 MiB, and no server minds them."""
_LOCAL_IN_FLIGHT: Final = 1024
"""A device's queue: what NVMe takes, and the kernel's default nr_requests of a few disks."""
_PART_BYTES: Final = 1 << 20
SCHEMES: Final = ("http", "https", "s3")


class RemoteImage:
    """Another image's content, with the link that it comes over.

    Never shared with forked children: connections are not, and they would measure apart.
    """

    fork_safe = False

    def __init__(self, image: Image, link: Link) -> None:
        self.link = link
        self._image = image
        self.info: ImageInfo = image.info
        self.path = image.path
        self.max_mapnr = image.max_mapnr

    @property
    def ram(self) -> ExtentSet:
        return self._image.ram

    @property
    def saved(self) -> ExtentSet:
        return self._image.saved

    def read_pages(self, pfns: PfnArray, out: ByteArray) -> NDArray[np.uint8]:
        return self._image.read_pages(pfns, out)

    def holes(self, start: int, stop: int) -> ExtentSet:
        return self._image.holes(start, stop)

    def read_ahead(self, start: int, stop: int) -> None:
        """Nothing: whoever reads ahead here reads."""

    def saved_bitmap(self) -> PageBitmap:
        return self._image.saved_bitmap()

    def close(self) -> None:
        self._image.close()


def link_of(image: Image) -> Link | None:
    """The line that `image` comes over, None where reading is as fast as memory or a disk."""
    link = getattr(image, "link", None)
    return link if isinstance(link, Link) else None


def is_slow(path: str, settings: Settings) -> bool:
    """Whether `open_slow` has to open `path`."""
    return "://" in path or settings.source.latency.is_on


def open_slow(path: str, settings: Settings) -> Image:
    """The image at a URL, or a local one made slow by ``source.latency``.

    Raises:
        UsageError: a URL of a kind that is no source.
        SourceError: not reached, or refused.
        DumpError: no memory image, or a broken one.
    """
    from stages.reader.probe import open_file

    transport = _transport(path, settings)
    return RemoteImage(open_file(RemoteFile(transport)), transport.link)


def _transport(path: str, settings: Settings) -> Transport:
    in_flight, latency = settings.cache.in_flight, settings.source.latency
    scheme = path.split("://", 1)[0].lower() if "://" in path else ""
    usual = _HTTP_IN_FLIGHT if scheme else _LOCAL_IN_FLIGHT
    if not settings.cache.prefetch:
        usual = 1  # one after the other, as a reader without foresight asks
    link = Link(max_in_flight=usual if in_flight == "auto" else in_flight, part_bytes=_PART_BYTES)
    if scheme and scheme not in SCHEMES:
        known = ", ".join(f"{each}://" for each in SCHEMES)
        raise UsageError(f"{scheme}:// is not a source; there are {known} and paths")
    slowness = None
    if latency.is_on:
        from stages.reader.latency import Slowness

        slowness = Slowness(
            latency.per_request_ms / 1e3, latency.jitter_ms / 1e3, latency.bandwidth_mib_s * 2**20
        )
    if not scheme:
        from stages.reader.file_io import PlainFile
        from stages.reader.latency import SlowTransport

        assert slowness is not None, "is_slow() said so"
        return SlowTransport(PlainFile(path), slowness, link)
    if slowness is not None and slowness.bytes_per_s:
        raise UsageError("source.latency.bandwidth_mib_s: local files only")
    pause = None if slowness is None else slowness.pause
    if scheme == "s3":
        from stages.reader.s3_transport import open_s3

        return open_s3(path, settings.s3, settings.net, link, pause)
    from stages.reader.http_transport import HttpTransport

    shown, url = _split_secrets(path)
    sign = _bearer(settings.http.token_file)
    return HttpTransport(shown, url, settings.net, link, sign, pause)


def _split_secrets(url: str) -> tuple[str, str]:
    """The URL for people, without its query, and the one to ask.

    Raises:
        UsageError: no host, or a password where every process list shows it.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"not a URL: {error}") from error
    if not host:
        raise UsageError(f"{parts.scheme}://: a source needs a host")
    if "@" in parts.netloc:
        raise UsageError(f"{parts.scheme}://{host}: passwords do not belong in a URL")
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    asked = urlunsplit((parts.scheme.lower(), parts.netloc, path, parts.query, ""))
    return urlunsplit((parts.scheme, parts.netloc, parts.path, "", "")), asked


def _bearer(token_file: str | None) -> Sign:
    """Signs with a bearer token where the environment or the settings have one."""
    from stages.reader.http_transport import unsigned

    token = os.environ.get("DUMPSTREAM_HTTP_TOKEN")
    token_file = os.environ.get("DUMPSTREAM_HTTP_TOKEN_FILE") or token_file
    if not token and token_file:
        try:
            with Path(token_file).open(encoding="ascii") as file:
                token = file.read(1 << 16).strip()
        except (OSError, ValueError) as error:
            raise UsageError(f"http.token_file: {token_file}: {error}") from error
    if not token:
        return unsigned
    if not token.isascii() or not token.isprintable():
        raise UsageError("the bearer token has characters that no header can carry")
    return lambda _url, headers: {**headers, "Authorization": f"Bearer {token}"}
