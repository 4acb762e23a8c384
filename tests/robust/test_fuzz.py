"""Whatever the bytes are: an answer, or one line; soon, and in bounded memory.

Hypothesis spoils a good image in places where it hurts: headers, notes, VMCOREINFO, page tables,
section table. Each example is a whole command, so a failure is a bug that a user could meet.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.demo.build import DemoFacts, build_demo_image
from tests.robust import spoil
from tests.robust.guard import bounded
from tests.robust.running import QUICK, Done, call
from tests.support.kdump_writer import KdumpWriter, flatten
from tests.support.vmcore_writer import described

FUZZ = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

EDGES = sorted(
    {0, 1, 3, 0xFF, 0xFFFF, *((1 << bits) + off for bits in (12, 31, 32, 46, 47, 52, 62, 63)
     for off in (-1, 0, 1)), (1 << 64) - 4096, (1 << 64) - 1}
)  # fmt: skip
WORDS64 = st.sampled_from(EDGES) | st.integers(0, (1 << 64) - 1)
COMMANDS = st.sampled_from(["dump 0", "dump 1", "dump 31", "info", "dmesg", "translate"])


@dataclass
class Patient:
    """An image that is spoilt for one command and then put right again."""

    path: Path
    facts: DemoFacts | None = None

    @contextlib.contextmanager
    def spoilt(self, patches: list[tuple[int, bytes]], size: int | None = None) -> Iterator[None]:
        saved = [(off, spoil.read_at(self.path, off, len(data))) for off, data in patches]
        whole = self.path.stat().st_size
        tail = b"" if size is None else spoil.read_at(self.path, size, whole - size)
        for off, data in patches:
            spoil.write_at(self.path, off, data)
        if size is not None:
            os.truncate(self.path, size)
        try:
            yield
        finally:
            if tail:
                spoil.write_at(self.path, whole - len(tail), tail)
            for off, data in reversed(saved):
                spoil.write_at(self.path, off, data)

    def run(self, command: str) -> Done:
        """One command on the image as it is, under the watch of a clock and of a meter."""
        name, *more = command.split()
        target = self.path.with_name("out")
        with bounded():
            match name:
                case "dump":
                    raw = ("--compress", "none")
                    done = call("dump", *QUICK, *raw, "-f", "-d", *more, self.path, target)
                case "translate":
                    done = call("translate", self.path, "ffffffff81000000", "ffffea0000000000")
                case _:
                    done = call(name, self.path)
        check_end(done, says_why=done.code == 3 or (done.code == 1 and name == "dump"))
        return done


def check_end(done: Done, *, says_why: bool) -> None:
    """Events, and at most one line that is no surprise; `says_why` when there must be one."""
    assert done.code in (0, 1, 3)
    if says_why or (done.code == 1 and done.err):
        assert "unexpected" not in done.error
        # A stage's failure that is no DumpError shows its class.
        assert not re.match(r"(\w+: )?[A-Z]\w+(Error|Exception): ", done.error)
    else:
        assert done.events or not done.err


@pytest.fixture(scope="module")
def patient(demo: DemoFacts, tmp_path_factory: pytest.TempPathFactory) -> Patient:
    folder = tmp_path_factory.mktemp("fuzz")
    return Patient(Path(shutil.copy(demo.path, folder / "vmcore")), demo)


@FUZZ
@given(
    patches=st.lists(st.tuples(st.integers(0, 63), st.binary(min_size=1, max_size=8)), max_size=3),
    command=COMMANDS,
)
def test_elf_header(patient: Patient, patches: list[tuple[int, bytes]], command: str) -> None:
    """Bytes of the ELF header."""
    with patient.spoilt([(off, data[: 64 - off]) for off, data in patches]):
        patient.run(command)


@FUZZ
@given(
    patches=st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from([0, 8, 16, 24, 32, 40]), WORDS64),
        min_size=1,
        max_size=3,
    ),
    command=COMMANDS,
)
def test_program_headers(
    patient: Patient, patches: list[tuple[int, int, int]], command: str
) -> None:
    """Fields of program headers: types, offsets, addresses, sizes."""
    words = [(64 + 56 * row + off, struct.pack("<Q", word)) for row, off, word in patches]
    with patient.spoilt(words):
        patient.run(command)


@FUZZ
@given(
    patches=st.lists(st.tuples(st.integers(0, 900), st.binary(min_size=1, max_size=4)), max_size=4),
    command=COMMANDS,
)
def test_notes(patient: Patient, patches: list[tuple[int, bytes]], command: str) -> None:
    """Bytes of the notes, their headers among them."""
    start, _ = spoil.note_span(patient.path)
    with patient.spoilt([(start + off, data) for off, data in patches]):
        patient.run(command)


VALUES = st.one_of(
    WORDS64.map(str),
    WORDS64.map(hex),
    WORDS64.map("{:x}".format),
    st.integers(-(1 << 64), 0).map(str),
    st.sampled_from(["", "x", "0x", "-", "1 2", "1e9", "\u0661".encode().decode("latin-1")]),
)


@FUZZ
@given(
    lies=st.lists(st.tuples(st.integers(0, 1 << 16), VALUES), min_size=1, max_size=3),
    command=COMMANDS,
)
def test_vmcoreinfo(patient: Patient, lies: list[tuple[int, str]], command: str) -> None:
    """Values of VMCOREINFO."""
    start, size = spoil.note_span(patient.path)
    with patient.spoilt([(start, spoil.read_at(patient.path, start, size))]):
        names = spoil.keys(patient.path)
        for number, value in lies:
            spoil.set_key(patient.path, names[number % len(names)], value)
        patient.run(command)


ENTRY_FLAGS = st.sampled_from([0, 1, 3, 0x63, 0x83, 0xE3, 1 << 63])


@FUZZ
@given(
    hits=st.lists(
        st.tuples(st.integers(0, 99), st.integers(0, 511), st.booleans(), WORDS64, ENTRY_FLAGS),
        min_size=1,
        max_size=8,
    ),
    command=COMMANDS,
)
def test_page_tables(
    patient: Patient, hits: list[tuple[int, int, bool, int, int]], command: str
) -> None:
    """Entries of page tables, mostly ones that are in use, to anywhere or back to the top."""
    assert patient.facts is not None
    top = spoil.top_table(patient.facts)
    every = [off for _, off in spoil.tables(patient.facts, patient.facts.path)]
    patches = []
    for table, index, back, word, flags in hits:
        off = every[table % len(every)]
        used = list(spoil.entries(patient.facts.path, off)) or [index]
        entry = (top if back else word & ~0xFFF) | flags
        patches.append((off + 8 * used[index % len(used)], struct.pack("<Q", entry)))
    with patient.spoilt(patches):
        patient.run(command)


@FUZZ
@given(
    hits=st.lists(st.tuples(st.integers(0, 63), st.booleans(), WORDS64), min_size=1, max_size=8),
    command=COMMANDS,
)
def test_sections(patient: Patient, hits: list[tuple[int, bool, int]], command: str) -> None:
    """Words of the section table's roots and of its first sections."""
    facts = patient.facts
    assert facts is not None
    roots = spoil.data_off(facts, facts.symbols["mem_section"])
    first = spoil.data_off(facts, spoil.word_at(facts.path, roots))
    patches = [
        ((roots if in_roots else first) + 8 * index, struct.pack("<Q", word))
        for index, in_roots, word in hits
    ]
    with patient.spoilt(patches):
        patient.run(command)


