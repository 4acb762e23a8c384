"""The kernel log, from every form that kernels kept it in."""

from __future__ import annotations

import struct
import time
from contextlib import suppress

import anyio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DumpError, FormatError, MissingInfoError, MissingPageError
from stages.inspect.dmesg import read_log
from tests.unit.inspect.made_logs import (
    COMMITTED,
    DATA,
    DESCS,
    INFOS,
    RESERVED,
    REUSABLE,
    RING,
    MadeRing,
    indexed_log,
    indexed_record,
    plain_log,
)
from tests.unit.translator.made_kernel import MadeKernel

SECOND = 1_000_000_000


async def log_of(made: MadeKernel) -> bytes:
    kernel = await made.open()
    return b"".join([piece async for piece in read_log(kernel)])


class TestRing:
    async def test_prefix(self) -> None:
        """Time in microseconds, then the task or the CPU that printed it, then the text."""
        ring = MadeRing()
        ring.add(b"first", 0, 0)
        ring.add(b"second", 12 * SECOND + 345_678_999, 4321)
        ring.add(b"third", 123_456 * SECOND, 1 << 31 | 17)

        assert await log_of(ring.finish()) == (
            b"[    0.000000] [      T0] first\n"
            b"[   12.345678] [   T4321] second\n"
            b"[123456.000000] [     C17] third\n"
        )

    async def test_text(self) -> None:
        """Further lines are indented, and what is not printable is escaped."""
        ring = MadeRing()
        ring.add(b"one\ntwo\ttab \x1b[31m \x00\xff\\")

        assert await log_of(ring.finish()) == (
            b"[    0.000000] [      T1] one\n"
            b"                          two\ttab \\x1b[31m \\x00\\xff\\\n"
        )

    async def test_without_callers(self) -> None:
        """A kernel that does not tell who printed a record gets no such column."""
        ring = MadeRing()
        del ring.made.vmcoreinfo["OFFSET(printk_info.caller_id)"]
        ring.add(b"text")

        assert await log_of(ring.finish()) == b"[    0.000000] text\n"

    async def test_only_finished_records(self) -> None:
        """Records that are being written or were given back are left out; empty ones are not."""
        ring = MadeRing()
        ring.add(b"reserved", state=RESERVED)
        ring.add(b"committed", state=COMMITTED)
        ring.add(b"")
        ring.add(b"reusable", state=REUSABLE)

        assert await log_of(ring.finish()) == (
            b"[    0.000000] [      T1] committed\n[    0.000000] [      T1] \n"
        )

    async def test_slot_of_another_record(self) -> None:
        """A descriptor with another id than its place says is not a record."""
        ring = MadeRing()
        slot = ring.add(b"gone")
        ring.add(b"here")
        ring.made.write(DESCS + slot * 24, struct.pack("<Q", 2 << 62 | 0x1234))

        assert await log_of(ring.finish()) == b"[    0.000000] [      T1] here\n"

    async def test_many_rounds(self) -> None:
        """After ids, slots and positions have wrapped, the newest records are there in order."""
        ring = MadeRing(count_bits=9, size_bits=14)
        texts = [b"record %d %s" % (number, b"x" * (number % 13)) for number in range(3000)]
        for text in texts:
            ring.add(text)

        lines = (await log_of(ring.finish())).splitlines()

        assert lines == [b"[    0.000000] [      T1] " + text for text in texts[-512:]]

    async def test_text_that_fills_the_data_to_its_end(self) -> None:
        """A block that ends where the data ends is not taken for one that wrapped."""
        ring = MadeRing(size_bits=8, lpos=0)
        ring.add(b"a" * 120)
        ring.add(b"b" * 120)
        ring.add(b"")

        lines = (await log_of(ring.finish())).splitlines()

        assert lines[0].endswith(b"a" * 120)
        assert lines[1].endswith(b"b" * 120)

    async def test_missing_text(self) -> None:
        """Records whose page is not in the image leave a line that tells how many."""
        ring = MadeRing(size_bits=14, lpos=0)
        for letter in b"abcdefghijkl":
            ring.add(bytes([letter]) * 1000)
        made = ring.finish()
        made.lose(DATA + 4096)

        lines = (await log_of(made)).splitlines()

        assert lines[4] == b"<5 log records are not in the image>"
        assert b"".join(line[-1:] for line in lines) == b"abcd>jkl"

    async def test_no_text_whatever_the_length_says(self) -> None:
        """Equal positions mean no text, also where the data wraps."""
        ring = MadeRing()
        slot = ring.add(b"five!")
        ring.made.write(DESCS + slot * 24 + 8, struct.pack("<QQ", 0x4000, 0x4000))

        assert await log_of(ring.finish()) == b"[    0.000000] [      T1] \n"

    @pytest.mark.parametrize("lost", [DESCS, INFOS])
    async def test_missing_descriptors(self, lost: int) -> None:
        """When descriptors or infos are not in the image, all records are told to be missing."""
        ring = MadeRing()
        for number in range(5):
            ring.add(b"%d" % number)
        made = ring.finish()
        made.lose(lost)

        assert await log_of(made) == b"<5 log records are not in the image>\n"

    async def test_ring_itself_missing(self) -> None:
        """Without the ring's own structure there is no log to tell of."""
        made = MadeRing().finish()
        made.lose(RING)

        with pytest.raises(MissingPageError):
            await log_of(made)


