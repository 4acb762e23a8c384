"""Reading kernel memory by virtual address."""

from __future__ import annotations

import anyio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import FormatError, MissingPageError, NonCanonicalError, NotPresentError
from stages.arch.x86_64 import FOUR_LEVELS
from stages.translator.memory import MAX_READ_BYTES, VirtualMemory
from stages.translator.space import KernelSpace
from tests.support.pagetable_builder import DictPages, PageTableBuilder
from tests.unit.translator.mappings import ROOT, addresses

BASE = 0xFFFFC90000000000
N_PAGES = 8


def scattered_memory() -> tuple[VirtualMemory, bytes]:
    """Eight pages, in a row by virtual address and far apart in memory, and what they hold.

    Page 5 is not mapped, page 7 is mapped and not in the image; they read as zero here.
    """
    content = bytearray(np.random.default_rng(7).bytes(N_PAGES * 4096))
    builder = PageTableBuilder(FOUR_LEVELS, ROOT)
    builder.map((1 << 64) - 4096, ROOT, 12)
    for page in range(N_PAGES):
        paddr = 0x40000000 - page * 0x10000
        if page != 5:
            builder.map(BASE + page * 4096, paddr, 12)
        if page not in (5, 7):
            builder.pages[paddr >> 12] = content[page * 4096 :][:4096]
        else:
            content[page * 4096 :][:4096] = bytes(4096)
    pages = DictPages(builder.pages, page_size=4096)
    return VirtualMemory(KernelSpace(FOUR_LEVELS, ROOT, pages), pages, "<"), bytes(content)


class TestRead:
    @pytest.mark.parametrize(("at", "n_bytes"), [(0, 1), (4090, 12), (1, 5 * 4096 - 1), (77, 0)])
    async def test_across_pages(self, at: int, n_bytes: int) -> None:
        """Bytes come in order of virtual address, wherever the pages lie."""
        memory, content = scattered_memory()

        assert await memory.read(BASE + at, n_bytes) == content[at : at + n_bytes]

    async def test_numbers(self) -> None:
        """Numbers are unsigned and in the kernel's byte order."""
        memory, content = scattered_memory()

        assert await memory.read_u64(BASE + 4092) == int.from_bytes(content[4092:4100], "little")
        assert await memory.read_u32(BASE + 4) == int.from_bytes(content[4:8], "little")

    async def test_unmapped_page(self) -> None:
        """A page that is not mapped is named with its entry, at its first byte that was wanted."""
        memory, _ = scattered_memory()

        with pytest.raises(NotPresentError) as caught:
            await memory.read(BASE + 4 * 4096, 3 * 4096)

        assert caught.value.address == BASE + 5 * 4096
        assert (caught.value.level, caught.value.index, caught.value.entry) == ("pte", 5, 0)

    async def test_middle_of_an_unmapped_page(self) -> None:
        """A read that starts inside an unmapped page is refused with its own address."""
        memory, _ = scattered_memory()

        with pytest.raises(NotPresentError) as caught:
            await memory.read(BASE + 5 * 4096 + 100, 8)

        assert caught.value.address == BASE + 5 * 4096 + 100

    async def test_missing_page(self) -> None:
        """A page that the image lacks is named by its frame number."""
        memory, _ = scattered_memory()

        with pytest.raises(MissingPageError) as caught:
            await memory.read(BASE + 7 * 4096 + 5, 8)

        assert caught.value.pfn == (0x40000000 - 7 * 0x10000) >> 12

    @pytest.mark.parametrize(
        ("vaddr", "n_bytes", "error"),
        [
            (BASE, MAX_READ_BYTES + 1, FormatError),
            (BASE, -1, FormatError),
            ((1 << 64) - 4, 8, NonCanonicalError),
            (-8, 8, NonCanonicalError),
            (1 << 62, 8, NonCanonicalError),
        ],
    )
    async def test_senseless_request(
        self, vaddr: int, n_bytes: int, error: type[Exception]
    ) -> None:
        """Sizes and addresses that no kernel has are refused before anything is read."""
        memory, _ = scattered_memory()

        with pytest.raises(error):
            await memory.read(vaddr, n_bytes)


class TestManyAtOnce:
    @given(
        starts=st.lists(st.integers(-3, N_PAGES * 4096 + 3), min_size=1, max_size=40),
        n_bytes=st.integers(1, 4096),
    )
    @settings(max_examples=60, deadline=None)
    def test_equal_sizes(self, starts: list[int], n_bytes: int) -> None:
        """Each object is its bytes, or not good when any page of it can't be read."""
        memory, content = scattered_memory()

        rows, good = anyio.run(
            memory.read_many, addresses(*[BASE + start for start in starts]), n_bytes
        )

        for start, row, whole in zip(starts, rows, good, strict=True):
            expected = self.expected(content, start, n_bytes)
            assert bool(whole) == (expected is not None)
            assert row.tobytes() == (expected or bytes(n_bytes))

    @given(
        objects=st.lists(
            st.tuples(st.integers(-3, N_PAGES * 4096 + 3), st.integers(0, 3 * 4096)),
            min_size=1,
            max_size=30,
        )
    )
    @settings(max_examples=60, deadline=None)
    def test_different_sizes(self, objects: list[tuple[int, int]]) -> None:
        """Objects of any size come back whole, or None when any page of them can't be read."""
        memory, content = scattered_memory()
        sizes = addresses(*[size for _, size in objects])

        found = anyio.run(
            memory.read_ragged, addresses(*[BASE + start for start, _ in objects]), sizes
        )

        assert found == [self.expected(content, start, size) for start, size in objects]

    @staticmethod
    def expected(content: bytes, start: int, n_bytes: int) -> bytes | None:
        touched = set(range(start // 4096, (start + max(n_bytes, 1) - 1) // 4096 + 1))
        whole = touched <= {0, 1, 2, 3, 4, 6}
        return bytes(content[start : start + n_bytes]) if whole else None

    async def test_none(self) -> None:
        """No objects, no reads."""
        memory, _ = scattered_memory()

        assert await memory.read_ragged(addresses(), addresses()) == []
        rows, good = await memory.read_many(addresses(), 8)
        assert rows.shape == (0, 8)
        assert good.shape == (0,)

    async def test_past_the_end(self) -> None:
        """An object that runs past the last address is not good, one that ends there is."""
        memory, _ = scattered_memory()

        _, good = await memory.read_many(addresses((1 << 64) - 4, (1 << 64) - 8), 8)

        assert good.tolist() == [False, True]
