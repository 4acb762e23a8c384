"""The manifest that lies next to a dump: what it is, what it was made from, and its digests.

``NAME.manifest.json``, UTF-8 JSON, one object; unknown keys are ignored, a higher `version` is
refused. `docs/manifest.md` describes every key; `stages.sink.digest` how to recompute the digests.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct, field

from pipeline.errors import FormatError
from pipeline.flow.items import Totals
from stages.sink.digest import MAX_PIECES, SCHEME, Piece, whole_digest

VERSION: Final = 1
SUFFIX: Final = ".manifest.json"
MAX_BYTES: Final = 4 << 20
"""More than `MAX_PIECES` pieces and every setting take."""
_READ_BYTES: Final = 8 << 20

Form = Literal["kdump", "elf", "log", "flattened", "encrypted"]
ReadRange = Callable[[int, int], Awaitable[bytes]]
"""Reads `length` bytes at `offset` of the stored dump; fewer at its end."""


class SourceIdentity(Struct, frozen=True):
    """What the dump was made from; enough to tell that a second run reads the same image.

    Attributes:
        mtime_ns: None where it means nothing (/proc/vmcore).
        head_sha256: over the first MiB, which holds the notes with VMCOREINFO and the crash time.
    """

    path: str
    size: int
    mtime_ns: int | None
    head_sha256: str


class PageCounts(Struct, frozen=True):
    """What became of the pages that the image has; `excluded` by class of the dump level."""

    kept: int
    zero: int = 0
    missing: int = 0
    shared: int = 0
    raw: int = 0
    coded: int = 0
    excluded: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, totals: Totals, excluded: dict[str, int] | None = None) -> PageCounts:
        """From the books of a run."""
        return cls(
            kept=totals.n_pages,
            zero=totals.zero_pages,
            missing=totals.missing_pages,
            shared=totals.shared_pages,
            raw=totals.raw_pages,
            coded=totals.coded_pages,
            excluded=excluded or {},
        )


class DumpFacts(Struct, frozen=True):
    """What a run knows and a sink does not; the run hands it over before the dump ends.

    Attributes:
        settings: those in force, by dotted key, without secrets.
        excluded: pages left out, by class.
        started: RFC 3339, UTC.
    """

    source: SourceIdentity | None = None
    kernel_release: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    excluded: dict[str, int] = field(default_factory=dict)
    started: str | None = None


class Digest(Struct, frozen=True):
    """`pieces`: offset, length and hexadecimal SHA-256 of each, ascending."""

    whole: str
    pieces: list[tuple[int, int, str]]
    scheme: str = SCHEME

    @classmethod
    def of(cls, pieces: Sequence[Piece]) -> Digest:
        listed = [(piece.offset, piece.length, piece.sha256.hex()) for piece in pieces]
        return cls(whole_digest(pieces), listed)


class Manifest(Struct, frozen=True, kw_only=True):
    """One dump.

    Attributes:
        name: of the dump, without a path.
        size: bytes of the stored object or file.
        form: ``flattened`` and ``encrypted`` are not read by crash as they are; ``log`` is text.
        holds: what a flattened stream makes up once it is rebuilt; None in any other form.
        stored: checksums that the store keeps of the whole object (``sha256``, ``crc32c``,
            ``etag``), as it spells them; what `verify` compares without downloading.
        written_by: program and version.
        finished: RFC 3339, UTC.
    """

    version: int = VERSION
    name: str
    size: int
    form: Form
    holds: Form | None = None
    digest: Digest
    pages: PageCounts
    facts: DumpFacts
    written_by: str
    finished: str
    stored: dict[str, str] = field(default_factory=dict)

    def pack(self) -> bytes:
        """The file's bytes."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"

    def pieces(self) -> list[Piece]:
        return [Piece(at, size, bytes.fromhex(text)) for at, size, text in self.digest.pieces]


