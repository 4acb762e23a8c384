"""What the two ends say to each other; `stages.transport.frames` turns it into bytes and back.

Texts and numbers have bounds here, so that what was parsed is also sane.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, TypeAlias

from msgspec import Meta, Struct

from pipeline.flow.items import ChunkKind

VERSION: Final = 1
MAX_CHUNK: Final = 4 << 20
"""Bytes of data in a CHUNK."""
MAX_SIZE: Final = 1 << 50
"""Bytes of a dump; no offset reaches it."""

_Count: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_SIZE)]
Token: TypeAlias = Annotated[str, Meta(pattern="^[0-9a-f]{32}\\Z")]


class Hello(Struct, frozen=True, kw_only=True):
    """First frame of every connection.

    Attributes:
        oldest, newest: protocol versions that the sender speaks.
        name: of the dump; empty lets the receiver choose.
        token: 128 random bits; whoever has it may go on with the upload.
        identity: what is sent, in words, for the receiver's log.
        data_start, most_bytes: the outline; both 0 while it is not known yet.
        overwrite: an existing dump of that name may go, if the receiver allows it.
        finishing: every chunk was acknowledged, what is left is the trailer.
        heartbeat_s: longest silence that the sender will keep, and wants.
    """

    oldest: Annotated[int, Meta(ge=0, le=1 << 16)] = VERSION
    newest: Annotated[int, Meta(ge=0, le=1 << 16)] = VERSION
    name: Annotated[str, Meta(max_length=255)] = ""
    token: Token
    identity: Annotated[str, Meta(max_length=1024)] = ""
    data_start: _Count = 0
    most_bytes: _Count = 0
    overwrite: bool = False
    finishing: bool = False
    heartbeat_s: Annotated[float, Meta(ge=0.05, le=60)] = 5.0


class Welcome(Struct, frozen=True, kw_only=True):
    """The answer to HELLO.

    Attributes:
        version: of the protocol from here on.
        name: under which the dump will be filed.
        position: chunks below this number are written.
        durable: chunks below this number survive a power cut.
        committed: the dump is whole and has its name; only a TRAILER may follow.
    """

    version: Annotated[int, Meta(ge=0, le=1 << 16)]
    name: Annotated[str, Meta(max_length=255)]
    position: _Count
    durable: _Count
    committed: bool = False


class Trailer(Struct, frozen=True, kw_only=True):
    """The end of a dump; the manifest is the frame's data."""

    size: _Count
    n_chunks: _Count
    digest: Annotated[str, Meta(pattern="^[0-9a-f]{64}\\Z")]


class Done(Struct, frozen=True, kw_only=True):
    """The dump has its name and survives a power cut."""

    name: Annotated[str, Meta(max_length=255)]


class Problem(Struct, frozen=True, kw_only=True):
    """Why the receiver ends the connection.

    Attributes:
        text: one line for people.
        retry: the same may work on another connection, now or later.
    """

    text: Annotated[str, Meta(max_length=1024)]
    retry: bool = False


@dataclass(frozen=True, slots=True)
class ChunkFrame:
    """Bytes for one place of the dump; numbers are consecutive from 0."""

    seq: int
    kind: ChunkKind
    offset: int
    data: memoryview | bytes
    crc: int
    """CRC-32 of `data`."""

    def same(self) -> Same:
        return Same(self.seq, self.kind, self.offset, len(self.data), self.crc)


@dataclass(frozen=True, slots=True)
class Same:
    """A chunk that the receiver said it has, for comparison: everything but its bytes."""

    seq: int
    kind: ChunkKind
    offset: int
    length: int
    crc: int


@dataclass(frozen=True, slots=True)
class Ack:
    """Chunks below `written` survive the receiver's death, below `durable` a power cut.

    `busy`: the receiver works on what it was sent last, so silence is no stall.
    """

    written: int
    durable: int
    busy: bool = False


@dataclass(frozen=True, slots=True)
class TrailerFrame:
    trailer: Trailer
    manifest: bytes


@dataclass(frozen=True, slots=True)
class Ping:
    """The sender lives."""


@dataclass(frozen=True, slots=True)
class Sync:
    """A request to make everything durable, answered by ACKs until `durable` says so."""


@dataclass(frozen=True, slots=True)
class Discard:
    """The upload is given up; the receiver may forget it if it holds nothing usable."""


Frame: TypeAlias = (
    Hello
    | Welcome
    | ChunkFrame
    | Same
    | Ack
    | Ping
    | Sync
    | TrailerFrame
    | Done
    | Problem
    | Discard
)
