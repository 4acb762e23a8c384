"""What each kind of target holds in memory: its own buffers, beside the channels.

An object store takes at most 10,000 parts, so the parts of a large dump are large, and five of them
may be open at once (the head's, the one that descriptors fill, the one where data begins, the one
that data fills, and one on its way): below that no upload gets through, whatever the budget says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from pipeline.config.resolved import ImageFacts
from pipeline.config.settings import KIB, MIB, Settings

_MOST_PARTS: Final = 10_000
_OPEN_PARTS: Final = 5
_LEAST_S3_PART: Final = 5 * MIB
_AZURE_BLOCK: Final = 4 * MIB
_LEAST_PIECE: Final = 256 * KIB
_LEAST_SSH_WINDOW: Final = 1 * MIB
_LEAST_TCP_WINDOW: Final = 256 * KIB


class TargetBuffer(Struct, frozen=True):
    """Of all targets of one kind.

    Attributes:
        key: the setting that says how large it is.
        n_targets: that have one each.
        n_bytes: of one.
        least: below which there is no dump.
    """

    key: str
    n_targets: int
    n_bytes: int
    least: int

    @property
    def total(self) -> int:
        return self.n_targets * self.n_bytes

    def halved(self, least: int) -> TargetBuffer:
        """Half of it, but not below `least` nor its own least."""
        smaller = max(self.n_bytes // 2, least, self.least)
        return replace(self, n_bytes=min(smaller, self.n_bytes))

    def capped(self, most: int) -> TargetBuffer:
        """Not more than `most`, but for what it needs."""
        return replace(self, n_bytes=max(min(self.n_bytes, most), self.least))


def most_demanding(settings: Settings, image: ImageFacts) -> tuple[TargetBuffer, ...]:
    """Those of the targets that hold most: the first ones, at once, or one of the next, alone."""
    found = [find_buffers(settings, group, image.most_bytes) for group in _groups(image)]
    return max(found, key=lambda buffers: sum(each.total for each in buffers))


def _groups(image: ImageFacts) -> list[tuple[str, ...]]:
    return [image.schemes, *((scheme,) for scheme in image.next_schemes)]


def find_buffers(
    settings: Settings, schemes: Sequence[str], most_bytes: int
) -> tuple[TargetBuffer, ...]:
    """Buffers of targets that are written to at once.

    Args:
        settings: how large each may be.
        schemes: of the targets, one each; empty for a path or standard output.
        most_bytes: of the dump, if no page compresses; 0 when that is not known.
    """
    counts: dict[str, int] = {}
    for scheme in schemes:
        counts[scheme] = counts.get(scheme, 0) + 1
    part = -(-most_bytes // _MOST_PARTS)
    found = (_buffer(settings, scheme, n, part) for scheme, n in sorted(counts.items()))
    return tuple(_joined([each for each in found if each is not None]))


def _buffer(settings: Settings, scheme: str, n_targets: int, part: int) -> TargetBuffer | None:
    match scheme:
        case "s3":
            parts = max(_number(settings.s3.part_size), _LEAST_S3_PART, part) * _OPEN_PARTS
            wanted = max(settings.s3.buffer_bytes, parts)
            return TargetBuffer("s3.buffer_bytes", n_targets, wanted, parts)
        case "az":
            parts = max(_number(settings.azure.block_size) or _AZURE_BLOCK, part) * _OPEN_PARTS
            wanted = max(settings.azure.buffer_bytes, parts)
            return TargetBuffer("azure.buffer_bytes", n_targets, wanted, parts)
        case "http" | "https":
            least = min(_LEAST_PIECE * _OPEN_PARTS, settings.http.buffer_bytes)
            return TargetBuffer(
                "http.buffer_bytes", n_targets, settings.http.buffer_bytes, max(least, MIB)
            )
        case "sftp":
            window = settings.ssh.window_bytes
            return TargetBuffer("ssh.window_bytes", n_targets, window, _LEAST_SSH_WINDOW)
        case "tcp" | "tls":
            window = settings.tcp.window_bytes
            return TargetBuffer("tcp.window_bytes", n_targets, window, _LEAST_TCP_WINDOW)
    return None


def _number(size: int | str) -> int:
    return size if isinstance(size, int) else 0


def _joined(buffers: Sequence[TargetBuffer]) -> Iterator[TargetBuffer]:
    """One for each setting: ``http`` and ``https`` have the same."""
    by_key: dict[str, TargetBuffer] = {}
    for each in buffers:
        same = by_key.get(each.key)
        n_targets = each.n_targets + (0 if same is None else same.n_targets)
        by_key[each.key] = replace(each, n_targets=n_targets)
    yield from by_key.values()


def fit_targets(settings: Settings, image: ImageFacts, buffers: Sequence[TargetBuffer]) -> Settings:
    """`settings` with the sizes that `buffers` became; targets of other groups get no more."""
    if not buffers:
        return settings
    most = sum(each.total for each in buffers)
    others = [
        each.capped(most)
        for group in _groups(image)
        for each in find_buffers(settings, group, image.most_bytes)
    ]
    for each in (*others, *buffers):
        settings = _with_size(settings, each.key, each.n_bytes)
    http = settings.http
    # The pieces have to fit as often as parts may be open at once.
    piece = max(min(http.piece_bytes, http.buffer_bytes // _OPEN_PARTS), _LEAST_PIECE)
    uses_http = any(each.key == "http.buffer_bytes" for each in (*others, *buffers))
    return _with_size(settings, "http.piece_bytes", piece) if uses_http else settings


def _with_size(settings: Settings, key: str, n_bytes: int) -> Settings:
    section, name = key.split(".")
    changed = replace(getattr(settings, section), **{name: n_bytes})
    return replace(settings, **{section: changed})
