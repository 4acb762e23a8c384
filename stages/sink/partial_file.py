"""A file under a temporary name: claimed early, private, renamed only when it is whole."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from pathlib import Path
from typing import Final

from pipeline.errors import SinkError, UsageError

_PRIVATE: Final = 0o600
"""Dumps hold secrets: nobody else may read them."""
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
"""What file systems without hard links answer (vfat, some network ones)."""
_NO_SYNC: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP})
"""What file systems answer that cannot sync directories (some network ones, FUSE)."""
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class PartialFile:
    """``NAME.partial``, until `commit` gives it its name."""

    def __init__(self, path: str, *, overwrite: bool, fsync: bool) -> None:
        """Raises:
        UsageError: `path` can't be a file's name.
        """
        if path.rpartition("/")[2] in {"", ".", ".."}:
            raise UsageError(f"{path!r} is not the name of a file")
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self.fd = -1
        self._overwrite = overwrite
        self.fsync = fsync

    def claim(self) -> None:
        """Create the file.

        An older partial file is removed, not written into: somebody may have it open.

        Raises:
            SinkError: it exists and may not be overwritten, its directory is missing or read-only.
        """
        self._check_free(self.path)
        self._check_free(self.partial)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            if self._overwrite:
                self.partial.unlink(missing_ok=True)
            self.fd = os.open(self.partial, flags, _PRIVATE)
            os.fchmod(self.fd, _PRIVATE)
        except OSError as error:
            self.discard()
            raise self.failure(error) from error

    def would_replace(self, other: str) -> bool:
        """Whether `other` is the file that stands under one of the two names."""
        for path in (self.path, self.partial):
            with contextlib.suppress(OSError):
                if path.samefile(other):
                    return True
        return False

    def _check_free(self, path: Path) -> None:
        """Refuse to put a file where something stands that is not ours to replace."""
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            return
        except OSError as error:
            raise self.failure(error) from error
        if stat.S_ISDIR(mode) or path.is_dir():
            raise SinkError(f"{path}: is a directory")
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            raise SinkError(f"{path}: is no regular file; the dump on standard output can go there")
        if not self._overwrite:
            raise SinkError(f"{path}: exists; -f overwrites it")

    def failure(self, error: OSError) -> SinkError:
        """`error` as one line that names the file."""
        text = os.strerror(error.errno) if error.errno else str(error)
        if error.errno == errno.ENOENT:
            text = f"{text} (is the directory there?)"
        return SinkError(f"{self.partial}: {text}")

    def reserve(self, n_bytes: int) -> None:
        """Have the first `n_bytes` of the file allocated, where the file system can.

        Raises:
            SinkError: there is no room for them.
        """
        # Not posix_fallocate: where the file system can't, glibc writes a byte to every block.
        fallocate = ctypes.CDLL(None, use_errno=True).fallocate
        fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
        if fallocate(self.fd, 0, 0, n_bytes) != 0 and ctypes.get_errno() in _NO_ROOM:
            raise self.failure(OSError(ctypes.get_errno(), ""))

    def sync(self) -> None:
        """Make the content durable, if the settings ask for it; blocks for as long as it takes."""
        if self.fsync:
            try:
                os.fsync(self.fd)
            except OSError as error:
                raise self.failure(error) from error

    def commit(self) -> None:
        """Close and rename; the rename survives a power cut too.

        Raises:
            SinkError: the name was taken meanwhile, or the file system failed.
        """
        try:
            if not self._is_ours():
                raise SinkError(f"{self.partial}: was removed or replaced while it was written")
            self._close()
            self._take_name()
            if self.fsync:
                _sync_directory(self.path.parent)
        except OSError as error:
            raise self.failure(error) from error

    def _is_ours(self) -> bool:
        """Two runs with -f may want the same name: the first must not commit the second's file."""
        try:
            found = self.partial.lstat()
        except FileNotFoundError:
            return False
        if self.fd < 0:
            return True
        ours = os.fstat(self.fd)
        return (ours.st_dev, ours.st_ino) == (found.st_dev, found.st_ino)

    def _take_name(self) -> None:
        if self._overwrite:
            self.partial.replace(self.path)
            return
        try:
            # A rename would replace what appeared under the name since `claim`; a link never does.
            self.path.hardlink_to(self.partial)
        except FileExistsError:
            # NFS says so of its own link when the answer to the first request was lost.
            if not self.path.is_symlink() and self.path.samefile(self.partial):
                self.partial.unlink()
                return
            raise self._taken() from None
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if os.path.lexists(self.path):
                raise self._taken() from None
            self.partial.rename(self.path)
        else:
            self.partial.unlink()

    def _taken(self) -> SinkError:
        return SinkError(f"{self.path}: appeared while the dump was written")

    def keep(self) -> bool:
        """Close, and leave what is there under the partial name; False if it is gone from there."""
        is_there = False
        with contextlib.suppress(OSError):
            is_there = self._is_ours()
            self._close()
        return is_there

    def discard(self) -> None:
        """Close and remove; only what `claim` created."""
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                if self._is_ours():
                    self.partial.unlink()
            self.keep()

    def _close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def _sync_directory(path: Path) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:  # a drop box: files may be made there, and not be listed
        return
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(fd)
