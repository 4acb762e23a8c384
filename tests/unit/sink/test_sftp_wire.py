"""SFTP packets: what we send is laid out as the draft says, what we get is not trusted."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SinkError
from stages.sink import sftp_wire as wire
from stages.sink.sftp_wire import Code, Kind, OpenFlags, Reply, SftpFormatError, SftpStatusError


def reply(kind: int, body: bytes) -> Reply:
    return Reply(kind, 7, memoryview(body))


def test_a_write_is_laid_out_as_the_draft_says() -> None:
    """length, kind, id, handle, offset, length of the data; the data follows by itself."""
    head = wire.pack_write_head(9, b"hnd", 0x1_0000_0002, 5)
    assert head == struct.pack(">IBII3sQI", 1 + 4 + 7 + 8 + 4 + 5, 6, 9, 3, b"hnd", 0x100000002, 5)


def test_an_open_carries_flags_and_permissions() -> None:
    """path, flags, then attributes with the permissions only."""
    packet = wire.pack_open(1, "/é", OpenFlags.WRITE | OpenFlags.CREAT | OpenFlags.EXCL, 0o600)
    path = "/é".encode()
    body = struct.pack(">I", len(path)) + path + struct.pack(">III", 0x2A, 4, 0o600)
    assert packet == struct.pack(">IBI", 5 + len(body), 3, 1) + body


@given(st.lists(st.binary(max_size=50), max_size=5), st.integers(1, 30))
def test_packets_are_found_however_the_stream_is_cut(bodies: list[bytes], step: int) -> None:
    """Whole packets come out in order, whatever pieces they arrived in."""
    stream = b"".join(
        struct.pack(">IBI", 5 + len(body), 101, number) + body for number, body in enumerate(bodies)
    )
    received = bytearray()
    seen: list[bytes] = []
    for at in range(0, len(stream), step):
        received += stream[at : at + step]
        while (found := wire.split_packet(received)) is not None:
            assert found.id == len(seen)
            seen.append(bytes(found.body))
    assert seen == bodies
    assert not received


@pytest.mark.parametrize("length", [0, 4, wire.MAX_PACKET + 1, 0xFFFFFFFF])
def test_absurd_lengths_are_refused(length: int) -> None:
    """Memory is never promised to a length that no packet has."""
    with pytest.raises(SftpFormatError, match=f"a packet of {length} bytes"):
        wire.split_packet(bytearray(struct.pack(">I", length) + b"Last login: today"))


PARSERS: list[Callable[[Reply], object]] = [
    wire.require_ok,
    wire.parse_handle,
    lambda each: wire.parse_data(each, 100),
    wire.parse_attributes,
    wire.parse_version,
    wire.parse_limits,
    wire.parse_free_bytes,
]


@given(
    st.sampled_from(PARSERS),
    st.sampled_from([*Kind, 0, 255]),
    st.integers(0, 4),
    st.binary(max_size=80),
)
def test_whatever_comes_is_an_answer_or_one_error(
    parse: Callable[[Reply], object], kind: int, reply_id: int, body: bytes
) -> None:
    """No answer makes us fail in any other way."""
    said = ""
    try:
        parse(Reply(kind, reply_id, memoryview(body)))
    except SinkError as error:
        said = str(error)
    assert said.isprintable()


def test_a_status_becomes_the_server_s_words() -> None:
    """The message when there is one, else the code's name."""
    words = struct.pack(">I", 3) + wire.string(b"no\x1b[31m way") + wire.string(b"en")
    with pytest.raises(SftpStatusError, match=r"^no\[31m way$") as caught:
        wire.require_ok(reply(Kind.STATUS, words))
    assert caught.value.code == Code.PERMISSION_DENIED
    with pytest.raises(SftpStatusError, match="no such file"):
        wire.parse_handle(reply(Kind.STATUS, struct.pack(">I", 2)))
    with pytest.raises(SftpStatusError, match="status 99"):
        wire.require_ok(reply(Kind.STATUS, struct.pack(">I", 99)))


def test_the_end_of_a_file_is_no_error() -> None:
    """EOF is how a read past the end is answered."""
    assert wire.parse_data(reply(Kind.STATUS, struct.pack(">I", 1)), 10) == b""


def test_more_data_than_was_asked_for_is_refused() -> None:
    """A server cannot fill our memory."""
    with pytest.raises(SftpFormatError, match="11 bytes read, wanted at most 10"):
        wire.parse_data(reply(Kind.DATA, wire.string(bytes(11))), 10)


def test_another_version_is_refused() -> None:
    """Version 3 is what we speak."""
    with pytest.raises(SftpFormatError, match="version 6"):
        wire.parse_version(Reply(Kind.VERSION, 6, memoryview(b"")))


def test_attributes_come_with_or_without_their_parts() -> None:
    """Flags say what is there; owners are skipped."""
    body = struct.pack(">IQIII", 7, 123, 1, 2, 0o100600)
    assert wire.parse_attributes(reply(Kind.ATTRS, body)) == wire.Attributes(123, 0o100600)
    assert wire.parse_attributes(reply(Kind.ATTRS, bytes(4))) == wire.Attributes(None, None)
