"""What an object store must offer to take a dump in parts; `PartsSink` does the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.errors import SinkError
from stages.sink.digest import Piece
from stages.sink.parts import Part, PartLimits


class UploadGoneError(SinkError):
    """The upload that was to be resumed is no longer there: aborted, or expired."""


@dataclass(frozen=True, slots=True)
class Seal:
    """What is computed over a part's bytes before they are sent.

    Attributes:
        sha256: for the manifest, the journal and, with S3, the request's signature.
        check: the checksum that the server verifies, in the server's own spelling; may be empty.
    """

    sha256: bytes
    check: str


@dataclass(frozen=True, slots=True)
class SentPart:
    """A part that the store has acknowledged.

    Attributes:
        tag: what the store calls it: an ETag, a block id.
    """

    part: Part
    seal: Seal
    tag: str

    @property
    def piece(self) -> Piece:
        return Piece(self.part.offset, self.part.n_bytes, self.seal.sha256)


class PartStore(Protocol):
    """One object that is being uploaded. Nothing is visible under its name before `complete`.

    Every method but `seal`, `marks` and `close` raises `TransientError` where another attempt may
    succeed and `SinkError` where it may not; the caller retries. All may be called again after a
    success whose answer was lost.
    """

    target: str
    """URL without secrets, for messages."""
    limits: PartLimits

    async def open(self, *, overwrite: bool) -> None:
        """Reach the store and look for the object.

        Raises:
            SinkError: it exists and may not be overwritten; no permission; no such bucket.
        """

    async def begin(self) -> str:
        """Start an upload; its id, for `resume`."""

    async def resume(self, upload_id: str) -> Mapping[int, str] | None:
        """Tags by part number that the store has of an upload; None when it cannot say.

        Raises:
            UploadGoneError: the upload is not there any more.
        """

    def seal(self, data: memoryview) -> Seal:
        """Compute a part's checksums; blocks, so a thread calls it."""
        ...

    async def put_part(self, part: Part, data: memoryview, seal: Seal) -> str:
        """Send one part; its tag. `data` must not change until this returns."""

    def marks(self, parts: Sequence[SentPart]) -> Mapping[str, str]:
        """The checksums that the store will keep of the object; for the manifest."""
        ...

    async def put_manifest(self, data: bytes) -> None:
        """Store the manifest next to the object."""

    async def complete(self, parts: Sequence[SentPart]) -> None:
        """Make the object visible, all at once; `parts` ascend and leave no gap."""

    async def confirm(self, parts: Sequence[SentPart]) -> None:
        """See that the object is there, is ours, and is what was sent."""

    async def abort(self) -> None:
        """Discard the parts, and the manifest if it was put."""

    async def close(self) -> None:
        """Close connections; never raises."""