@FUZZ
@given(size=st.integers(0, 1 << 26), command=COMMANDS)
def test_cut_anywhere(patient: Patient, size: int, command: str) -> None:
    """The image ends anywhere."""
    with patient.spoilt([], size % patient.path.stat().st_size):
        patient.run(command)


@pytest.mark.parametrize("kernel", ["5.10", "6.12", "7.1"])
def test_noise_everywhere(kernel: str, tmp_path: Path) -> None:
    """Other kernels, with a page of noise in every 16th place of the kernel's own memory."""
    facts = build_demo_image(tmp_path / "vmcore", kernel=kernel)  # type: ignore[arg-type]
    patient = Patient(facts.path, facts)
    first = facts.addresses.kernel_pfn
    for seed in range(16):
        patches = [
            (facts.addresses.file_off(pfn * 4096), os.urandom(4096))
            for pfn in range(first + seed, facts.addresses.system_end, 16)
        ]
        with patient.spoilt(patches):
            patient.run(["dump 31", "info", "dmesg", "dump 1"][seed % 4])


@pytest.fixture(scope="module", params=["plain", "flattened"])
def kdump(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Patient:
    """A dump with a page in each codec."""
    writer = KdumpWriter(max_mapnr=300, dump_level=1, zero_page=True, notes=bytes(300))
    for pfn, codec in enumerate(("none", "zlib", "lzo", "snappy", "zstd"), 3):
        writer.page(pfn, described(pfn), codec=codec)
    blob = writer.zero(9).excluded(100, 200).pack()
    path = tmp_path_factory.mktemp("kdump") / "dump"
    path.write_bytes(flatten(blob, record_bytes=3000) if request.param == "flattened" else blob)
    return Patient(path)


@FUZZ
@given(
    patches=st.lists(
        st.tuples(st.integers(0, 1 << 16), WORDS64.map(lambda word: struct.pack("<Q", word))),
        min_size=1,
        max_size=4,
    ),
    cut=st.none() | st.integers(0, 1 << 16),
    command=st.sampled_from(["dump 0", "dump 1", "info", "verify", "dmesg"]),
)
def test_kdump(
    kdump: Patient, patches: list[tuple[int, bytes]], cut: int | None, command: str
) -> None:
    """Words of a dump, in its headers, bitmaps, descriptors or data."""
    size = kdump.path.stat().st_size
    placed = [(off % (size - 8), word) for off, word in patches]
    with kdump.spoilt(placed, None if cut is None else cut % size):
        kdump.run(command)
