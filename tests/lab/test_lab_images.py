"""The lab's own products: each image is what a test of dumpstream takes it for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab.build import ensure_image, ensure_oracle_image, sidecar
from tests.lab.catalog import IMAGES, Method
from tests.lab.commands import LabError
from tests.lab.elfhead import PT_LOAD, PT_NOTE, read_note, read_program_headers
from tests.lab.oracles.codecs import PAGE_SIZE
from tests.lab.oracles.compare import compare_dumps, compare_with_image
from tests.lab.oracles.crash import crash_commands, crash_tasks
from tests.lab.oracles.drgn_tasks import drgn_tasks
from tests.lab.oracles.kdump_pages import KdumpPages
from tests.lab.oracles.libkdumpfile import KdumpFile, Status
from tests.lab.oracles.makedumpfile import makedumpfile_dump
from tests.lab.tools import APT_PACKAGES, vmlinux

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.lab
SMALL = [image.name for image in IMAGES.values() if image.native and not image.bench]
ELF = [name for name in SMALL if IMAGES[name].method is not Method.QMP_KDUMP]


@pytest.mark.parametrize("name", ELF)
class TestElfImage:
    def test_is_an_elf_core_with_memory_and_a_note(self, name: str) -> None:
        """Every ELF image has one note segment, and segments that lie within the file."""
        image = ensure_image(name)
        headers = read_program_headers(image)
        kinds = [header.p_type for header in headers]
        ends = [header.p_offset + header.p_filesz for header in headers]

        assert kinds.count(PT_NOTE) == 1
        assert PT_LOAD in kinds
        assert max(ends) <= image.stat().st_size

    def test_note_has_vmcoreinfo_of_the_guests_kernel(self, name: str) -> None:
        """VMCOREINFO names the release that the guest itself reported."""
        note = read_note(ensure_image(name))

        assert b"VMCOREINFO" in note
        assert f"OSRELEASE={sidecar(name)['kernel_release']}\n".encode() in note

    def test_paging_levels_are_those_asked_for(self, name: str) -> None:
        """A guest with la57 switched off has 4 levels, one with a full CPU 5."""
        note = read_note(ensure_image(name))
        five_levels = b"NUMBER(pgtable_l5_enabled)=1\n" in note

        assert five_levels == (IMAGES[name].paging_levels == 5)


@pytest.mark.parametrize("name", ELF)
def test_every_dump_level_leaves_pages_out(name: str, tmp_path: Path) -> None:
    """makedumpfile accepts the image and finds pages of every class."""
    image = ensure_oracle_image(name)
    counts = makedumpfile_dump(image, 31, "lzo", tmp_path / "dump")

    assert min(counts.zero, counts.cache, counts.cache_private, counts.user, counts.free) > 50
    assert counts.remaining > 5000


def test_qemus_own_layout_is_refused_by_makedumpfile(tmp_path: Path) -> None:
    """QEMU's program headers start at 192, and makedumpfile looks for them at 64."""
    with pytest.raises(LabError, match="Can't get the number of PT_LOAD"):
        makedumpfile_dump(ensure_image("k6.1-4l"), 31, "lzo", tmp_path / "dump")


def test_qemus_kdump_file_holds_all_memory() -> None:
    """QEMU's flattened file, put together again, has all of RAM, each page readable."""
    with KdumpPages(ensure_oracle_image("qemu-kdump")) as pages:
        n_ram_pages = IMAGES["qemu-kdump"].memory_mib * 256

        assert pages.exists.sum() > 0.99 * n_ram_pages
        assert all(len(page) == PAGE_SIZE for _, page in pages)


def test_two_codecs_make_equal_dumps(tmp_path: Path) -> None:
    """Dumps of one image at one level agree with each other, whatever their codec, and with it."""
    image = ensure_oracle_image("k6.1-4l")
    makedumpfile_dump(image, 31, "lzo", tmp_path / "lzo")
    makedumpfile_dump(image, 31, "zstd", tmp_path / "zstd")

    assert not compare_dumps(tmp_path / "lzo", tmp_path / "zstd")
    assert compare_with_image(tmp_path / "zstd", image).size == 0


def test_libkdumpfile_sees_the_same_pages(tmp_path: Path) -> None:
    """Two readers that share no code agree on every page and on every hole."""
    makedumpfile_dump(ensure_oracle_image("k6.1-5l"), 31, "zstd", tmp_path / "dump")
    with KdumpFile(tmp_path / "dump") as theirs, KdumpPages(tmp_path / "dump") as ours:
        pfns = range(0, ours.max_mapnr, 7)
        pages = [ours.read_page(pfn) or Status.NO_DATA for pfn in pfns]

        assert list(theirs.read_pages(pfns)) == pages


def test_crash_and_drgn_see_the_guests_tasks(tmp_path: Path) -> None:
    """Both find the filler's processes, and each other's tasks, in makedumpfile's dump."""
    makedumpfile_dump(ensure_oracle_image("k6.1-4l"), 31, "lzo", tmp_path / "dump")
    tasks = drgn_tasks(tmp_path / "dump", vmlinux("6.1"))
    outputs = crash_commands(vmlinux("6.1"), tmp_path / "dump")
    fillers = {task["comm"] for task in sidecar("k6.1-4l")["tasks"] if "fill-" in task["comm"]}

    assert crash_tasks(outputs["ps"]) == tasks
    assert fillers <= {comm for _, comm in tasks}
    assert "fill-anon" in fillers


def test_needs_no_package_of_another_suite_installed() -> None:
    """crash and makedumpfile are run unpacked, so apt is not asked for them."""
    assert not {"crash", "makedumpfile"} & set(APT_PACKAGES)
