"""One SFTP connection: requests out, answers in. Nothing here knows what a dump is."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import anyio

from pipeline.errors import SinkError
from stages.sink import sftp_wire as wire
from stages.sink.sftp_wire import Kind, OpenFlags, Reply, SftpFormatError, SftpStatusError
from stages.sink.ssh_process import LostConnectionError, SshProcess
from stages.sink.ssh_words import failure

_READ_BYTES: Final = 64 << 10
_SAFE_BYTES: Final = 32 << 10
"""Of one read or write: what every server takes (draft, section 3)."""
_MOST_BYTES: Final = 255 << 10
"""What OpenSSH says that it takes."""
_LEAST_BYTES: Final = 4096
_LIMITS: Final = "limits@openssh.com"
_RENAME_OVER: Final = "posix-rename@openssh.com"
_FSYNC: Final = "fsync@openssh.com"
_STATVFS: Final = "statvfs@openssh.com"


class SftpSession:
    """An SFTP connection over a running ``ssh``.

    Either one caller at a time uses the methods that wait for their answer, or one task sends
    writes and another one receives what comes back; never both.

    Attributes:
        target: for messages.
        handle: of the one file that the session writes; empty until the caller sets it.
        read_handle: of the same file to read; empty until the caller sets it.
        most_write: bytes that one write may carry.
        most_read: bytes that one answer may carry.
    """

    def __init__(self, process: SshProcess, target: str) -> None:
        self._process = process
        self.target = target
        self._received = bytearray()
        self._next_id = 0
        self._extensions: dict[str, bytes] = {}
        self.handle = b""
        self.read_handle = b""
        self.most_write = _SAFE_BYTES
        self.most_read = _SAFE_BYTES

    @classmethod
    async def start(cls, argv: Sequence[str], target: str, *, most_s: float) -> SftpSession:
        """Connect and agree on the version.

        Args:
            argv: of ssh with its subsystem.
            target: for messages.
            most_s: how long all of it may take.

        Raises:
            LostConnectionError: no connection; another try may help.
            SinkError: no connection, and no other try will help.
        """
        session = cls(await SshProcess.start(argv), target)
        try:
            with anyio.fail_after(most_s):
                await session._greet()
        except TimeoutError:
            await session.close()
            raise LostConnectionError(f"{target}: no answer in {most_s:g} s") from None
        except BaseException:
            await session.close()
            raise
        return session

    async def _greet(self) -> None:
        await self._send(struct.pack(">IBI", 5, Kind.INIT, wire.VERSION))
        try:
            self._extensions = wire.parse_version(await self.receive())
            if _LIMITS in self._extensions:
                limits = wire.parse_limits(await self._extended(_LIMITS, b""))
                self.most_write = _bounded(limits.write)
                self.most_read = _bounded(limits.read)
        except SftpFormatError as error:
            raise SftpFormatError(f"{self.target}: {error}") from error

    @property
    def can_rename_over(self) -> bool:
        return _RENAME_OVER in self._extensions

    @property
    def can_sync(self) -> bool:
        return _FSYNC in self._extensions

    async def send_write(self, request_id: int, offset: int, data: memoryview) -> None:
        """Write `data` to the session's file; the answer comes through `receive`."""
        head = wire.pack_write_head(request_id, self.handle, offset, len(data))
        await self._send(head, data)

    def received(self) -> Reply | None:
        """An answer that is here already."""
        return wire.split_packet(self._received)

    async def receive(self) -> Reply:
        """The next answer.

        Raises:
            LostConnectionError: the connection is gone.
            SinkError: it is gone for good, such as for a wrong host key.
        """
        while (reply := self.received()) is None:
            more = await self._process.read(_READ_BYTES)
            if not more:
                raise await self._why_lost()
            self._received += more
        return reply

    async def open(self, path: str, flags: OpenFlags, mode: int = 0) -> bytes:
        """The handle of `path`."""
        request_id = self.new_id()
        await self._send(wire.pack_open(request_id, path, flags, mode))
        return wire.parse_handle(await self._answer(request_id))

    async def set_mode(self, handle: bytes, mode: int) -> None:
        """Permissions of an open file."""
        request_id = self.new_id()
        await self._send(wire.pack_set_mode(request_id, handle, mode))
        wire.require_ok(await self._answer(request_id))

    async def remove(self, path: str) -> None:
        await self._plain(Kind.REMOVE, wire.string(wire.encode_path(path)))

    async def rename(self, old: str, new: str) -> None:
        """Give `old` another name, which must not be taken."""
        names = wire.string(wire.encode_path(old)) + wire.string(wire.encode_path(new))
        await self._plain(Kind.RENAME, names)

    async def rename_over(self, old: str, new: str) -> None:
        """Give `old` another name, whose former file is replaced; needs `can_rename_over`."""
        names = wire.string(wire.encode_path(old)) + wire.string(wire.encode_path(new))
        wire.require_ok(await self._extended(_RENAME_OVER, names))

    async def sync(self, handle: bytes) -> None:
        """Bring an open file to disk; needs `can_sync`."""
        wire.require_ok(await self._extended(_FSYNC, wire.string(handle)))

    async def stat(self, path: str) -> wire.Attributes | None:
        """What `path` is, links not followed; None when there is nothing."""
        request_id = self.new_id()
        body = wire.string(wire.encode_path(path))
        await self._send(wire.pack(Kind.LSTAT, request_id, body))
        try:
            return wire.parse_attributes(await self._answer(request_id))
        except SftpStatusError as error:
            if error.code == wire.Code.NO_SUCH_FILE:
                return None
            raise

    async def write(self, handle: bytes, data: bytes) -> None:
        """Write all of a small file, one piece after the other."""
        for at in range(0, len(data), self.most_write):
            part = data[at : at + self.most_write]
            request_id = self.new_id()
            await self._send(wire.pack_write_head(request_id, handle, at, len(part)), part)
            wire.require_ok(await self._answer(request_id))

    async def read(self, handle: bytes, offset: int, n_bytes: int) -> bytes:
        """Exactly `n_bytes`, fewer only where the file ends.

        All is asked for at once, to pay for one round trip only: keep it to a few MiB.
        """
        data = bytearray(n_bytes)
        end = n_bytes
        asked: dict[int, tuple[int, int]] = {}
        for at in range(0, n_bytes, self.most_read):
            await self._ask(asked, handle, offset, at, min(self.most_read, n_bytes - at))
        while asked:
            reply = await self.receive()
            if reply.id not in asked:
                raise SftpFormatError(f"{self.target}: answer to {reply.id}, which was not asked")
            at, wanted = asked.pop(reply.id)
            got = wire.parse_data(reply, wanted)
            data[at : at + len(got)] = got
            if not got:
                end = min(end, at)
            elif len(got) < wanted:
                await self._ask(asked, handle, offset, at + len(got), wanted - len(got))
        del data[end:]
        return bytes(data)

    async def _ask(
        self, asked: dict[int, tuple[int, int]], handle: bytes, offset: int, at: int, n_bytes: int
    ) -> None:
        request_id = self.new_id()
        asked[request_id] = (at, n_bytes)
        await self._send(wire.pack_read(request_id, handle, offset + at, n_bytes))

    async def free_bytes(self, path: str) -> int | None:
        """What still fits where `path` lies; None when the server does not say."""
        if _STATVFS not in self._extensions:
            return None
        with suppress(SftpStatusError):
            place = wire.string(wire.encode_path(path))
            return wire.parse_free_bytes(await self._extended(_STATVFS, place))
        return None

    def new_id(self) -> int:
        """A number for a request that no unanswered one has."""
        self._next_id = (self._next_id + 1) & 0xFFFFFFFF
        return self._next_id

    async def close(self) -> None:
        """End the connection; never raises, works when cancelled."""
        await self._process.close()

    async def _plain(self, kind: Kind, body: bytes) -> None:
        request_id = self.new_id()
        await self._send(wire.pack(kind, request_id, body))
        wire.require_ok(await self._answer(request_id))

    async def _extended(self, name: str, body: bytes) -> Reply:
        request_id = self.new_id()
        request = wire.string(name.encode()) + body
        await self._send(wire.pack(Kind.EXTENDED, request_id, request))
        return await self._answer(request_id)

    async def _answer(self, request_id: int) -> Reply:
        reply = await self.receive()
        if reply.id != request_id:
            raise SftpFormatError(f"{self.target}: answer to {reply.id}, wanted to {request_id}")
        return reply

    async def _send(self, *parts: bytes | memoryview) -> None:
        try:
            await self._process.write([memoryview(part) for part in parts])
        except LostConnectionError as error:
            raise await self._why_lost() from error

    async def _why_lost(self) -> SinkError:
        code, words = await self._process.last_words()
        return failure(self.target, code, words)


def _bounded(limit: int) -> int:
    """Bytes a request, from what the server said; 0 is nothing said."""
    return max(min(limit or _SAFE_BYTES, _MOST_BYTES), _LEAST_BYTES)
