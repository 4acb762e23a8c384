"""A file under a temporary name: claimed early, private, renamed only when it is whole."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Final

from pipeline.errors import SinkError

_PRIVATE: Final = 0o600
"""Dumps hold secrets: nobody else may read them."""


class PartialFile:
    """``NAME.partial``, until `commit` gives it its name."""

    def __init__(self, path: str, *, overwrite: bool, fsync: bool) -> None:
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self.fd = -1
        self._overwrite = overwrite
        self._fsync = fsync

    def claim(self) -> None:
        """Create the file.

        Raises:
            SinkError: it exists and may not be overwritten, its directory is missing or read-only.
        """
        if self.path.is_dir():
            raise SinkError(f"{self.path}: is a directory")
        for taken in (self.path, self.partial):
            if not self._overwrite and os.path.lexists(taken):
                raise SinkError(f"{taken}: exists; -f overwrites it")
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        flags |= os.O_TRUNC if self._overwrite else os.O_EXCL
        try:
            self.fd = os.open(self.partial, flags, _PRIVATE)
            os.fchmod(self.fd, _PRIVATE)
        except OSError as error:
            raise self.failure(error) from error

    def failure(self, error: OSError) -> SinkError:
        """`error` as one line that names the file."""
        text = os.strerror(error.errno) if error.errno else str(error)
        if error.errno == errno.ENOENT:
            text = f"{text} (is the directory there?)"
        return SinkError(f"{self.partial}: {text}")

    def sync(self) -> None:
        """Make the content durable, if the settings ask for it; blocks for as long as it takes."""
        if self._fsync:
            try:
                os.fsync(self.fd)
            except OSError as error:
                raise self.failure(error) from error

    def commit(self) -> None:
        """Close and rename; the rename survives a power cut too."""
        try:
            self._close()
            self.partial.replace(self.path)
            if self._fsync:
                _sync_directory(self.path.parent)
        except OSError as error:
            raise self.failure(error) from error

    def keep(self) -> None:
        """Close, and leave what is there under the partial name."""
        with contextlib.suppress(OSError):
            self._close()

    def discard(self) -> None:
        """Close and remove; only what `claim` created."""
        if self.fd >= 0:
            self.keep()
            with contextlib.suppress(OSError):
                self.partial.unlink()

    def _close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
