"""Text from an image, a file name or an exception, made safe for whoever is to read it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TextIO


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


def takes_escapes(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that can do more than print."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def json_text(value: object) -> bytes:
    """`value` as indented JSON; bytes of a name that are no UTF-8 come as in events of the log."""
    import msgspec

    try:
        return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
    except UnicodeEncodeError:  # msgspec has no escape for them
        import json

        return json.dumps(value, indent=2).encode() + b"\n"
