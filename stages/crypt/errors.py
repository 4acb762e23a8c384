"""What can be wrong with keys and encrypted dumps; messages never hold a secret."""

from __future__ import annotations

from pipeline.errors import DumpError


class KeyFormatError(DumpError):
    """A key, or a file of keys, is not what it should be."""


class DecryptError(DumpError):
    """An encrypted dump cannot be opened: wrong key, cut, or changed."""