class TestHostileRing:
    @pytest.mark.parametrize(
        ("at", "value", "field"),
        [(0, 0, "count_bits"), (0, 27, "count_bits"), (48, 0, "size_bits"), (48, 32, "size_bits")],
    )
    async def test_impossible_size(self, at: int, value: int, field: str) -> None:
        """Sizes that no kernel takes are refused by name."""
        made = MadeRing().finish()
        made.write(RING + at, struct.pack("<I", value))

        with pytest.raises(FormatError, match=field):
            await log_of(made)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("OFFSET(prb_desc_ring.head_id)", 41),
            ("OFFSET(prb_desc_ring.count_bits)", -4),
            ("OFFSET(atomic_long_t.counter)", 1 << 40),
            ("OFFSET(prb_data_blk_lpos.next)", 16),
            ("SIZE(prb_desc)", 0),
            ("SIZE(printk_info)", 1 << 20),
        ],
    )
    async def test_impossible_layout(self, key: str, value: int) -> None:
        """A member outside its structure, or a structure of no sane size, is refused."""
        ring = MadeRing()
        ring.add(b"text")
        ring.made.vmcoreinfo[key] = value

        with pytest.raises(FormatError, match="vmcoreinfo"):
            await log_of(ring.finish())

    async def test_tail_far_behind(self) -> None:
        """A tail further back than there are descriptors does not make the loop longer."""
        ring = MadeRing(tail=5)
        ring.add(b"only")

        assert await log_of(ring.finish()) == b"[    0.000000] [      T1] only\n"

    @given(seed=st.integers(0, 2**32))
    @settings(max_examples=30, deadline=None)
    def test_garbage(self, seed: int) -> None:
        """Random descriptors and infos give lines or an error of ours, soon."""
        rng = np.random.default_rng(seed)
        ring = MadeRing(count_bits=6)
        for number in range(64):
            ring.add(b"record %d" % number)
        made = ring.finish()
        for target, n_bytes in ((DESCS, 64 * 24), (INFOS, 64 * 88), (RING, 88)):
            for at in rng.integers(0, n_bytes, 4).tolist():
                made.write(target + at, rng.bytes(min(8, n_bytes - at)))
        started = time.monotonic()

        with suppress(DumpError):
            assert len(anyio.run(log_of, made)) < 1 << 20

        assert time.monotonic() - started < 20


