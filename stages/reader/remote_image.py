"""Images over a line: what opens them, and the wrapper that says that they are slow."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SinkError, UsageError
from pipeline.memory.addresses import ByteArray, PfnArray
from pipeline.memory.bitmap import PageBitmap
from pipeline.memory.extents import ExtentSet
from stages.reader.image import Image, ImageInfo
from stages.reader.remote_file import RemoteFile
from stages.reader.remote_link import Link, SourceError

if TYPE_CHECKING:
    from pipeline.config.settings import Settings
    from pipeline.config.targets import HttpSettings
    from stages.reader.http_transport import Sign
    from stages.reader.remote_file import Transport

_HTTP_IN_FLIGHT: Final = 32
"""Connections: enough for 1.6 GB/s at 20 ms in parts of 1 MiB, and no server minds them."""
_LOCAL_IN_FLIGHT: Final = 4096
"""A device's queues: an NVMe disk takes 1,023 requests in each, and has one for each CPU."""
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

    place = _split_url(path)
    sign = _signer(place, settings.http)
    return HttpTransport(place.shown, place.url, settings.net, link, sign, pause)


class _Place(NamedTuple):
    """A source's URL, taken apart."""

    shown: str
    """For people: without its query, which may be a secret."""
    url: str
    """To ask, encoded."""
    host: str
    user: str | None


def _split_url(url: str) -> _Place:
    """Take the URL of a source apart.

    Raises:
        UsageError: no host, or a password where every process list shows it.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        name = host if host.isascii() else host.encode("idna").decode("ascii")
    except ValueError as error:
        raise UsageError(f"not a URL: {error}") from error
    if not host:
        raise UsageError(f"{parts.scheme}://: a source needs a host")
    if parts.password is not None:
        raise UsageError(
            f"{parts.scheme}://{host}: a password must not stand in a URL; netrc is the place"
        )
    netloc = (f"[{name}]" if ":" in name else name) + ("" if port is None else f":{port}")
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    query = quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
    asked = urlunsplit((parts.scheme.lower(), netloc, path, query, ""))
    shown = urlunsplit((parts.scheme, netloc, parts.path, "", ""))
    return _Place(shown, asked, host, unquote(parts.username) if parts.username else None)


def _signer(place: _Place, http: HttpSettings) -> Sign:
    """Says who we are to the server that the URL names, and to no other that it sends us to.

    Raises:
        SourceError: a file of secrets that was named cannot be read, or holds nothing of use.
    """
    from stages.reader.http_connections import origin_of
    from stages.reader.http_transport import unsigned
    from stages.sink.http_auth import authorization
    from stages.sink.http_url import HttpTarget

    target = HttpTarget(place.shown, place.host, place.user, "")
    try:
        found = authorization(target, os.environ, token_file=http.token_file, netrc_file=http.netrc)
    except SinkError as error:  # the same files serve targets
        raise SourceError(str(error)) from error
    if not found:
        return unsigned
    if not target.is_secure:
        from pipeline.obs.log import log_event

        log_event("credentials_in_clear", "warning", source=place.shown)
    home = origin_of(place.url)
    return lambda url, headers: {**headers, **found} if origin_of(url) == home else {**headers}
