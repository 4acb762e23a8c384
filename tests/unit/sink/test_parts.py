"""Parts of an upload: every byte in exactly one place, few parts open, sizes within the limits."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SinkError
from pipeline.flow.items import Chunk, ChunkKind, Outline
from stages.sink.parts import Grid, Part, PartAssembler, PartLimits, plan_grid
from tests.support.chunk_stream import content

MIB = 1 << 20
S3 = PartLimits(5 * MIB, 5 << 30, 10_000)


def dump_chunks(
    head: int, gap: int, low: int, pad: int, data: int, step: int, rng: random.Random
) -> list[Chunk]:
    """All chunks of a dump in some order that the writer may choose; the head last."""
    low_start = head + gap
    data_start = low_start + low + pad
    lows = [
        Chunk(ChunkKind.DESCRIPTORS, at, content(at, min(step, low_start + low - at)))
        for at in range(low_start, low_start + low, step)
    ]
    datas = [
        Chunk(ChunkKind.DATA, at, content(at, min(step, data_start + data - at)))
        for at in range(data_start, data_start + data, step)
    ]
    order = [lows] * len(lows) + [datas] * len(datas)
    rng.shuffle(order)
    iterators = {id(each): iter(each) for each in (lows, datas)}
    chunks = [next(iterators[id(each)]) for each in order]
    return [*chunks, Chunk(ChunkKind.HEAD, 0, content(0, head))]


def assemble(grid: Grid, chunks: list[Chunk]) -> tuple[bytes, int]:
    """The object that the parts make up, and how many were open at once at most."""
    assembler = PartAssembler(grid)
    buffers: dict[int, bytearray] = {}
    parts: dict[int, tuple[Part, bytes]] = {}
    most_open = 0
    for chunk in chunks:
        for span in assembler.spans(chunk):
            buffer = buffers.setdefault(span.number, bytearray(grid.part(span.number).n_bytes))
            most_open = max(most_open, len(buffers))
            if span.data is not None:
                buffer[span.start : span.start + span.n_bytes] = span.data
            part = assembler.add(chunk.kind, span)
            if part is not None:
                assert part.number not in parts
                parts[part.number] = (part, bytes(buffers.pop(part.number)))
    for part in assembler.finish(set(parts)):
        buffer = buffers.pop(part.number, bytearray(part.n_bytes))
        parts[part.number] = (part, bytes(buffer[: part.n_bytes]))
    assert not buffers
    assert sorted(parts) == list(range(1, len(parts) + 1))
    joined = bytearray()
    for number in sorted(parts):
        part, data = parts[number]
        assert part.offset == len(joined)
        joined += data
    return bytes(joined), most_open


@given(
    head=st.integers(1, 300),
    gap=st.integers(0, 30),
    low=st.integers(0, 900),
    pad=st.integers(0, 30),
    data=st.integers(0, 2000),
    step=st.integers(1, 400),
    low_part=st.integers(40, 700),
    data_part=st.integers(40, 700),
    seed=st.integers(0, 1000),
)
def test_parts_make_up_the_dump(
    head: int,
    gap: int,
    low: int,
    pad: int,
    data: int,
    step: int,
    low_part: int,
    data_part: int,
    seed: int,
) -> None:
    """Whatever the sizes and the order of the cursors, the parts joined are the dump."""
    chunks = dump_chunks(head, gap, low, pad, data, step, random.Random(seed))
    data_start = head + gap + low + pad
    grid = Grid(data_start, low_part, data_part)

    joined, most_open = assemble(grid, chunks)

    expected = bytearray(data_start + data)
    for chunk in chunks:
        expected[chunk.offset : chunk.offset + chunk.n_bytes] = chunk.data
    assert joined == expected
    # A head that is longer than a part passes through one more.
    assert most_open <= grid.n_open + (head + gap > low_part)


def test_stream_without_head_is_cut_into_parts() -> None:
    """A form with no head region (data from 0 on) works as well."""
    grid = Grid(0, 100, 100)
    chunks = [Chunk(ChunkKind.DATA, at, content(at, 30)) for at in range(0, 270, 30)]

    joined, most_open = assemble(grid, chunks)

    assert joined == content(0, 270)
    assert most_open == 1


@pytest.mark.parametrize(
    ("chunk", "said"),
    [
        (Chunk(ChunkKind.DATA, 1001, b"x"), "DATA chunk of 1 bytes at 1001, wanted at 1000"),
        (Chunk(ChunkKind.BITMAP, 995, b"x" * 10), "below the data at 1000"),
        (Chunk(ChunkKind.HEAD, 0, b"x" * 1001), "below 1000"),
        (Chunk(ChunkKind.HEAD, 4, b"x"), "at 4"),
    ],
)
def test_chunk_out_of_place_is_refused(chunk: Chunk, said: str) -> None:
    """A writer that breaks the contract fails the dump instead of damaging it."""
    assembler = PartAssembler(Grid(1000, 100, 100))

    with pytest.raises(SinkError, match=said):
        list(assembler.spans(chunk))


def test_dump_without_its_head_is_refused() -> None:
    """An end without the head would leave zeros where the header belongs."""
    assembler = PartAssembler(Grid(1000, 100, 100))

    with pytest.raises(SinkError, match="without its head"):
        assembler.finish(set())


@pytest.mark.parametrize("wanted", [None, 8 * MIB, 512 * MIB])
@pytest.mark.parametrize("n_pages", [1, 10_000, 12_000_000, 300_000_000, 3_200_000_000])
def test_largest_possible_dump_fits(n_pages: int, wanted: int | None) -> None:
    """From one page to 12 TiB, a dump that does not compress stays within 10,000 parts."""
    data_start = 4096 * 10 + n_pages // 4 + 24 * n_pages
    outline = Outline(data_start, data_start + 4096 * n_pages)

    grid = plan_grid(outline, S3, wanted)

    number, _ = grid.locate(outline.most_bytes - 1)
    assert number <= S3.most_parts
    assert S3.least_bytes <= min(grid.low_part, grid.data_part)
    assert max(grid.low_part, grid.data_part) <= S3.most_bytes
    assert wanted is None or wanted <= grid.data_part


def test_small_dump_has_small_equal_parts() -> None:
    """Stores that want equal parts get them wherever the smallest ones do."""
    grid = plan_grid(Outline(30 * MIB, 40 << 30), S3, None)

    assert grid.low_part == grid.data_part == 5 * MIB


def test_presigned_parts_keep_their_size() -> None:
    """With a size that cannot change, a dump that may not fit is tried all the same."""
    fixed = PartLimits(8 * MIB, 8 * MIB, 3)

    grid = plan_grid(Outline(1 * MIB, 100 * MIB), fixed, None)

    assert grid.low_part == grid.data_part == 8 * MIB


@given(st.integers(0, 5000), st.integers(1, 500), st.integers(1, 500), st.integers(0, 10_000))
def test_locate_is_the_inverse_of_part(
    data_start: int, low_part: int, data_part: int, offset: int
) -> None:
    """The part that holds an offset says so itself."""
    grid = Grid(data_start, low_part, data_part)

    number, start = grid.locate(offset)
    part = grid.part(number)

    assert part.offset + start == offset
    assert start < part.n_bytes
