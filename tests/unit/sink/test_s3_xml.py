"""The XML of the S3 protocol: what servers send, and what they should not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import FormatError
from stages.sink.s3_xml import (
    CompletedPart,
    ListedPart,
    PartsPage,
    complete_document,
    is_error,
    parse_composite,
    parse_parts,
    parse_upload_id,
)
from stages.sink.xml_answer import ErrorAnswer, parse_error

NAMESPACE = b'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


def test_answers_are_read_with_and_without_namespace() -> None:
    """AWS sends a namespace, others do not; both are understood."""
    for space in (NAMESPACE, b""):
        assert parse_upload_id(
            b"<InitiateMultipartUploadResult %s><UploadId>a/b</UploadId>"
            b"</InitiateMultipartUploadResult>" % space
        ) == "a/b"  # fmt: skip
        data = (
            b"<ListPartsResult %s><IsTruncated>true</IsTruncated>"
            b"<NextPartNumberMarker>7</NextPartNumberMarker><Part><PartNumber>7</PartNumber>"
            b"<Size>12</Size><ETag>&quot;x&quot;</ETag></Part></ListPartsResult>" % space
        )
        assert parse_parts(data) == PartsPage([ListedPart(7, 12, '"x"')], 7)


def test_last_page_has_no_marker() -> None:
    """A list that is not cut ends, whatever marker stands in it."""
    data = b"<ListPartsResult><NextPartNumberMarker>0</NextPartNumberMarker></ListPartsResult>"

    assert parse_parts(data) == PartsPage([], None)


def test_complete_lists_parts_with_their_checksums() -> None:
    """Numbers, ETags and checksums, with what XML needs escaped."""
    document = complete_document(
        [CompletedPart(1, '"a&b"', "x="), CompletedPart(2, "c", "")], "sha256"
    )

    assert document == (
        b"<CompleteMultipartUpload %s><Part><PartNumber>1</PartNumber><ETag>\"a&amp;b\"</ETag>"
        b"<ChecksumSHA256>x=</ChecksumSHA256></Part><Part><PartNumber>2</PartNumber><ETag>c</ETag>"
        b"</Part></CompleteMultipartUpload>" % NAMESPACE
    )  # fmt: skip


def test_composite_is_that_of_the_kind_asked_for() -> None:
    """Another checksum, or none, is an empty answer."""
    name = b"CompleteMultipartUploadResult"
    data = b"<%s><ChecksumCRC32C>a-1</ChecksumCRC32C></%s>" % (name, name)

    assert parse_composite(data, "crc32c") == "a-1"
    assert parse_composite(data, "sha256") == ""
    assert parse_composite(data, "none") == ""


def test_error_is_one_printable_line() -> None:
    """What a server says is shown as one line of bounded length."""
    data = b"<Error><Code>Slow\tDown</Code><Message>go\x7f away\nRequestId: 7</Message></Error>"

    assert is_error(data)
    assert parse_error(data) == ErrorAnswer("Slow Down", "go  away")
    assert len(parse_error(b"<Error><Code>%s</Code></Error>" % (b"x" * 9999)).code) < 250


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>",
        b"<ListPartsResult><Part></Part></ListPartsResult>",
        b"<ListPartsResult><Part><PartNumber>-1</PartNumber></Part></ListPartsResult>",
        b"<ListPartsResult><IsTruncated>true</IsTruncated></ListPartsResult>",
        b'<!DOCTYPE x [<!ENTITY a "b">]><ListPartsResult/>',
    ],
)
def test_other_documents_are_refused(data: bytes) -> None:
    """What is no list of parts says which field was wrong."""
    with pytest.raises(FormatError, match="answer"):
        parse_parts(data)


@given(st.binary(max_size=300))
def test_garbage_is_never_a_traceback(data: bytes) -> None:
    """Whatever comes over the network is an error of ours or an empty answer."""
    assert isinstance(parse_error(data), ErrorAnswer)
    assert is_error(data) in (True, False)
    for parse in (parse_parts, parse_upload_id):
        with pytest.raises(FormatError):
            parse(data)
