"""What a receiver is willing to take: its limits, and the names that a dump may have."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from stages.transport.errors import RefusedError
from stages.transport.messages import MAX_SIZE

PARTIAL: Final = ".partial"
STATE: Final = ".partial.state"
MANIFEST: Final = ".manifest.json"
_RESERVED: Final = (PARTIAL, STATE, MANIFEST, ".tmp")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@=-]{0,127}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one receiver.

    Attributes:
        max_bytes: of one dump.
        max_dumps: received at once.
        max_partials: unfinished dumps that may lie in the directory.
        max_rate: bytes a second of all senders together, 0 for no limit.
        hello_timeout_s: for a connection to say who it is, TLS included.
        idle_timeout_s: silence after which a connection is closed; the upload may be resumed.
        sync_bytes: written between two syncs to disk.
        allow_overwrite: a sender that asks to may replace a dump.
    """

    max_bytes: int = MAX_SIZE
    max_dumps: int = 8
    max_partials: int = 64
    max_rate: int = 0
    hello_timeout_s: float = 10.0
    idle_timeout_s: float = 60.0
    sync_bytes: int = 64 << 20
    allow_overwrite: bool = False

    @property
    def max_connections(self) -> int:
        """Open at once: one for each dump, as many that take over from one that hangs, and a few
        that are told to come back later.
        """
        return 2 * self.max_dumps + 8

    def max_chunks(self, size: int) -> int:
        """Chunks that a dump of `size` bytes may come in; bounds what the books of it take."""
        return 4096 + size // 2048


def check_name(name: str) -> str:
    """`name`, if it is a plain file name without surprises.

    Raises:
        RefusedError: it is not.
    """
    if not _NAME.fullmatch(name):
        raise RefusedError(
            f"{name!r} is no name for a dump: 1 to 128 letters, digits and . _ + @ = - "
            "with a letter or digit first"
        )
    if name.endswith(_RESERVED):
        raise RefusedError(f"{name!r} is no name for a dump: {', '.join(_RESERVED)} are taken")
    return name


def plain_name(text: str) -> str:
    """`text` with what names may not have replaced; never empty."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.") or "unknown"
