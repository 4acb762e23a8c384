"""Keys of recipients and identities, as age spells them: ``age1...`` and ``AGE-SECRET-KEY-1...``.

A recipient's key only encrypts, so it may lie in a capture image; the identity that decrypts never
needs to be on the machine that crashes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from stages.crypt import bech32
from stages.crypt.errors import KeyFormatError

_RECIPIENT: Final = "age"
_IDENTITY: Final = "age-secret-key-"
_KEY_BYTES: Final = 32
_MAX_FILE: Final = 1 << 20
MAX_RECIPIENTS: Final = 64


@dataclass(frozen=True, slots=True)
class Recipient:
    """An X25519 public key."""

    public: bytes

    def __str__(self) -> str:
        return bech32.encode(_RECIPIENT, self.public)


@dataclass(frozen=True, slots=True)
class Identity:
    """An X25519 secret key; its text never shows in a `repr`."""

    secret: bytes = field(repr=False)

    @property
    def recipient(self) -> Recipient:
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        private = X25519PrivateKey.from_private_bytes(self.secret)
        return Recipient(private.public_key().public_bytes_raw())

    def spelt(self) -> str:
        """The secret itself, for the file that keeps it."""
        return bech32.encode(_IDENTITY, self.secret).upper()


def parse_recipients(words: Sequence[str]) -> list[Recipient]:
    """The keys that ``--encrypt-to`` was given: each a key, or ``@FILE`` with one a line.

    Raises:
        KeyFormatError: a word is no recipient's key, a file cannot be read, or there are too many.
    """
    found = dict.fromkeys(
        _parse_recipient(text, where) for word in words for text, where in _spelt_keys(word)
    )
    if not 1 <= len(found) <= MAX_RECIPIENTS:
        raise KeyFormatError(f"{len(found)} recipients; 1 to {MAX_RECIPIENTS} can be encrypted to")
    return list(found)


def _spelt_keys(word: str) -> Iterator[tuple[str, str]]:
    """(key, where it stands)."""
    if not word.startswith("@"):
        yield word.strip(), "--encrypt-to"
        return
    path = word[1:]
    for number, line in _key_lines(path):
        yield line, f"{path}, line {number}"


def _key_lines(path: str) -> Iterator[tuple[int, str]]:
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise KeyFormatError(f"{path}: {error.strerror or error}") from error
    if len(data) > _MAX_FILE or not data.isascii():
        raise KeyFormatError(f"{path}: is no file of keys")
    for number, line in enumerate(data.decode().splitlines(), 1):
        text = line.strip()
        if text and not text.startswith("#"):
            yield number, text


def _parse_recipient(text: str, where: str) -> Recipient:
    if text.upper().startswith(_IDENTITY.upper()):
        raise KeyFormatError(
            f"{where}: is a secret key; what encrypts is its public key (age1...), which "
            "stands beside it in the file that keygen wrote"
        )
    data = _decode(text, _RECIPIENT, where, "a recipient's key (age1...)")
    return Recipient(data)


def read_identities(path: str) -> list[Identity]:
    """The secret keys in a file.

    Raises:
        KeyFormatError: it cannot be read, or holds something else.
    """
    found = [
        Identity(_decode(text, _IDENTITY, f"{path}, line {number}", "a secret key"))
        for number, text in _key_lines(path)
    ]
    if not found:
        raise KeyFormatError(f"{path}: holds no key")
    return found


def _decode(text: str, wanted: str, where: str, what: str) -> bytes:
    """The key in `text`; errors must not repeat it, it may be a secret."""
    try:
        prefix, data = bech32.decode(text)
    except ValueError as error:
        raise KeyFormatError(f"{where}: is not {what}: {error}") from None
    if prefix != wanted or len(data) != _KEY_BYTES:
        raise KeyFormatError(f"{where}: is not {what}; X25519 keys of age are what is supported")
    return data


def new_identity() -> Identity:
    """A key from the system's random numbers."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return Identity(X25519PrivateKey.generate().private_bytes_raw())
