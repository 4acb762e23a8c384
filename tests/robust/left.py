"""What a failed run leaves: a dump that says what it is, and holds what it says."""

from __future__ import annotations

from pathlib import Path

from stages.formats.kdump import MAIN_HEADER_SIZE, MainHeader, Status
from stages.reader.probe import open_image
from tests.robust.running import Done, call, left_in


def check_left(done: Done, partial: Path, source: Path, n_least: int) -> None:
    """The run ended with code 3, and `check_partial` holds."""
    done.failed(3, f"the dump is usable as far as it goes: {partial}")
    check_partial(partial, source, n_least)


def check_partial(partial: Path, source: Path, n_least: int) -> None:
    """The file is alone and marked, it opens, it holds `n_least` pages, and each is right."""
    assert left_in(partial.parent) == [partial.name]
    head = MainHeader.parse(partial.read_bytes()[:MAIN_HEADER_SIZE])
    assert head.status & Status.INCOMPLETE
    said = call("verify", partial, "--against", source).out
    assert "marked incomplete by its writer" in said
    assert ", 1 problem" in said, said
    image = open_image(str(partial))
    n_pages = image.saved.n_pages
    image.close()
    assert n_pages >= n_least
    assert f"NOT OK: {n_pages} of {n_pages} pages good" in said
