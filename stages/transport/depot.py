"""The receiver's directory: which uploads lie there, whose they are, and who may begin another.

Blocks, and may be called from several worker threads.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Final

from pipeline.errors import DumpError, FormatError, SinkError
from pipeline.obs.log import log_event
from stages.sink.manifest import MAX_BYTES, now_text, parse_manifest
from stages.transport.errors import ProtocolError, RefusedError
from stages.transport.limits import MANIFEST, STATE, Limits, check_name, plain_name
from stages.transport.messages import Hello, Trailer
from stages.transport.store import UploadStore
from stages.transport.upload_state import StateHeader, UploadState

_CLAIM_S: Final = 3600.0
"""How long a name stays reserved for a sender that has sent nothing yet: its first pass may take
long on a large machine."""


class Depot:
    """One directory."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder = folder
        self._limits = limits
        self._fd = -1
        self._lock = threading.Lock()
        self._names: dict[str, str] = {}
        """Name of the unfinished upload, by hash of its token."""
        self.active: set[str] = set()
        """Names of the uploads that a connection uses now; the receiver keeps this."""
        self._open: OrderedDict[str, UploadStore] = OrderedDict()
        """Uploads whose files are open, by name, the one used last at the end: an upload that is
        reopened must hash again what it has, so those that lost their connection stay."""

    def open(self) -> None:
        """Take possession of the directory and find what a former receiver left.

        Raises:
            SinkError: it is not there, or not writable.
        """
        try:
            self._fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            found = sorted(
                path.name for path in self._folder.iterdir() if path.name.endswith(STATE)
            )
        except OSError as error:
            raise SinkError(f"{self._folder}: {error.strerror or error}") from error
        if not os.access(self._folder, os.W_OK | os.X_OK):
            raise SinkError(f"{self._folder}: not writable")
        for name in found:
            self._index(name.removesuffix(STATE))

    def _index(self, name: str) -> None:
        try:
            fd = os.open(name + STATE, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self._fd)
            try:
                header = UploadState.load(fd).header
            finally:
                os.close(fd)
        except (FormatError, OSError) as error:
            log_event("upload_unreadable", "warning", name=name, why=str(error))
            return
        if header.name == name:
            self._names[header.token_sha256] = name

    def close(self) -> None:
        """Close every file; uploads can be resumed by another receiver."""
        for store in self._open.values():
            store.close()
        self._open.clear()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def name_of(self, hello: Hello) -> str | None:
        """Name of the unfinished upload that `hello` goes on with, if there is one."""
        return self._names.get(_hashed(hello.token))

    def admit(self, hello: Hello, *, peer: str, host: str) -> UploadStore | None:
        """The upload that `hello` begins or goes on with; None when it is finished already.

        Args:
            hello: as sent.
            peer: subject of the sender's certificate, empty without TLS.
            host: the sender's address, for a name when it gives none.

        Raises:
            RefusedError: the name is bad or taken, or the upload belongs to another peer.
            OSError: the directory cannot be read or written.
        """
        with self._lock:
            name = self._names.get(_hashed(hello.token))
            if name is not None:
                return self._resume(name, hello, peer)
            return self._begin(hello, peer, host)

    def _begin(self, hello: Hello, peer: str, host: str) -> UploadStore | None:
        if hello.finishing:
            if not self._exists(check_name(hello.name)):
                raise RefusedError(f"{hello.name}: no such upload; make the dump again")
            return None
        name = check_name(hello.name) if hello.name else self._invent_name(host)
        self._make_way(name, hello)
        header = StateHeader(
            name=name,
            token_sha256=_hashed(hello.token),
            peer=peer,
            identity=hello.identity,
            created=now_text(),
        )
        store = UploadStore.create(self._fd, header)
        self._names[header.token_sha256] = name
        return self._keep_open(store)

    def _resume(self, name: str, hello: Hello, peer: str) -> UploadStore:
        if hello.name not in ("", name):
            raise RefusedError(f"{hello.name}: this upload was begun as {name}")
        store = self._open.get(name)
        try:
            store = store or UploadStore.reopen(self._fd, name)
        except BlockingIOError:
            raise RefusedError(f"{name}: another receiver has it open", retry=True) from None
        except FileNotFoundError:
            del self._names[_hashed(hello.token)]
            raise RefusedError(f"{name}: the unfinished upload was removed") from None
        self._keep_open(store)
        if store.header.peer != peer:
            raise RefusedError(f"{name}: this upload was begun by another peer")
        return store

    def _keep_open(self, store: UploadStore) -> UploadStore:
        self._open[store.name] = store
        self._open.move_to_end(store.name)
        idle = [name for name in self._open if name not in self.active and name != store.name]
        for name in idle[: max(len(idle) - self._limits.max_dumps, 0)]:
            self._open.pop(name).close()
        return store

    def _exists(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _make_way(self, name: str, hello: Hello) -> None:
        """Refuse a name that is taken; remove what may be replaced."""
        replaces = hello.overwrite and self._limits.allow_overwrite
        if self._exists(name) and not replaces:
            advice = "; -f overwrites it where the receiver allows that"
            raise RefusedError(f"{name}: exists{'' if hello.overwrite else advice}")
        if name in self.active:
            raise RefusedError(f"{name}: is being received from another sender")
        if self._exists(name + STATE):
            if not replaces and not self._is_stale_claim(name):
                raise RefusedError(f"{name}: an unfinished upload of another sender has this name")
            self._remove(name)
        if len(self._names) >= self._limits.max_partials:
            raise RefusedError(
                f"{len(self._names)} unfinished uploads lie here, which is this receiver's limit"
            )

    def _is_stale_claim(self, name: str) -> bool:
        status = os.stat(name + STATE, dir_fd=self._fd, follow_symlinks=False)
        if time.time() - status.st_mtime < _CLAIM_S:
            return False
        fd = os.open(name + STATE, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self._fd)
        try:
            return UploadState.load(fd).n_chunks == 0
        finally:
            os.close(fd)

    def _remove(self, name: str) -> None:
        store = self._open.pop(name, None) or UploadStore.reopen(self._fd, name)
        store.discard()
        self._forget(name)

    def _forget(self, name: str) -> None:
        self._open.pop(name, None)
        self._names = {token: each for token, each in self._names.items() if each != name}

    def _invent_name(self, host: str) -> str:
        stamp = time.strftime("%Y-%m-%d-%H-%M-%S", time.gmtime())
        name = f"vmcore-{plain_name(host)[:64]}-{stamp}"
        taken = (
            number
            for number in range(2, 1000)
            if not self._exists(f"{name}-{number}") and not self._exists(f"{name}-{number}{STATE}")
        )
        if self._exists(name) or self._exists(name + STATE):
            return f"{name}-{next(taken)}"
        return name

    def finished(self, store: UploadStore) -> None:
        """`store` was committed."""
        with self._lock:
            self._forget(store.name)

    def discard(self, store: UploadStore) -> bool:
        """Remove an upload that holds nothing yet; True when it did."""
        if store.position:
            return False
        with self._lock:
            store.discard()
            self._forget(store.name)
        return True

    def check_committed(self, name: str, trailer: Trailer) -> None:
        """Hold a dump that has its name already against `trailer`.

        Raises:
            RefusedError: another dump has that name.
            ProtocolError: what lies beside it is no manifest.
        """
        fd = os.open(check_name(name) + MANIFEST, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self._fd)
        with contextlib.closing(os.fdopen(fd, "rb")) as file:
            data = file.read(MAX_BYTES + 1)
        try:
            manifest = parse_manifest(data)
        except DumpError as error:
            raise ProtocolError(str(error)) from error
        if (manifest.digest.whole, manifest.size) != (trailer.digest, trailer.size):
            raise RefusedError(f"{name}: exists, and is another dump")


def _hashed(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
