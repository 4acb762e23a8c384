"""SFTP version 3 on the wire: requests packed, answers parsed, nothing sent.

References:
    draft-ietf-secsh-filexfer-02, the version that OpenSSH and nearly every other server speak
    OpenSSH PROTOCOL, section 4: posix-rename, statvfs, fsync, limits

Every packet, in both directions, big-endian::

    uint32 length | byte kind | uint32 id | ...        length counts from kind on

INIT and VERSION carry the version where others have their id. A string is uint32 length, bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

from pipeline.errors import SinkError

VERSION: Final = 3
MAX_PACKET: Final = 512 << 10
"""Of an answer. OpenSSH never sends more than 256 KiB; what claims more is not SFTP."""
_MAX_HANDLE: Final = 256
_LENGTH: Final = struct.Struct(">I")
_HEAD: Final = struct.Struct(">IBI")
"""length, kind, id."""
_PLACE: Final = struct.Struct(">QI")
"""offset in the file, bytes."""


class Kind(IntEnum):
    """SSH_FXP_..."""

    INIT = 1
    VERSION = 2
    OPEN = 3
    READ = 5
    WRITE = 6
    LSTAT = 7
    FSTAT = 8
    FSETSTAT = 10
    REMOVE = 13
    RENAME = 18
    STATUS = 101
    HANDLE = 102
    DATA = 103
    ATTRS = 105
    EXTENDED = 200
    EXTENDED_REPLY = 201


class Code(IntEnum):
    """SSH_FX_..."""

    OK = 0
    EOF = 1
    NO_SUCH_FILE = 2
    PERMISSION_DENIED = 3
    FAILURE = 4
    BAD_MESSAGE = 5
    NO_CONNECTION = 6
    CONNECTION_LOST = 7
    OP_UNSUPPORTED = 8


class OpenFlags(IntFlag):
    """SSH_FXF_..."""

    READ = 0x01
    WRITE = 0x02
    CREAT = 0x08
    EXCL = 0x20


class _AttrFlags(IntFlag):
    SIZE = 0x01
    UIDGID = 0x02
    PERMISSIONS = 0x04


class SftpStatusError(SinkError):
    """The server answered a request with anything but OK."""

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        known = Code.__members__.items()
        names = [name.replace("_", " ").lower() for name, value in known if value == code]
        super().__init__(message or (names[0] if names else f"status {code}"))


class SftpFormatError(SinkError):
    """What came from the server is not SFTP."""


class Reply(NamedTuple):
    """One answer."""

    kind: int
    id: int
    """Of the request; the version for VERSION."""
    body: memoryview


@dataclass(frozen=True, slots=True)
class Attributes:
    """What the server told of a file; None where it told nothing."""

    size: int | None
    permissions: int | None


def string(data: bytes) -> bytes:
    """`data` as a string of the protocol."""
    return _LENGTH.pack(len(data)) + data


def pack(kind: Kind, request_id: int, body: bytes) -> bytes:
    """A whole request."""
    return _HEAD.pack(5 + len(body), kind, request_id) + body


def pack_open(request_id: int, path: str, flags: OpenFlags, mode: int) -> bytes:
    """Open `path`; `mode` is for a file that gets created."""
    attributes = struct.pack(">II", _AttrFlags.PERMISSIONS, mode)
    body = string(encode_path(path)) + _LENGTH.pack(flags) + attributes
    return pack(Kind.OPEN, request_id, body)


def pack_set_mode(request_id: int, handle: bytes, mode: int) -> bytes:
    """Give an open file its permissions."""
    attributes = struct.pack(">II", _AttrFlags.PERMISSIONS, mode)
    return pack(Kind.FSETSTAT, request_id, string(handle) + attributes)


def pack_write_head(request_id: int, handle: bytes, offset: int, n_bytes: int) -> bytes:
    """What stands before the `n_bytes` of a write."""
    place = string(handle) + _PLACE.pack(offset, n_bytes)
    return _HEAD.pack(5 + len(place) + n_bytes, Kind.WRITE, request_id) + place


def pack_read(request_id: int, handle: bytes, offset: int, n_bytes: int) -> bytes:
    """Read up to `n_bytes`."""
    return pack(Kind.READ, request_id, string(handle) + _PLACE.pack(offset, n_bytes))


def encode_path(path: str) -> bytes:
    """A path's bytes, those that were no UTF-8 on our command line included."""
    return path.encode("utf-8", "surrogateescape")


