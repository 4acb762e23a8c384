"""The dump's file on an SFTP server, from its claim to its final name.

Every method is one step over one connection, and may be done again over another one when the answer
was lost: it looks first at what the lost try has done. Handles are closed by the connection's end:
each answer that is not waited for saves a round trip.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from pipeline.errors import SinkError
from stages.sink.manifest import SUFFIX
from stages.sink.sftp_session import SftpSession
from stages.sink.sftp_wire import Code, OpenFlags, SftpStatusError
from stages.sink.ssh_url import SshTarget

_PRIVATE: Final = 0o600
"""Dumps hold secrets: nobody else may read them."""
_DIRECTORY: Final = 0o040000
_TYPE_BITS: Final = 0o170000
_CREATE: Final = OpenFlags.WRITE | OpenFlags.CREAT | OpenFlags.EXCL


class SftpFile:
    """``NAME.partial``, until `rename` gives it its name.

    Attributes:
        claimed: the partial file is ours, and somebody has to see to it.
    """

    def __init__(self, target: SshTarget, *, overwrite: bool, fsync: bool) -> None:
        self._target = target
        self._overwrite = overwrite
        self._fsync = fsync
        self.claimed = False

    @property
    def where(self) -> str:
        """The partial file in a message."""
        return self._target.show(self._target.partial)

    async def claim(self, session: SftpSession) -> None:
        """Create the partial file; a file that was there is never opened.

        Raises:
            SinkError: a name is taken, or the directory is missing or read-only.
        """
        partial = self._target.partial
        if not self.claimed:
            await self._refuse_taken(session)
        elif await session.stat(partial) is not None:
            await session.remove(partial)
        self.claimed = True
        try:
            session.handle = await session.open(partial, _CREATE, _PRIVATE)
        except SftpStatusError as error:
            self.claimed = False
            hint = " (is the directory there?)" if error.code == Code.NO_SUCH_FILE else ""
            raise SinkError(f"{self.where}: {error}{hint}") from error
        with suppress(SftpStatusError):  # servers without permissions
            await session.set_mode(session.handle, _PRIVATE)

    async def _refuse_taken(self, session: SftpSession) -> None:
        for path in (self._target.path, self._target.partial):
            seen = await session.stat(path)
            if seen is None:
                continue
            if (seen.permissions or 0) & _TYPE_BITS == _DIRECTORY:
                raise SinkError(f"{self._target.show(path)}: is a directory")
            if not self._overwrite:
                raise SinkError(f"{self._target.show(path)}: exists; -f overwrites it")
            if path == self._target.partial:
                await session.remove(path)

    async def reopen(self, session: SftpSession) -> None:
        """Give `session` a handle to write the partial file."""
        try:
            session.handle = await session.open(self._target.partial, OpenFlags.WRITE)
        except SftpStatusError as error:
            raise SinkError(f"{self.where}: {error}") from error

    async def read(self, session: SftpSession, offset: int, n_bytes: int) -> bytes:
        """What the partial file has at `offset`; fewer bytes at its end."""
        if not session.read_handle:
            session.read_handle = await session.open(self._target.partial, OpenFlags.READ)
        return await session.read(session.read_handle, offset, n_bytes)

    async def sync(self, session: SftpSession) -> int | None:
        """Bring the file to disk, if the settings ask for it and the server can; its size."""
        if self._fsync and session.can_sync:
            if not session.handle:
                await self.reopen(session)
            await session.sync(session.handle)
        seen = await session.stat(self._target.partial)
        return None if seen is None else seen.size

    async def rename(self, session: SftpSession, size: int) -> None:
        """Give the file, which has `size` bytes, its final name.

        Raises:
            SinkError: the name was taken meanwhile.
        """
        path, partial = self._target.path, self._target.partial
        try:
            if self._overwrite:
                await _replace(session, partial, path)
            else:
                await session.rename(partial, path)  # fails when the name is taken
        except SftpStatusError as error:
            seen = await session.stat(path)
            if seen is None or seen.size != size or await session.stat(partial) is not None:
                taken = seen is not None and not self._overwrite
                problem = "appeared meanwhile; -f overwrites it" if taken else str(error)
                raise SinkError(f"{self._target.show()}: {problem}") from error
        self.claimed = False
        if self._fsync:
            await _sync_directory(session, path)

    async def put_manifest(self, session: SftpSession, data: bytes) -> None:
        """Write `data` next to the dump, over a manifest that is there."""
        path = f"{self._target.path}{SUFFIX}"
        partial = f"{path}.partial"
        try:
            handle = await session.open(partial, _CREATE, _PRIVATE)
        except SftpStatusError:  # left by a try whose answer was lost, or by another run
            await session.remove(partial)
            handle = await session.open(partial, _CREATE, _PRIVATE)
        await session.write(handle, data)
        await _replace(session, partial, path)

    async def remove(self, session: SftpSession) -> None:
        """Remove the partial file."""
        await session.remove(self._target.partial)
        self.claimed = False

    async def is_full(self, session: SftpSession, n_bytes: int) -> bool:
        """True when `n_bytes` do not fit any more; version 3 has no word for it."""
        free = await session.free_bytes(self._target.partial)
        return free is not None and free < n_bytes


async def _replace(session: SftpSession, old: str, new: str) -> None:
    """Rename over whatever has the name."""
    if session.can_rename_over:
        await session.rename_over(old, new)
        return
    with suppress(SftpStatusError):
        await session.remove(new)
    await session.rename(old, new)


async def _sync_directory(session: SftpSession, path: str) -> None:
    """Make the rename durable where the server lets a directory be opened, as OpenSSH does."""
    parent = path.rpartition("/")[0] or ("/" if path.startswith("/") else ".")
    if session.can_sync:
        with suppress(SftpStatusError):
            handle = await session.open(parent, OpenFlags.READ)
            await session.sync(handle)
