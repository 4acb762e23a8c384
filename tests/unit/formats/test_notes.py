"""ELF notes: walking them, and what is taken from them."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.formats.notes import MAX_NOTES, Note, iter_notes, pack_note, summarize_notes
from tests.support import vmcore_writer

names = st.text("ABCXYZ_", min_size=1, max_size=20)
descs = st.binary(max_size=50)


@settings(deadline=None)
@given(
    notes=st.lists(st.tuples(names, st.integers(1, 2**32 - 1), descs), max_size=8),
    order=st.sampled_from(["<", ">"]),
)
def test_notes_round_trip(notes: list[tuple[str, int, bytes]], order: str) -> None:
    """Notes written by somebody else come out as they went in, in order."""
    assert order in ("<", ">")
    blob = b"".join(vmcore_writer.pack_note(*note, order=order) for note in notes)

    found = list(iter_notes(blob, "<" if order == "<" else ">"))

    assert [
        (note.name.decode(), note.type, blob[note.desc_off : note.desc_off + note.desc_size])
        for note in found
    ] == notes


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_garbage_stays_in_bounds(blob: bytes) -> None:
    """Whatever the bytes are, no note reaches past them, and nothing is raised."""
    for note in iter_notes(blob):
        assert 0 <= note.desc_off <= note.desc_off + note.desc_size <= len(blob)
    summarize_notes(blob)


@settings(deadline=None)
@given(name=names, note_type=st.integers(0, 2**32 - 1), desc=descs)
def test_pack_note_agrees_with_the_test_writer(name: str, note_type: int, desc: bytes) -> None:
    """Two writers that know nothing of each other make the same bytes."""
    assert pack_note(name.encode(), note_type, desc) == vmcore_writer.pack_note(
        name, note_type, desc
    )


@pytest.mark.parametrize("n_zeros", [4, 12, 20, 4096])
def test_zeros_between_notes_are_skipped(n_zeros: int) -> None:
    """The kernel leaves unused room behind each CPU's notes."""
    one, two = pack_note(b"CORE", 1, b"abc"), pack_note(b"CORE", 1, b"defg")

    found = list(iter_notes(one + bytes(n_zeros) + two + bytes(n_zeros)))

    assert [note.desc_off for note in found] == [20, len(one) + n_zeros + 20]


def test_note_past_the_end_is_not_given() -> None:
    """A descriptor that is cut ends the walk; those before it count."""
    blob = pack_note(b"CORE", 1, bytes(8)) + pack_note(b"VMCOREINFO", 0, bytes(100))[:-1]

    assert list(iter_notes(blob)) == [Note(b"CORE", 1, 20, 8)]


def test_hostile_note_area_is_walked_quickly() -> None:
    """Neither megabytes of zeros nor millions of tiny notes keep the walk busy."""
    started = time.perf_counter()

    assert list(iter_notes(bytes(64 << 20))) == []
    tiny = pack_note(b"A", 1, b"") * (MAX_NOTES + 10)
    assert sum(1 for _ in iter_notes(tiny)) == MAX_NOTES

    assert time.perf_counter() - started < 10


def test_facts() -> None:
    """Everything that concerns the whole image is found, with its place."""
    info = b"OSRELEASE=6.1\nPAGESIZE=4096\n"
    before = (
        pack_note(b"CORE", 1, bytes(336))
        + pack_note(b"QEMU", 0, bytes(440))
        + pack_note(b"CORE", 1, bytes(336))
        + pack_note(b"LINUX", 0x300, b"x")
    )
    blob = (
        before
        + pack_note(b"VMCOREINFO", 0, info)
        + pack_note(b"VMCOREINFO", 0, b"a second one")
        + pack_note(b"ERASEINFO", 0, b"erase a size 4\n")
        + pack_note(b"Xen", 0x1000001, bytes(80))
        + pack_note(b"VMCOREINFO_XEN", 0, b"PAGESIZE=4096\n")
    )

    facts = summarize_notes(blob)

    assert facts.nr_cpus == 2
    assert facts.vmcoreinfo == info
    assert facts.vmcoreinfo_off == blob.index(info)
    assert facts.eraseinfo == b"erase a size 4\n"
    assert facts.xen_crash_info == bytes(80)
    assert facts.vmcoreinfo_xen == b"PAGESIZE=4096\n"
    assert facts.has_qemu
    assert facts.machine == "x86_64"


def test_absorb_keeps_the_first_of_a_kind() -> None:
    """A second PT_NOTE adds its CPUs and fills gaps; the place of VMCOREINFO is not its to give."""
    first = summarize_notes(pack_note(b"CORE", 1, bytes(336)))
    second = summarize_notes(
        pack_note(b"CORE", 1, bytes(336)) + pack_note(b"VMCOREINFO", 0, b"text")
    )

    first.absorb(second)

    assert (first.nr_cpus, first.vmcoreinfo, first.vmcoreinfo_off) == (2, b"text", None)
