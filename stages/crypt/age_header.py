"""The head of an encrypted dump: the file key, wrapped to each recipient, and authenticated.

References:
    The age file encryption format, https://c2sp.org/age (version 1)

::

    age-encryption.org/v1
    -> X25519 <ephemeral share>
    <file key, wrapped>
    --- <HMAC of everything up to here>

Binary parts are unpadded base64. After the head come 16 bytes of nonce and the payload.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence
from typing import Final, NamedTuple

from pipeline.memory.sizes import show_count
from stages.crypt.errors import DecryptError
from stages.crypt.keys import Identity, Recipient

INTRO: Final = b"age-encryption.org/v1\n"
FILE_KEY_BYTES: Final = 16
NONCE_BYTES: Final = 16
MAX_HEADER: Final = 64 << 10
_STANZA: Final = b"-> "
_MAC: Final = b"---"
_COLUMNS: Final = 64
_X25519: Final = b"X25519"
_X25519_INFO: Final = b"age-encryption.org/v1/X25519"
_WRAPPED_BYTES: Final = 32


class Stanza(NamedTuple):
    """The file key for one recipient; of types that we do not know, too."""

    args: list[bytes]
    body: bytes


def hkdf(key: bytes, salt: bytes, info: bytes, length: int = 32) -> bytes:
    """HKDF-SHA256 (RFC 5869); at most 255 * 32 bytes."""
    prk = hmac.digest(salt or bytes(32), key, hashlib.sha256)
    out, block = b"", b""
    while len(out) < length:
        block = hmac.digest(prk, block + info + bytes([len(out) // 32 + 1]), hashlib.sha256)
        out += block
    return out[:length]


def pack_header(file_key: bytes, wrapped: Sequence[tuple[Recipient, bytes]]) -> bytes:
    """The head for `file_key`.

    Args:
        file_key: 16 bytes.
        wrapped: each recipient with the ephemeral secret, 32 bytes, to be used for it alone.
    """
    text = INTRO
    for recipient, ephemeral in wrapped:
        stanza = _wrap(file_key, recipient, ephemeral)
        text += _STANZA + b" ".join(stanza.args) + b"\n" + _encode(stanza.body) + b"\n"
    text += _MAC
    return text + b" " + _encode(_header_mac(file_key, text)) + b"\n"


def _wrap(file_key: bytes, recipient: Recipient, ephemeral: bytes) -> Stanza:
    from cryptography.hazmat.primitives.asymmetric.x25519 import (
        X25519PrivateKey,
        X25519PublicKey,
    )
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    private = X25519PrivateKey.from_private_bytes(ephemeral)
    share = private.public_key().public_bytes_raw()
    shared = private.exchange(X25519PublicKey.from_public_bytes(recipient.public))
    key = hkdf(shared, share + recipient.public, _X25519_INFO)
    # The key is used once, so the nonce of zeros is.
    body = ChaCha20Poly1305(key).encrypt(bytes(12), file_key, None)
    return Stanza([_X25519, _encode(share)], body)


def unwrap(header: bytes, identities: Sequence[Identity]) -> bytes:
    """The file key in `header`, which must be complete.

    Raises:
        DecryptError: no identity opens it, it was changed, or it is no head.
    """
    stanzas, end_of_text, mac = _parse(header)
    for stanza in stanzas:
        for identity in identities:
            file_key = _unwrap(stanza, identity)
            if file_key is not None:
                if not hmac.compare_digest(_header_mac(file_key, header[:end_of_text]), mac):
                    raise DecryptError("the head was changed: its HMAC is wrong")
                return file_key
    raise DecryptError(
        f"is encrypted to {show_count(len(stanzas), 'recipient')}; "
        f"tried {show_count(len(identities), 'key')}, none fits"
    )


def _unwrap(stanza: Stanza, identity: Identity) -> bytes | None:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.asymmetric.x25519 import (
        X25519PrivateKey,
        X25519PublicKey,
    )
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    if stanza.args[0] != _X25519:
        return None
    if len(stanza.args) != 2 or len(stanza.body) != _WRAPPED_BYTES:
        raise DecryptError("is damaged: an X25519 stanza has the wrong form")
    share = _decode(stanza.args[1])
    try:
        private = X25519PrivateKey.from_private_bytes(identity.secret)
        shared = private.exchange(X25519PublicKey.from_public_bytes(share))
    except ValueError as error:
        raise DecryptError("is damaged: an X25519 stanza has no valid share") from error
    key = hkdf(shared, share + identity.recipient.public, _X25519_INFO)
    try:
        return ChaCha20Poly1305(key).decrypt(bytes(12), stanza.body, None)
    except InvalidTag:
        return None


def header_size(start: bytes) -> int | None:
    """Bytes of the head that `start` begins with; None when more of the file is needed to tell.

    Raises:
        DecryptError: `start` is no beginning of an encrypted file, or its head has no end.
    """
    if not start.startswith(INTRO[: len(start)]):
        raise DecryptError("is not encrypted, or not with age")
    at = start.find(b"\n" + _MAC)
    end = start.find(b"\n", at + 1) if at >= 0 else -1
    if end >= 0:
        return end + 1
    if len(start) >= MAX_HEADER:
        raise DecryptError(f"is damaged: no end of the head in {MAX_HEADER} bytes")
    return None


def _parse(header: bytes) -> tuple[list[Stanza], int, bytes]:
    """Stanzas, where the authenticated text ends, and its HMAC."""
    lines = header.split(b"\n")[1:-1]
    stanzas: list[Stanza] = []
    while lines and lines[0].startswith(_STANZA):
        args = lines.pop(0)[len(_STANZA) :].split(b" ")
        body = b""
        while lines:
            line = lines.pop(0)
            body += line
            if len(line) < _COLUMNS:
                break
        stanzas.append(Stanza(args, _decode(body)))
    if len(lines) != 1 or not lines[0].startswith(_MAC + b" ") or not stanzas:
        raise DecryptError("is damaged: the head is not as age writes it")
    mac_line = lines[0]
    return stanzas, len(header) - 1 - len(mac_line) + len(_MAC), _decode(mac_line[4:])


def _header_mac(file_key: bytes, text: bytes) -> bytes:
    return hmac.digest(hkdf(file_key, b"", b"header"), text, hashlib.sha256)


def payload_key(file_key: bytes, nonce: bytes) -> bytes:
    """The key of the payload that follows `nonce`."""
    return hkdf(file_key, nonce, b"payload")


def _encode(data: bytes) -> bytes:
    return base64.b64encode(data).rstrip(b"=")


def _decode(text: bytes) -> bytes:
    try:
        data = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except ValueError as error:
        raise DecryptError("is damaged: base64 in the head is wrong") from error
    if _encode(data) != text:
        raise DecryptError("is damaged: base64 in the head is not canonical")
    return data