def build_manifest(
    *,
    name: str,
    form: Form,
    pieces: Sequence[Piece],
    totals: Totals,
    facts: DumpFacts,
    stored: Mapping[str, str] | None = None,
    holds: Form | None = None,
) -> Manifest:
    """The manifest of a dump whose bytes are all acknowledged; `pieces` must be ascending."""
    from pipeline.obs.version import own_version

    return Manifest(
        name=name,
        size=pieces[-1].end if pieces else 0,
        form=form,
        holds=holds,
        digest=Digest.of(pieces),
        pages=PageCounts.of(totals, facts.excluded),
        facts=facts,
        written_by=f"dumpstream {own_version()}",
        finished=now_text(),
        stored=dict(stored or {}),
    )


def now_text() -> str:
    """The time in UTC as manifests and journals write it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def parse_manifest(data: bytes) -> Manifest:
    """A manifest that is consistent in itself.

    Raises:
        FormatError: too long, no JSON, a key missing or of the wrong type, a newer version, pieces
            that are no partition of the dump, or a whole digest that is not that of the pieces.
    """
    if len(data) > MAX_BYTES:
        raise FormatError("manifest", None, "size", len(data), f"at most {MAX_BYTES} bytes")
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as error:
        raise FormatError("manifest", None, "JSON", str(error), "a manifest object") from error
    if not 1 <= manifest.version <= VERSION:
        raise FormatError("manifest", None, "version", manifest.version, f"1 to {VERSION}")
    _check_digest(manifest)
    return manifest


def _check_digest(manifest: Manifest) -> None:
    digest = manifest.digest
    if digest.scheme != SCHEME:
        raise FormatError("manifest", None, "digest.scheme", digest.scheme, SCHEME)
    if len(digest.pieces) > MAX_PIECES + 4:
        raise FormatError(
            "manifest", None, "digest.pieces", len(digest.pieces), f"at most {MAX_PIECES + 4}"
        )
    if any(len(text) != 64 or not _is_hex(text) for _, _, text in digest.pieces):
        raise FormatError("manifest", None, "digest.pieces", "no SHA-256", "64 hexadecimal digits")
    pieces = manifest.pieces()
    end = pieces[-1].end if pieces else 0
    if end != manifest.size:
        raise FormatError("manifest", None, "digest.pieces", f"end at {end}", f"{manifest.size}")
    try:
        whole = whole_digest(pieces)
    except ValueError as error:
        raise FormatError("manifest", None, "digest.pieces", str(error), "no gaps") from error
    if whole != digest.whole:
        raise FormatError("manifest", None, "digest.whole", digest.whole, whole)


def _is_hex(text: str) -> bool:
    return all(digit in "0123456789abcdef" for digit in text)


async def wrong_pieces(
    pieces: Sequence[Piece], read: ReadRange, step: int = _READ_BYTES
) -> AsyncIterator[Piece]:
    """Those of `pieces` whose bytes, as `read` gives them, are not what they should be.

    Args:
        pieces: looked at one after the other.
        read: gives fewer bytes than asked for only at the end.
        step: most bytes that it is asked for at a time.
    """
    for piece in pieces:
        digest = hashlib.sha256()
        at = piece.offset
        for stop in _steps(piece, step):
            data = await read(at, stop - at)
            digest.update(data)
            if len(data) < stop - at:
                break
            at = stop
        if digest.digest() != piece.sha256:
            yield piece


def _steps(piece: Piece, step: int) -> list[int]:
    """Ends of the reads that make up `piece`."""
    starts = [*range(piece.offset, piece.end, step), piece.end]
    return [stop for _, stop in pairwise(starts)]


def read_manifest(path: Path) -> Manifest:
    """The manifest in a file.

    Raises:
        FormatError: see `parse_manifest`.
        OSError: not readable.
    """
    with path.open("rb") as file:
        return parse_manifest(file.read(MAX_BYTES + 1))
