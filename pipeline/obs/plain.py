"""Text from an image, a file name or an exception, made safe for a terminal and a single line."""

from __future__ import annotations


def one_line(text: str) -> str:
    """`text` on one line: white space joined, control characters as escapes."""
    return printable(" ".join(text.split()))


def printable(text: str) -> str:
    """`text` with everything that a terminal might obey, or cannot show, as a Python escape."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
