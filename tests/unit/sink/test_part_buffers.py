"""Buffers that are used again show nothing of what they held where that matters."""

from __future__ import annotations

import mmap

import anyio
import pytest

from stages.sink.part_buffers import PartBuffers

KEPT = 2 * mmap.PAGESIZE
OTHER = mmap.PAGESIZE


async def used(buffers: PartBuffers, n_bytes: int) -> mmap.mmap:
    """A buffer that was full and has been given back."""
    buffer = await buffers.take(n_bytes, zeros=False)
    buffer[:] = b"x" * n_bytes
    buffers.give_back(buffer)
    return buffer


@pytest.mark.parametrize("n_bytes", [KEPT, OTHER])
async def test_zeros_are_zeros_whatever_was_there(n_bytes: int) -> None:
    """A part with gaps gets a clear buffer, new or not."""
    buffers = PartBuffers(2, KEPT)
    before = await used(buffers, n_bytes)

    buffer = await buffers.take(n_bytes, zeros=True)

    assert buffer is before
    assert buffer[:] == bytes(n_bytes)


async def test_only_buffers_of_the_usual_size_keep_their_memory() -> None:
    """What is seldom used gives its memory back at once; the rest is used again as it is."""
    buffers = PartBuffers(2, KEPT)
    kept, other = await used(buffers, KEPT), await used(buffers, OTHER)

    assert kept[:] == b"x" * KEPT
    assert other[:] == bytes(OTHER)


async def test_no_more_are_out_than_agreed() -> None:
    """Who asks for one more waits until one comes back."""
    buffers = PartBuffers(1, KEPT)
    first = await buffers.take(KEPT, zeros=False)
    with anyio.move_on_after(0.01) as scope:
        await buffers.take(KEPT, zeros=False)
    assert scope.cancelled_caught

    buffers.give_back(first)

    with anyio.fail_after(1):
        await buffers.take(KEPT, zeros=False)
