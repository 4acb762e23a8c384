"""What an upload in parts writes into its journal, and reads back to go on.

Records: ``upload`` (id, and the grid that part numbers refer to) once an upload has begun, then
``part`` for each part that the store acknowledged. A second ``upload`` makes the first obsolete.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from msgspec import Struct, ValidationError, convert

from pipeline.errors import FormatError, SinkError
from stages.sink.journal import Journal
from stages.sink.part_store import Seal, SentPart
from stages.sink.parts import Grid, Part


class _UploadRecord(Struct, frozen=True):
    upload_id: str
    data_start: int
    low_part: int
    data_part: int


class _PartRecord(Struct, frozen=True):
    number: int
    n_bytes: int
    sha256: str
    check: str
    tag: str


@dataclass(frozen=True, slots=True)
class FormerUpload:
    """An upload that another process began; parts by number."""

    upload_id: str
    grid: Grid
    parts: dict[int, SentPart]

    def still_stored(self, tags: Mapping[int, str]) -> FormerUpload:
        """Without the parts that the store does not have, or has with another tag."""
        parts = {
            number: sent for number, sent in self.parts.items() if tags.get(number) == sent.tag
        }
        return FormerUpload(self.upload_id, self.grid, parts)

    def require_grid(self, grid: Grid) -> None:
        """Refuse a dump that is laid out differently.

        Raises:
            SinkError: it is.
        """
        if grid != self.grid:
            raise SinkError(
                f"the dump's layout is {grid}, but what was sent before had {self.grid}: "
                "the source or the settings changed"
            )

    def find(self, part: Part, seal: Seal) -> SentPart | None:
        """The part as it was sent before, None if it was not.

        Raises:
            SinkError: it was sent with other contents.
        """
        sent = self.parts.get(part.number)
        if sent is not None and (sent.part != part or sent.seal.sha256 != seal.sha256):
            raise SinkError(
                f"part {part.number} is not what was sent before (SHA-256 {seal.sha256.hex()}, "
                f"then {sent.seal.sha256.hex()}): the source or the settings changed"
            )
        return sent


def note_upload(journal: Journal, upload_id: str, grid: Grid) -> None:
    """Record that an upload has begun."""
    journal.append(
        "upload",
        upload_id=upload_id,
        data_start=grid.data_start,
        low_part=grid.low_part,
        data_part=grid.data_part,
    )


def note_part(journal: Journal, sent: SentPart) -> None:
    """Record that a part is stored."""
    journal.append(
        "part",
        number=sent.part.number,
        n_bytes=sent.part.n_bytes,
        sha256=sent.seal.sha256.hex(),
        check=sent.seal.check,
        tag=sent.tag,
    )


def read_former(journal: Journal) -> FormerUpload | None:
    """The last upload in `journal`, None when none had begun.

    Raises:
        FormatError: a record lacks something or is out of bounds.
    """
    former: FormerUpload | None = None
    try:
        for record in journal.records:
            if record.get("kind") == "upload":
                upload = convert(record, _UploadRecord)
                former = FormerUpload(upload.upload_id, _grid(upload), {})
            elif record.get("kind") == "part" and former is not None:
                sent = _sent(convert(record, _PartRecord), former.grid)
                former.parts[sent.part.number] = sent
    except (ValidationError, ValueError) as error:
        raise FormatError("journal", None, "record", str(error), "an upload's record") from error
    return former


def _grid(record: _UploadRecord) -> Grid:
    if record.data_start < 0 or min(record.low_part, record.data_part) < 1:
        raise ValueError("an upload without a size")
    return Grid(record.data_start, record.low_part, record.data_part)


def _sent(record: _PartRecord, grid: Grid) -> SentPart:
    sha256 = bytes.fromhex(record.sha256)
    if record.number < 1 or len(sha256) != 32:
        raise ValueError(f"part {record.number} with {len(sha256)} bytes of SHA-256")
    part = grid.part(record.number)._replace(n_bytes=record.n_bytes)
    return SentPart(part, Seal(sha256, record.check), record.tag)
