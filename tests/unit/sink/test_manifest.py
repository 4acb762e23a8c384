"""The manifest: round trip, refusal of what is not consistent, checking a dump against it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import FormatError
from pipeline.flow.items import Totals
from stages.sink.digest import Piece
from stages.sink.manifest import (
    DumpFacts,
    Manifest,
    build_manifest,
    parse_manifest,
    read_manifest,
    wrong_pieces,
)
from tests.support.chunk_stream import content

DUMP = content(0, 10_000)
PIECES = [
    Piece(at, 4096 if at < 8192 else 1808, hashlib.sha256(DUMP[at : at + 4096]).digest())
    for at in range(0, 10_000, 4096)
]


def manifest() -> Manifest:
    return build_manifest(
        name="vmcore",
        form="kdump",
        pieces=PIECES,
        totals=Totals(n_pages=7, zero_pages=2),
        facts=DumpFacts(kernel_release="6.12.1", excluded={"free": 12}, settings={"a.b": 1}),
    )


def test_manifest_comes_back(tmp_path: Path) -> None:
    """What is packed is parsed as it was, and is JSON for everybody else."""
    path = tmp_path / "vmcore.manifest.json"
    path.write_bytes(manifest().pack())

    again = read_manifest(path)

    assert again.pieces() == PIECES
    assert (again.size, again.pages.kept, again.pages.excluded) == (10_000, 7, {"free": 12})
    assert json.loads(path.read_bytes())["facts"]["kernel_release"] == "6.12.1"


def test_unknown_keys_are_ignored() -> None:
    """A later version may add keys without a new number."""
    data = json.loads(manifest().pack()) | {"later": True}

    assert parse_manifest(json.dumps(data).encode()).size == 10_000


def _set(name: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        *path, last = name.split(".")
        at = data
        for step in path:
            at = at[step]
        at[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (_set("version", 2), "version"),
        (_set("version", "1"), "JSON"),
        (_set("size", 9_999), "digest.pieces"),
        (_set("digest.whole", "0" * 64), "digest.whole"),
        (_set("digest.scheme", "md5"), "digest.scheme"),
        (_set("digest.pieces", [[0, 10_000, "xyz"]]), "digest.pieces"),
        (_set("digest.pieces", [[0, 5000, "0" * 64], [5001, 4999, "0" * 64]]), "digest.pieces"),
        (_set("digest.pieces", [[-5, 10_005, "0" * 64]]), "digest.pieces"),
    ],
)
def test_inconsistent_manifest_is_refused(
    change: Callable[[dict[str, Any]], None], field: str
) -> None:
    """A manifest that contradicts itself proves nothing, and says where it does."""
    data = json.loads(manifest().pack())
    change(data)

    with pytest.raises(FormatError) as caught:
        parse_manifest(json.dumps(data).encode())

    assert caught.value.field == field


@given(st.binary(max_size=200))
def test_anything_else_is_a_format_error(data: bytes) -> None:
    """Garbage is refused, never a traceback."""
    with pytest.raises(FormatError):
        parse_manifest(data)


async def test_changed_pieces_are_found() -> None:
    """One flipped bit, and a cut end, are found in the pieces where they are."""
    damaged = bytearray(DUMP)
    damaged[5000] ^= 1

    async def read(offset: int, length: int) -> bytes:
        return bytes(damaged[offset : offset + length])

    assert [piece.offset async for piece in wrong_pieces(PIECES, read)] == [4096]
    del damaged[9000:]
    assert [piece.offset async for piece in wrong_pieces(PIECES, read)] == [4096, 8192]