class TestIndexed:
    async def test_in_order(self) -> None:
        """Records follow each other from the first index to the next one."""
        skipped = indexed_record(b"overwritten")
        records = indexed_record(b"one", 1500) + indexed_record(b"two\nlines", 2 * SECOND)
        made = indexed_log(skipped + records + bytes(64), len(skipped), len(skipped + records))

        assert await log_of(made) == (
            b"[    0.000001] one\n[    2.000000] two\n               lines\n"
        )

    async def test_callers(self) -> None:
        """Kernels from v5.1 on keep who printed a record."""
        records = indexed_record(b"one", caller=77)

        made = indexed_log(records, 0, len(records), caller=True)

        assert await log_of(made) == b"[    0.000000] [     T77] one\n"

    @pytest.mark.parametrize("name", ["printk_log", "log"])
    async def test_wrap(self, name: str) -> None:
        """A length of 0, or too little room for a header, continues at the beginning."""
        newest = indexed_record(b"newest")
        oldest = indexed_record(b"oldest")
        rest = bytes(64) if name == "log" else b"\xff" * 15
        buffer = newest + bytes(32) + oldest + rest
        made = indexed_log(buffer, len(newest) + 32, len(newest), name=name)

        assert await log_of(made) == b"[    0.000000] oldest\n[    0.000000] newest\n"

    async def test_larger_than_a_window(self) -> None:
        """A log of many windows is read whole."""
        texts = [b"%05d" % number + b"y" * 900 for number in range(1000)]
        buffer = b"".join(indexed_record(text) for text in texts)

        lines = (await log_of(indexed_log(buffer, 0, len(buffer)))).splitlines()

        assert lines == [b"[    0.000000] " + text for text in texts]

    async def test_empty(self) -> None:
        """Equal indexes mean that nothing was logged."""
        assert await log_of(indexed_log(bytes(256), 64, 64)) == b""

    @pytest.mark.parametrize("length", [1, 15, 19, 0x7FFF])
    async def test_impossible_length(self, length: int) -> None:
        """A length that leads backwards, into the text or out of the buffer ends the log."""
        good = indexed_record(b"good")
        buffer = good + indexed_record(b"text", length=length)
        pieces = read_log(await indexed_log(buffer, 0, len(buffer)).open())

        assert await anext(pieces) == b"[    0.000000] good\n"
        with pytest.raises(FormatError, match=f"record at {len(good)}"):
            await anext(pieces)

    async def test_impossible_index(self) -> None:
        """An index outside the buffer is refused by name."""
        with pytest.raises(FormatError, match="log_next_idx"):
            await log_of(indexed_log(bytes(256), 0, 1 << 31))

    @pytest.mark.parametrize("size", [0, 1 << 31 | 1])
    async def test_impossible_size(self, size: int) -> None:
        """A buffer larger than the kernel takes is refused."""
        made = indexed_log(bytes(256), 0, 64)
        kernel_size_at = int(str(made.vmcoreinfo["SYMBOL(log_buf_len)"]), 16)
        made.write(kernel_size_at, struct.pack("<I", size))

        with pytest.raises(FormatError, match="log_buf_len"):
            await log_of(made)


class TestPlain:
    async def test_not_yet_full(self) -> None:
        """Only what was written is there, escaped."""
        text = b"<6>Linux version 2.6.32\n<4>\x1b\n"

        assert await log_of(plain_log(text.ljust(64, b"\0"), len(text))) == (
            b"<6>Linux version 2.6.32\n<4>\\x1b\n"
        )

    async def test_wrapped(self) -> None:
        """A full buffer starts after the last byte that was written."""
        assert await log_of(plain_log(b"fghabcde", 8 * 5 + 3)) == b"abcdefgh"

    async def test_size_is_no_power_of_two(self) -> None:
        """A size that no such kernel has is refused."""
        with pytest.raises(FormatError, match="power of two"):
            await log_of(plain_log(bytes(48), 10))


async def test_no_log() -> None:
    """A VMCOREINFO that names no log is told apart from an empty one."""
    with pytest.raises(MissingInfoError, match="prb"):
        await log_of(MadeKernel())
