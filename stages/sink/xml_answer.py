"""XML that object stores answer with, and their errors in it; pure.

Answers come from the network: who reads them bounds their size, and what does not fit is an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from pipeline.errors import FormatError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_MAX_SHOWN: Final = 200


class ErrorAnswer(NamedTuple):
    """``<Error>``; empty strings where the server says nothing."""

    code: str
    message: str


def parse_error(data: bytes) -> ErrorAnswer:
    """The error in an answer; never raises, since servers and proxies answer with anything."""
    try:
        root = parse_xml("Error", data)
    except FormatError:
        return ErrorAnswer("", "")
    return ErrorAnswer(_shown(text_of(root, "Code")), _shown(text_of(root, "Message")))


def parse_xml(name: str, data: bytes) -> Element:
    """The root of a document; `name` stands in the error.

    Raises:
        FormatError: no XML, or XML with a document type, which no store sends.
    """
    from xml.etree import ElementTree

    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise FormatError("store's answer", None, name, "a document type", "plain XML")
    try:
        return ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise FormatError("store's answer", None, name, str(error), "XML") from error


def text_of(root: Element, tag: str) -> str:
    """What the first `tag` inside `root` holds, in whatever namespace; empty without one."""
    found = root.find(f"{{*}}{tag}")
    return "" if found is None else found.text or ""


def _shown(text: str) -> str:
    """The first line, printable and of bounded length."""
    first = text.strip().partition("\n")[0]
    line = "".join(each if each.isprintable() else " " for each in first).strip()
    return line if len(line) <= _MAX_SHOWN else f"{line[:_MAX_SHOWN]}..."
