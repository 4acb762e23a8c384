"""Bech32, the spelling of age's keys: a prefix, ``1``, five bits a letter, six letters of checksum.

References:
    BIP 173; age lifts its limit of 90 characters
"""

from __future__ import annotations

from typing import Final

_LETTERS: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_GENERATOR: Final = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_CHECKSUM_LETTERS: Final = 6
_MAX_CHARS: Final = 8192


def encode(prefix: str, data: bytes) -> str:
    """`data` in lower case."""
    values = _regroup(data, 8, 5, pad=True)
    polymod = _polymod([*_expand(prefix), *values, *([0] * _CHECKSUM_LETTERS)]) ^ 1
    checksum = [polymod >> 5 * (_CHECKSUM_LETTERS - 1 - at) & 31 for at in range(_CHECKSUM_LETTERS)]
    return f"{prefix}1" + "".join(_LETTERS[value] for value in [*values, *checksum])


def decode(text: str) -> tuple[str, bytes]:
    """Prefix, in lower case, and data of `text`.

    Raises:
        ValueError: not Bech32, or a letter is wrong; says nothing of what was in it.
    """
    if not text.isascii() or len(text) > _MAX_CHARS or text not in (text.lower(), text.upper()):
        raise ValueError("not Bech32")
    prefix, found, letters = text.lower().rpartition("1")
    if not found or not prefix or len(letters) < _CHECKSUM_LETTERS or set(letters) - set(_LETTERS):
        raise ValueError("not Bech32")
    values = [_LETTERS.index(letter) for letter in letters]
    if _polymod([*_expand(prefix), *values]) != 1:
        raise ValueError("mistyped: its checksum is wrong")
    return prefix, bytes(_regroup(values[:-_CHECKSUM_LETTERS], 5, 8, pad=False))


def _expand(prefix: str) -> list[int]:
    codes = [ord(letter) for letter in prefix]
    return [*(code >> 5 for code in codes), 0, *(code & 31 for code in codes)]


def _polymod(values: list[int]) -> int:
    check = 1
    for value in values:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate(_GENERATOR):
            if top >> bit & 1:
                check ^= generator
    return check


def _regroup(values: bytes | list[int], n_from: int, n_to: int, *, pad: bool) -> list[int]:
    """The same bits in groups of another size."""
    held = n_held = 0
    groups: list[int] = []
    for value in values:
        held = (held << n_from | value) & 0xFFF
        n_held += n_from
        while n_held >= n_to:
            n_held -= n_to
            groups.append(held >> n_held & ((1 << n_to) - 1))
    rest = held & ((1 << n_held) - 1)
    if pad and n_held:
        groups.append(rest << (n_to - n_held))
    elif not pad and (n_held >= n_from or rest):
        raise ValueError("not Bech32: bits are left over")
    return groups
