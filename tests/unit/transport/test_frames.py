"""Frames: every one survives the line, and nothing else is taken for one."""

from __future__ import annotations

import struct
from zlib import crc32

import msgspec
import pytest

from pipeline.flow.items import ChunkKind
from stages.transport.errors import ProtocolError
from stages.transport.frames import (
    MAGIC,
    PREFIX_SIZE,
    TO_RECEIVER,
    TO_SENDER,
    FrameParser,
    FrameType,
    checksum,
    pack,
)
from stages.transport.messages import (
    MAX_CHUNK,
    MAX_SIZE,
    Ack,
    ChunkFrame,
    Discard,
    Done,
    Frame,
    Hello,
    Ping,
    Problem,
    Same,
    Sync,
    Trailer,
    TrailerFrame,
    Welcome,
)

EVERY_TYPE = TO_RECEIVER | TO_SENDER
DATA = bytes(range(256)) * 40
TRAILER = Trailer(size=7, n_chunks=3, digest="ab" * 32)
FRAMES: list[Frame] = [
    Hello(token="0" * 32, name="dump", data_start=4096, most_bytes=MAX_SIZE, identity="é"),
    Welcome(version=1, name="dump", position=5, durable=3, committed=True),
    ChunkFrame(2**40, ChunkKind.DATA, 4096, DATA, checksum(DATA)),
    Same(3, ChunkKind.HEAD, 0, MAX_CHUNK, 0xFFFFFFFF),
    Ack(9, 7, busy=True),
    Ping(),
    Sync(),
    TrailerFrame(TRAILER, b"{}"),
    Done(name="dump"),
    Problem(text="no", retry=True),
    Discard(),
]


def on_the_line(frame: Frame) -> bytes:
    return pack(frame) + (bytes(frame.data) if isinstance(frame, ChunkFrame) else b"")


def parse(data: bytes, accepts: frozenset[FrameType] = EVERY_TYPE) -> list[Frame]:
    return list(FrameParser(accepts).feed(data))


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: type(frame).__name__)
def test_round_trip(frame: Frame) -> None:
    """What was packed is what is parsed."""
    assert parse(on_the_line(frame)) == [frame]


@pytest.mark.parametrize("step", [1, 2, 19, 20, 21, 1000])
def test_any_cut_of_the_stream(step: int) -> None:
    """However the bytes are divided on the way, the same frames come out."""
    line = b"".join(map(on_the_line, FRAMES))
    parser = FrameParser(EVERY_TYPE)

    frames = [
        frame for at in range(0, len(line), step) for frame in parser.feed(line[at : at + step])
    ]

    assert frames == FRAMES
    assert parser.between_frames


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: type(frame).__name__)
def test_every_flipped_bit_is_noticed(frame: Frame) -> None:
    """No bit of a frame can change without an error, or a wait for bytes that never come."""
    line = on_the_line(frame)
    for at in range(len(line)):
        changed = bytearray(line)
        changed[at] ^= 1 << at % 8
        try:
            assert parse(bytes(changed)) == []
        except ProtocolError:
            continue


@pytest.mark.parametrize("accepts", [TO_RECEIVER, TO_SENDER], ids=["receiver", "sender"])
def test_frames_for_the_other_end_are_refused(accepts: frozenset[FrameType]) -> None:
    """Each end takes its own types only, and says so from the first bytes."""
    for frame in FRAMES:
        line = on_the_line(frame)
        start = line[:PREFIX_SIZE]
        if FrameType(start[2]) in accepts:
            assert parse(line, accepts) == [frame]
        else:
            with pytest.raises(ProtocolError, match="not for this end"):
                parse(start, accepts)


@pytest.mark.parametrize("kind", FrameType)
def test_lengths_are_bounded_before_anything_is_held(kind: FrameType) -> None:
    """A claim of 4 GiB is refused at the prefix; nothing of that size is ever allocated."""
    for lengths in ((0xFFFFFFFF, 0), (0, 0xFFFFFFFF)):
        prefix = struct.pack(">2sBBIIII", MAGIC, kind, 0, *lengths, 0, 0)
        with pytest.raises(ProtocolError, match="wanted at most"):
            parse(prefix)


def framed(kind: FrameType, fields: bytes, data: bytes = b"") -> bytes:
    """A frame with right checksums, whatever is in it."""
    start = struct.pack(">2sBBIII", MAGIC, kind, 0, len(fields), len(data), checksum(data))
    return start + struct.pack(">I", crc32(fields, crc32(start))) + fields + data


@pytest.mark.parametrize(
    ("kind", "fields", "data"),
    [
        (FrameType.CHUNK, struct.pack(">QQB7x", 0, 0, 4), b"x"),
        (FrameType.CHUNK, struct.pack(">QQB7x", 0, 0, 0), b""),
        (FrameType.CHUNK, struct.pack(">QQB7x", 0, MAX_SIZE, 0), b"x"),
        (FrameType.CHUNK, b"short", b"x"),
        (FrameType.SAME, struct.pack(">QQB3xII4x", 0, 0, 0, 0, 0), b""),
        (FrameType.SAME, struct.pack(">QQB3xII4x", 0, 0, 0, MAX_CHUNK + 1, 0), b""),
        (FrameType.SAME, struct.pack(">QQB3xII4x", 0, 2**64 - 1, 0, 1, 0), b""),
        (FrameType.ACK, struct.pack(">QQB7x", 1, 2, 0), b""),
        (FrameType.HELLO, b"{", b""),
        (FrameType.HELLO, b"{}", b""),
        (FrameType.HELLO, b"[" * 2000, b""),
        (FrameType.HELLO, b'{"token":"%s"}' % (b"0" * 33), b""),
        (FrameType.HELLO, b'{"token":"%s\n"}' % (b"0" * 32), b""),
        (FrameType.HELLO, b'{"token":"%s","most_bytes":-1}' % (b"0" * 32), b""),
        (FrameType.HELLO, b'{"token":"%s","heartbeat_s":1e999}' % (b"0" * 32), b""),
        (FrameType.HELLO, b'{"token":"%s","heartbeat_s":0}' % (b"0" * 32), b""),
        (FrameType.HELLO, b'{"token":"%s","name":"%s"}' % (b"0" * 32, b"n" * 256), b""),
        (FrameType.TRAILER, b'{"size":1,"n_chunks":1,"digest":"AB"}', b""),
        (FrameType.WELCOME, b'{"version":1,"name":3,"position":0,"durable":0}', b""),
        (FrameType.ERROR, b"\xff\xfe", b""),
    ],
)
def test_fields_out_of_bounds(kind: FrameType, fields: bytes, data: bytes) -> None:
    """Right checksums do not make wrong values right."""
    with pytest.raises(ProtocolError):
        parse(framed(kind, fields, data))


def test_corruption_is_told_from_malice() -> None:
    """A wrong checksum may be the line's fault: the upload may be tried again."""
    line = bytearray(on_the_line(FRAMES[2]))
    line[-1] ^= 1
    with pytest.raises(ProtocolError) as caught:
        parse(bytes(line))
    assert caught.value.corrupt

    with pytest.raises(ProtocolError) as caught:
        parse(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert not caught.value.corrupt


def test_unknown_keys_of_newer_peers_are_ignored() -> None:
    """A HELLO may say more than this version knows."""
    fields = msgspec.json.encode({"token": "1" * 32, "colour": "blue"})

    assert parse(framed(FrameType.HELLO, fields)) == [Hello(token="1" * 32)]
