"""The journal of an upload: what `dumpstream resume` needs after the process itself has died.

An append-only file, one record a line: eight hexadecimal digits (CRC-32 of what follows), a space,
one JSON object. The first record is the `Header`; each later one is an object with a `kind` of its
sink's own, such as ``part``. A torn last line (power cut, full disk) is dropped; a wrong line in
the middle means that the file was damaged, and is refused.

Losing the last records costs sending those parts again, nothing else: so records are flushed to
the kernel at once, which a killed process survives, and synced to disk by `sync_every_s`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct, field

from pipeline.errors import FormatError, SinkError
from stages.sink.manifest import SourceIdentity, now_text

VERSION: Final = 1
SUFFIX: Final = ".journal"
_MAX_BYTES: Final = 64 << 20
"""10,000 parts take 2 MiB."""
_HEAD_BYTES: Final = 1 << 20


class Header(Struct, frozen=True, kw_only=True):
    """What is being sent, and where to.

    Attributes:
        target: URL without secrets.
        settings: dotted keys of everything that shapes the dump's bytes and the upload.
        created: RFC 3339, UTC.
    """

    version: int = VERSION
    target: str
    source: SourceIdentity
    settings: dict[str, Any] = field(default_factory=dict)
    written_by: str = ""
    created: str = ""


def identify_source(path: str) -> SourceIdentity:
    """The identity of the image at `path`.

    Raises:
        OSError: not readable.
    """
    with Path(path).open("rb") as file:
        status = os.fstat(file.fileno())
        head = file.read(_HEAD_BYTES)
    # procfs makes up its times, so they differ from boot to boot and mean nothing.
    is_proc = os.path.realpath(path).startswith("/proc/")
    return SourceIdentity(
        path=os.path.abspath(path),  # noqa: PTH100 - keeps symbolic links, as people name images
        size=status.st_size,
        mtime_ns=None if is_proc else status.st_mtime_ns,
        head_sha256=hashlib.sha256(head).hexdigest(),
    )


class Journal:
    """A journal that is written to; the file appears with the first record after the header."""

    def __init__(
        self, path: Path, header: Header, records: list[dict[str, Any]], *, sync_every_s: float = 5
    ) -> None:
        self.path = path
        self.header = header
        self.records = records
        """What a former run wrote; empty unless resumed."""
        self._sync_every_s = sync_every_s
        self._synced_at = 0.0
        self._fd = -1

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        target: str,
        source: SourceIdentity,
        settings: Mapping[str, Any],
    ) -> Journal:
        """A new journal in `folder`, named after target and time; nothing is written yet."""
        from pipeline.obs.version import own_version

        header = Header(
            target=target,
            source=source,
            settings=dict(settings),
            written_by=f"dumpstream {own_version()}",
            created=now_text(),
        )
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", target).strip("_")[-80:]
        return cls(folder / f"{name}.{time.time_ns():x}{SUFFIX}", header, [])

    @classmethod
    def open(cls, path: Path) -> Journal:
        """A journal to go on with.

        Raises:
            FormatError: not a journal, damaged, or of a newer version.
            OSError: not readable.
        """
        header, records, n_good = _read(path)
        journal = cls(path, header, records)
        journal._reopen(n_good)
        return journal

    def _reopen(self, n_good: int) -> None:
        self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        os.ftruncate(self._fd, n_good)

    def require_source(self, source: SourceIdentity) -> None:
        """Refuse a source that is not the one the journal was begun with.

        Raises:
            SinkError: it differs, and in what.
        """
        for name in ("size", "mtime_ns", "head_sha256"):
            seen, wanted = getattr(source, name), getattr(self.header.source, name)
            if seen != wanted:
                raise SinkError(
                    f"{source.path}: {name} is {seen}, but {self.path} was begun with {wanted}: "
                    "not the same image"
                )

    def append(self, kind: str, **values: str | int) -> None:
        """Add a record; it survives the death of the process from here on.

        Raises:
            SinkError: the journal cannot be written.
        """
        try:
            if self._fd < 0:
                self._create_file()
            _write_all(self._fd, _line({"kind": kind, **values}))
            if time.monotonic() - self._synced_at >= self._sync_every_s:
                self.sync()
        except OSError as error:
            raise SinkError(f"{self.path}: {error.strerror or error}") from error

    def _create_file(self) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self.path, flags, 0o600)
        _write_all(self._fd, _line(msgspec.to_builtins(self.header)))

    def sync(self) -> None:
        """Bring every record to disk."""
        if self._fd >= 0:
            os.fsync(self._fd)
            self._synced_at = time.monotonic()

    @property
    def on_disk(self) -> bool:
        """True when there is a file that could be resumed from."""
        return self._fd >= 0

    def keep(self) -> None:
        """Close, and leave the file for `dumpstream resume`; never raises."""
        with contextlib.suppress(OSError):
            self.sync()
        self._close()

    def remove(self) -> None:
        """Close, and delete the file: nothing is left to resume; never raises."""
        if self._fd >= 0:
            self._close()
            with contextlib.suppress(OSError):
                self.path.unlink()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)


def _line(record: Mapping[str, Any]) -> bytes:
    text = msgspec.json.encode(record)
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _read(path: Path) -> tuple[Header, list[dict[str, Any]], int]:
    """Header, records, and how many bytes of the file are whole records."""
    with path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise FormatError("journal", None, "size", f"over {_MAX_BYTES}", f"at most {_MAX_BYTES}")
    end = data.rfind(b"\n") + 1
    records: list[dict[str, Any]] = []
    at = 0
    for line in data[:end].split(b"\n")[:-1]:
        try:
            records.append(_parse(line, at))
        except FormatError:
            if at + len(line) + 1 < end or not records:
                raise
            end = at  # the last line was torn
        else:
            at += len(line) + 1
    if not records:
        raise FormatError("journal", 0, "header", data[:40], "a whole first line")
    try:
        header = msgspec.convert(records[0], Header)
    except msgspec.ValidationError as error:
        raise FormatError("journal", 0, "header", str(error), "a journal's header") from error
    if not 1 <= header.version <= VERSION:
        raise FormatError("journal", 0, "version", header.version, f"1 to {VERSION}")
    return header, records[1:], end


def _parse(line: bytes, at: int) -> dict[str, Any]:
    crc, _, text = line.partition(b" ")
    if not text and at == 0:
        raise FormatError("journal", at, "header", line[:40], "a journal's first line")
    if crc != b"%08x" % zlib.crc32(text):
        raise FormatError("journal", at, "checksum", crc[:16], f"{zlib.crc32(text):08x}")
    try:
        record = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise FormatError("journal", at, "record", str(error), "a JSON object") from error
    return record
