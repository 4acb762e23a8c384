"""The files of one upload: ``NAME.partial`` that grows, its books, and their end.

Everything here blocks and runs in worker threads. Files are reached through the descriptor of the
receiver's directory and never through links, so that whoever else may write there cannot lead us
out of it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from typing import Final

import msgspec

from pipeline.errors import DumpError
from pipeline.flow.items import ChunkKind
from pipeline.memory.sizes import show_count
from stages.sink.manifest import parse_manifest
from stages.transport.cursors import Cursors
from stages.transport.errors import ProtocolError, RefusedError
from stages.transport.frames import checksum
from stages.transport.hasher import Hasher
from stages.transport.limits import MANIFEST, PARTIAL, STATE, Limits
from stages.transport.messages import ChunkFrame, Same, TrailerFrame
from stages.transport.upload_state import StateHeader, UploadState

_PRIVATE: Final = 0o600
_READ_STEP: Final = 1 << 20
_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_OPEN: Final = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


class UploadStore:
    """One unfinished dump, open. Chunks below `position` are written."""

    def __init__(self, folder_fd: int, name: str, fd: int, state: UploadState) -> None:
        self.name = name
        self.n_written = 0
        """Bytes written through this object."""
        self._folder_fd = folder_fd
        self._fd = fd
        self._state = state
        self._limits: Limits | None = None
        self._cursors: Cursors | None = None
        self._hasher: Hasher | None = None

    @classmethod
    def create(cls, folder_fd: int, header: StateHeader) -> UploadStore:
        """Claim the name in `header`.

        Raises:
            FileExistsError: an unfinished upload has it.
            OSError: the directory cannot be written.
        """
        name = header.name
        state_fd = os.open(name + STATE, _CREATE, _PRIVATE, dir_fd=folder_fd)
        try:
            fcntl.flock(state_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            state = UploadState.create(state_fd, header)
            # A partial file without books belongs to nobody: its owner died while claiming.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name + PARTIAL, dir_fd=folder_fd)
            fd = os.open(name + PARTIAL, _CREATE, _PRIVATE, dir_fd=folder_fd)
        except BaseException:
            os.close(state_fd)
            with contextlib.suppress(OSError):
                os.unlink(name + STATE, dir_fd=folder_fd)
            raise
        return cls(folder_fd, name, fd, state)

    @classmethod
    def reopen(cls, folder_fd: int, name: str) -> UploadStore:
        """Go on with an upload of this or a former process; data that may be lost is read again.

        Raises:
            FormatError: the books are damaged.
            BlockingIOError: another receiver has it open.
            OSError: not readable.
        """
        state_fd = os.open(name + STATE, _OPEN, dir_fd=folder_fd)
        try:
            fcntl.flock(state_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            state = UploadState.load(state_fd)
            fd = os.open(name + PARTIAL, _OPEN, dir_fd=folder_fd)
        except BaseException:
            os.close(state_fd)
            raise
        store = cls(folder_fd, name, fd, state)
        store._drop_lost()
        return store

    def _drop_lost(self) -> None:
        """Truncate the books at the first chunk beyond the durable mark that is not in the file."""
        state = self._state
        unsure = [state.chunk(seq) for seq in range(state.durable, state.n_chunks)]
        # A head that came again lies where the first one did, so only the last can be there.
        last_heads = {one.offset: one.seq for one in unsure if one.kind is ChunkKind.HEAD}
        for chunk in unsure:
            is_last = chunk.kind is not ChunkKind.HEAD or last_heads[chunk.offset] == chunk.seq
            if is_last and checksum(self._read(chunk)) != chunk.crc:
                state.truncate(chunk.seq)
                return

    def _read(self, chunk: Same) -> bytes:
        return os.pread(self._fd, chunk.length, chunk.offset)

    @property
    def header(self) -> StateHeader:
        return self._state.header

    @property
    def position(self) -> int:
        return self._state.n_chunks

    @property
    def durable(self) -> int:
        return self._state.durable

    def lay_out(self, data_start: int, most_bytes: int, limits: Limits) -> None:
        """Take the outline; what was written before is entered into the cursors again.

        Raises:
            RefusedError: the dump is too large, or was begun with another outline.
        """
        header = self._state.header
        if header.most_bytes and (header.data_start, header.most_bytes) != (data_start, most_bytes):
            raise RefusedError(
                f"{self.name} was begun as a dump of at most {header.most_bytes} bytes with data "
                f"at {header.data_start}, not {most_bytes} and {data_start}: the source or the "
                "settings changed"
            )
        if most_bytes < 1 or not 0 <= data_start <= min(most_bytes, limits.max_bytes):
            raise RefusedError(
                f"data at {data_start} of {most_bytes} bytes; this receiver takes "
                f"{limits.max_bytes} bytes"
            )
        if not header.most_bytes:
            self._state.write_header(
                msgspec.structs.replace(header, data_start=data_start, most_bytes=most_bytes)
            )
        if self._cursors is None:
            cursors = Cursors(data_start, limits.max_bytes)
            for seq in range(self.position):
                chunk = self._state.chunk(seq)
                cursors.advance(chunk.kind, chunk.offset, chunk.length)
            self._limits = limits
            self._cursors = cursors
            self._hasher = Hasher(data_start, most_bytes)

    def write(self, frame: ChunkFrame) -> None:
        """Write the next chunk and enter it.

        Raises:
            ProtocolError: not the next chunk, or out of place.
            RefusedError: beyond this receiver's limits, or no room on disk.
        """
        if self._cursors is None or self._hasher is None or self._limits is None:
            raise ProtocolError(f"chunk {frame.seq} before the outline")
        if frame.seq != self.position:
            raise ProtocolError(f"chunk {frame.seq} where {self.position} was due")
        end = frame.offset + len(frame.data)
        most_chunks = self._limits.max_chunks(self._cursors.n_bytes)
        if end > self._limits.max_bytes or frame.seq >= most_chunks:
            raise RefusedError(
                f"{end} bytes in {show_count(frame.seq + 1, 'chunk')}; this receiver takes "
                f"{self._limits.max_bytes} bytes"
            )
        self._cursors.advance(frame.kind, frame.offset, len(frame.data))
        same = frame.same()
        try:
            _write_all(self._fd, memoryview(frame.data), frame.offset)
            self._state.append(same)
        except OSError as error:
            raise self._refusal(error) from error
        self.n_written += same.length
        if self._hasher.position == frame.seq:
            self._hasher.add(same, frame.data)

    def _refusal(self, error: OSError) -> RefusedError:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        why = os.strerror(error.errno) if error.errno else str(error)
        return RefusedError(f"{self.name}: {why}", retry=not full)

    def compare(self, chunk: Same) -> None:
        """Hold what the sender has against what an earlier one sent.

        Raises:
            RefusedError: they differ.
            ProtocolError: there is no such chunk.
        """
        if chunk.seq >= self.position:
            raise ProtocolError(f"chunk {chunk.seq} offered where {self.position} are here")
        if self._state.chunk(chunk.seq) != chunk:
            raise RefusedError(
                f"{self.name}: chunk {chunk.seq} is not what was sent before: the source or the "
                "settings changed"
            )

    def sync(self) -> int:
        """Make what is written now durable; returns how many chunks that is."""
        n_chunks = self.position
        try:
            os.fdatasync(self._fd)
            self._state.mark_durable(n_chunks)
        except OSError as error:
            raise self._refusal(error) from error
        return n_chunks

    def verify(self, end: TrailerFrame) -> None:
        """Hold the whole dump against its trailer and manifest.

        Raises:
            RefusedError: they differ.
            ProtocolError: what was sent is no dump, or the manifest none.
        """
        if self._cursors is None or self._hasher is None:
            raise ProtocolError("a trailer before the outline")
        trailer = end.trailer
        if trailer.n_chunks != self.position:
            raise RefusedError(f"of {trailer.n_chunks} chunks {self.position} came")
        self._cursors.finish()
        self._catch_up(self._hasher)
        try:
            manifest = parse_manifest(end.manifest)
        except DumpError as error:
            raise ProtocolError(str(error)) from error
        if manifest.pieces() != self._hasher.finish() or manifest.digest.whole != trailer.digest:
            raise RefusedError(f"{self.name}: what arrived is not what was sent: digests differ")
        if (manifest.size, manifest.name) != (trailer.size, self.name):
            raise ProtocolError(f"{self.name}: the manifest is of another dump")

    def _catch_up(self, hasher: Hasher) -> None:
        """Hash from the file what came before the last restart."""
        # Of a head that came twice only the last is in the file, and only the last counts.
        while hasher.position < self.position:
            chunk = self._state.chunk(hasher.position)
            hasher.add(chunk, self._read(chunk))

    def commit(self, manifest: bytes) -> None:
        """Give the verified dump its name, beside its manifest; survives a power cut after it.

        Raises:
            RefusedError: the directory cannot be written.
        """
        folder, name = self._folder_fd, self.name
        try:
            os.ftruncate(self._fd, self._cursors.size if self._cursors is not None else 0)
            os.fsync(self._fd)
            write_file(folder, name + MANIFEST, manifest)
            os.rename(name + PARTIAL, name, src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)
        except OSError as error:
            raise self._refusal(error) from error
        with contextlib.suppress(OSError):
            os.unlink(name + STATE, dir_fd=folder)
        self.close()

    def discard(self) -> None:
        """Remove the upload; the name is free again."""
        for suffix in (PARTIAL, STATE):
            with contextlib.suppress(OSError):
                os.unlink(self.name + suffix, dir_fd=self._folder_fd)
        self.close()

    def close(self) -> None:
        """Let go of the files; the upload may be reopened."""
        for fd in (self._fd, self._state.fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._state.fd = -1


def write_file(folder_fd: int, name: str, data: bytes) -> None:
    """A small file that appears whole."""
    temporary = name + ".tmp"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=folder_fd)
    fd = os.open(temporary, _CREATE, _PRIVATE, dir_fd=folder_fd)
    try:
        _write_all(fd, memoryview(data), 0)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, name, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done
