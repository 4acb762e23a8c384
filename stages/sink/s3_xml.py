"""The few XML documents of the S3 protocol that an upload needs; pure.

Answers come from the network: they are bounded by who reads them, and anything that does not fit is
an error with the document's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, Literal, NamedTuple
from xml.sax.saxutils import escape

from pipeline.errors import FormatError
from stages.sink.xml_answer import parse_xml, text_of

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_NAMESPACE: Final = "http://s3.amazonaws.com/doc/2006-03-01/"

Checksum = Literal["sha256", "crc32c", "none"]
_CHECKSUM_TAGS: Final[dict[Checksum, str]] = {
    "sha256": "ChecksumSHA256",
    "crc32c": "ChecksumCRC32C",
}


class ListedPart(NamedTuple):
    """A part as ListParts has it."""

    number: int
    n_bytes: int
    etag: str


class PartsPage(NamedTuple):
    """One page of ListParts; `next_marker` is None on the last."""

    parts: list[ListedPart]
    next_marker: int | None


class CompletedPart(NamedTuple):
    """What Complete says of a part; `check` in base64, empty without checksums."""

    number: int
    etag: str
    check: str


def is_error(data: bytes) -> bool:
    """True when the answer is an ``<Error>``, which Complete may send with status 200."""
    return re.search(rb"<Error[\s>]", data[:1024]) is not None


def parse_upload_id(data: bytes) -> str:
    """Of InitiateMultipartUploadResult.

    Raises:
        FormatError: there is none.
    """
    return _needed(parse_xml("InitiateMultipartUploadResult", data), "UploadId")


def parse_parts(data: bytes) -> PartsPage:
    """Of ListPartsResult.

    Raises:
        FormatError: not such a document, or a number that is none.
    """
    root = parse_xml("ListPartsResult", data)
    parts = [
        ListedPart(_number(one, "PartNumber"), _number(one, "Size"), _needed(one, "ETag"))
        for one in _all(root, "Part")
    ]
    truncated = text_of(root, "IsTruncated").strip().lower() == "true"
    return PartsPage(parts, _number(root, "NextPartNumberMarker") if truncated else None)


def parse_composite(data: bytes, kind: Checksum) -> str:
    """The object's checksum in CompleteMultipartUploadResult, empty without one."""
    tag = _CHECKSUM_TAGS.get(kind)
    return text_of(parse_xml("CompleteMultipartUploadResult", data), tag) if tag else ""


def complete_document(parts: Sequence[CompletedPart], kind: Checksum) -> bytes:
    """The body of CompleteMultipartUpload; `parts` ascend."""
    return b"".join(_complete_pieces(parts, _CHECKSUM_TAGS.get(kind)))


def _complete_pieces(parts: Sequence[CompletedPart], tag: str | None) -> Iterator[bytes]:
    yield f'<CompleteMultipartUpload xmlns="{_NAMESPACE}">'.encode()
    for number, etag, check in parts:
        checksum = f"<{tag}>{escape(check)}</{tag}>" if tag and check else ""
        yield (
            f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(etag)}</ETag>{checksum}</Part>"
        ).encode()
    yield b"</CompleteMultipartUpload>"


def _all(root: Element, tag: str) -> list[Element]:
    return root.findall(f"{{*}}{tag}")


def _needed(root: Element, tag: str) -> str:
    text = text_of(root, tag).strip()
    if not text:
        raise FormatError("S3 answer", None, tag, "absent", "a value")
    return text


def _number(root: Element, tag: str) -> int:
    text = _needed(root, tag)
    if not re.fullmatch("[0-9]{1,18}", text):
        raise FormatError("S3 answer", None, tag, text[:40], "a whole number")
    return int(text)
