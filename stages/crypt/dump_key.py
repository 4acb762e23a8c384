"""The key of the dump that is being made: new, or the one an upload was begun with."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from pipeline.errors import FormatError
from pipeline.obs.version import own_version
from stages.crypt.commands import require_library
from stages.crypt.keys import parse_recipients
from stages.crypt.payload import SEED_BYTES, DumpKey

if TYPE_CHECKING:
    from stages.sink.journal import Journal

_RECORD: Final = "encryption"


def make_dump_key(encrypt_to: Sequence[str], journal: Journal | None = None) -> DumpKey:
    """A key for the recipients that ``--encrypt-to`` names.

    Args:
        encrypt_to: keys, or ``@FILE`` for files of keys.
        journal: of the upload. Its seed is used again, so that blocks are sealed to the bytes that
            were sent before; a journal without one gets one. Whoever has seed and file can
            decrypt, so the journal must go when the dump is committed, as uploads do.

    Raises:
        KeyFormatError: a key or file is not what it should be.
        UnsupportedError: encryption was not installed.
        FormatError: the journal's record is damaged.
        SinkError: the journal cannot be written.
    """
    require_library()
    recipients = parse_recipients(encrypt_to)
    if journal is None:
        return DumpKey(recipients, secrets.token_bytes(SEED_BYTES))
    seed = _seed_of(journal)
    if seed is None:
        seed = secrets.token_bytes(SEED_BYTES)
        journal.append(_RECORD, seed=seed.hex())
    return DumpKey(recipients, seed, _context(journal))


def _seed_of(journal: Journal) -> bytes | None:
    for record in journal.records:
        if record.get("kind") == _RECORD:
            try:
                seed = bytes.fromhex(str(record.get("seed")))
            except ValueError:
                seed = b""
            if len(seed) != SEED_BYTES:
                raise FormatError("journal", None, _RECORD, "no seed", f"{SEED_BYTES} bytes")
            return seed
    return None


def _context(journal: Journal) -> bytes:
    """Everything that decides the dump's bytes; this program's version, not the journal's."""
    header = journal.header
    return msgspec.json.encode([header.source, header.settings, own_version()], order="sorted")
