"""`dumpstream keygen` and `dumpstream decrypt`: what the command line calls."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pipeline.errors import EXIT_DONE, UnsupportedError, UsageError
from pipeline.obs.log import log_event
from stages.crypt.errors import KeyFormatError

_PRIVATE: Final = 0o600


def require_library() -> None:
    """Refuse early where encryption was not installed.

    Raises:
        UnsupportedError: the package that does the work is missing.
    """
    try:
        import cryptography  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise UnsupportedError(
            "encryption needs the package cryptography (dumpstream[crypt])"
        ) from error


def run_keygen(path: str | None) -> int:
    """Make a key; its secret goes to a new file that only its owner may read.

    Args:
        path: of the file, None to write it to standard output.

    Raises:
        UsageError: `target` is the source or the file of keys.
        KeyFormatError: the file exists or cannot be written.
        UnsupportedError: encryption was not installed.
    """
    require_library()
    from stages.crypt.keys import new_identity

    identity = new_identity()
    made = datetime.now(UTC).isoformat(timespec="seconds")
    text = f"# created: {made}\n# public key: {identity.recipient}\n{identity.spelt()}\n"
    if path is None:
        sys.stdout.write(text)
        return EXIT_DONE
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _PRIVATE)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(text)
    except OSError as error:
        raise KeyFormatError(f"{path}: {error.strerror or error}") from error
    sys.stdout.write(f"{identity.recipient}\n")
    return EXIT_DONE


def run_decrypt(source: str, target: str, identity_file: str, *, overwrite: bool = False) -> int:
    """Decrypt `source` into `target`.

    Raises:
        KeyFormatError: the file of keys cannot be used.
        DecryptError: no key fits, or the source was cut, changed or is something else.
        SinkError: the target cannot be written.
        OSError: the source cannot be read.
        UnsupportedError: encryption was not installed.
    """
    require_library()
    from stages.crypt.decrypt import decrypt_file
    from stages.crypt.keys import read_identities
    from stages.sink.partial_file import PartialFile

    identities = read_identities(identity_file)
    file = PartialFile(target, overwrite=overwrite, fsync=True)
    for needed in source, identity_file:
        if file.would_replace(needed):
            raise UsageError(f"{target}: would replace {needed}")
    size = decrypt_file(Path(source), file, identities)
    log_event("dump_decrypted", file=target, bytes=size)
    return EXIT_DONE