class Fields:
    """Takes fields off a packet's body, one after the other."""

    def __init__(self, body: memoryview, what: str) -> None:
        self._body = body
        self._what = what
        self._at = 0

    def take(self, n_bytes: int) -> memoryview:
        """The next `n_bytes`.

        Raises:
            SftpFormatError: there are fewer.
        """
        left = len(self._body) - self._at
        if n_bytes > left:
            raise SftpFormatError(f"{self._what}: {n_bytes} bytes wanted where {left} are left")
        self._at += n_bytes
        return self._body[self._at - n_bytes : self._at]

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "big")

    def string(self) -> bytes:
        return bytes(self.take(self.u32()))

    def __bool__(self) -> bool:
        return self._at < len(self._body)


def split_packet(received: bytearray) -> Reply | None:
    """The first whole answer of `received`, which it is taken from; None while it is not whole.

    Raises:
        SftpFormatError: the length is absurd: something else talks to us, such as a shell.
    """
    if len(received) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack_from(received)
    if not 5 <= length <= MAX_PACKET:
        start = bytes(received[:60]).decode("ascii", "replace")
        raise SftpFormatError(
            f"a packet of {length} bytes, wanted 5 to {MAX_PACKET}: {start!r} is no SFTP (does the "
            "shell at the other end print something at login?)"
        )
    end = _LENGTH.size + length
    if len(received) < end:
        return None
    _, kind, reply_id = _HEAD.unpack_from(received)
    body = memoryview(bytes(received[_HEAD.size : end]))
    del received[:end]
    return Reply(kind, reply_id, body)


def require_ok(reply: Reply) -> None:
    """Nothing, when `reply` says that the request succeeded.

    Raises:
        SftpStatusError: it failed.
        SftpFormatError: it is another kind of answer.
    """
    _expect(reply, Kind.STATUS)
    fields = Fields(reply.body, "status")
    code = fields.u32()
    if code != Code.OK:
        raise SftpStatusError(code, _message(fields))


def _message(fields: Fields) -> str:
    """Servers of version 3 may leave the message out."""
    text = fields.string().decode("utf-8", "replace") if fields else ""
    return "".join(each for each in text if each.isprintable())[:200]


def _expect(reply: Reply, kind: Kind) -> None:
    """Raise what the status says, or that the answer is of the wrong kind."""
    if reply.kind == kind:
        return
    if reply.kind == Kind.STATUS:
        fields = Fields(reply.body, "status")
        raise SftpStatusError(fields.u32(), _message(fields))
    raise SftpFormatError(f"answer of kind {reply.kind}, wanted {kind}")


def parse_handle(reply: Reply) -> bytes:
    """The handle of an opened file."""
    _expect(reply, Kind.HANDLE)
    handle = Fields(reply.body, "handle").string()
    if len(handle) > _MAX_HANDLE:
        raise SftpFormatError(f"handle of {len(handle)} bytes, wanted at most {_MAX_HANDLE}")
    return handle


def parse_data(reply: Reply, most: int) -> bytes:
    """What was read, nothing at the end of the file."""
    try:
        _expect(reply, Kind.DATA)
    except SftpStatusError as error:
        if error.code == Code.EOF:
            return b""
        raise
    data = Fields(reply.body, "data").string()
    if len(data) > most:
        raise SftpFormatError(f"{len(data)} bytes read, wanted at most {most}")
    return data


def parse_attributes(reply: Reply) -> Attributes:
    """Size and permissions; what else there is is not looked at."""
    _expect(reply, Kind.ATTRS)
    fields = Fields(reply.body, "attributes")
    flags = fields.u32()
    size = fields.u64() if flags & _AttrFlags.SIZE else None
    if flags & _AttrFlags.UIDGID:
        fields.take(8)
    return Attributes(size, fields.u32() if flags & _AttrFlags.PERMISSIONS else None)


def parse_version(reply: Reply) -> dict[str, bytes]:
    """The server's extensions, by name.

    Raises:
        SftpFormatError: it speaks another version.
    """
    if reply.kind != Kind.VERSION or reply.id != VERSION:
        raise SftpFormatError(f"kind {reply.kind}, version {reply.id}, wanted version {VERSION}")
    fields = Fields(reply.body, "version")
    extensions = {}
    while fields:
        name = fields.string().decode("utf-8", "replace")
        extensions[name] = fields.string()
    return extensions


class Limits(NamedTuple):
    """What ``limits@openssh.com`` answers: bytes, 0 for no limit known."""

    packet: int
    read: int
    write: int


def parse_limits(reply: Reply) -> Limits:
    _expect(reply, Kind.EXTENDED_REPLY)
    fields = Fields(reply.body, "limits")
    return Limits(fields.u64(), fields.u64(), fields.u64())


def parse_free_bytes(reply: Reply) -> int:
    """Bytes that we may still write, of the answer to ``statvfs@openssh.com``."""
    _expect(reply, Kind.EXTENDED_REPLY)
    fields = Fields(reply.body, "statvfs")
    _, fragment_size, _, _, available = (fields.u64() for _ in range(5))
    return fragment_size * available
