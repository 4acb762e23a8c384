"""What one invocation is asked to do; how it is done is in the settings."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

STDOUT: Final = "-"
_APPEND_ONLY: Final = ("ssh://",)


class DumpRequest(Struct, frozen=True):
    """From where to where.

    Attributes:
        source: path of the memory image.
        target: a path, ``-`` for standard output, or a URL (``sftp://``, ``s3://``, ...).
        debug: show tracebacks; for people who work on dumpstream itself.
        also: further targets, which get the same dump at the same time.
        encrypt_to: public keys (``age1...``) or ``@FILE``; empty for a dump that anyone can read.
        journal: of an upload to go on with, None for a new dump.
    """

    source: str
    target: str
    debug: bool = False
    also: tuple[str, ...] = ()
    encrypt_to: tuple[str, ...] = ()
    journal: str | None = None

    @property
    def to_stdout(self) -> bool:
        return self.target == STDOUT

    @property
    def is_stream(self) -> bool:
        """True: bytes leave in order and are never revisited, so only the flattened form fits."""
        return self.to_stdout or self.target.startswith(_APPEND_ONLY)

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.target, *self.also)
