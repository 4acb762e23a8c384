"""Text made safe for one line of a terminal."""

from __future__ import annotations

import json
import os

from hypothesis import given
from hypothesis import strategies as st

from pipeline.obs.plain import json_text, one_line, printable


@given(st.text())
def test_one_line_is_one_printable_line(text: str) -> None:
    """Whatever comes in: nothing a terminal obeys comes out, and no second line."""
    shown = one_line(text)

    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1


@given(st.text())
def test_printable_text_is_left_alone(text: str) -> None:
    """Only what cannot be shown is escaped; a second pass changes nothing."""
    assert text.isprintable() == (printable(text) == text)
    assert printable(printable(text)) == printable(text)


def test_bytes_that_are_no_text() -> None:
    """A file name with a stray byte comes out as its escape."""
    assert printable(b"a\xff".decode("utf-8", "surrogateescape")) == "a\\udcff"


@given(st.binary())
def test_names_survive_json(name: bytes) -> None:
    """Whatever bytes a file's name has, JSON gives them back; as text where they are text."""
    text = json_text({"path": os.fsdecode(name), "n": 1.5})

    found = json.loads(text)
    assert os.fsencode(found["path"]) == name
    assert found["n"] == 1.5
    assert text.endswith(b"}\n")


def test_json_is_utf_8() -> None:
    """What is text is not escaped."""
    assert "\u00fc" in json_text({"path": "\u00fc"}).decode()
