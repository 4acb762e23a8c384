"""Images whose VMCOREINFO is absent, lacks keys, or lies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.memory.addresses import BoolArray
from stages.demo.build import DemoFacts
from stages.demo.kinds import PageKind
from stages.reader.probe import open_image
from tests.robust.guard import bounded
from tests.robust.running import QUICK, Done, call, left_in, run
from tests.robust.spoil import drop_key, drop_vmcoreinfo, keys, set_key

NO_FILTER = (0, 1)


def dump(source: Path, target: Path, level: int) -> Done:
    """A dump in this process, stored without compression: what is left out is the question."""
    return call("dump", *QUICK, "-f", "--compress", "none", "-d", level, source, target)


def kept_by(target: Path, n_pages: int) -> BoolArray:
    """bool[n_pages]: pages that the dump has."""
    image = open_image(str(target))
    kept = image.saved.mask(0, n_pages)
    image.close()
    return kept


class TestWithoutNote:
    @pytest.mark.parametrize("level", NO_FILTER)
    def test_low_levels_work(self, level: int, demo: DemoFacts, spoilt: Path, target: Path) -> None:
        """Level 0 and 1 ask nothing of the kernel: every page is in the dump, as it was."""
        drop_vmcoreinfo(spoilt)

        run("dump", "-d", level, spoilt, target).succeeded()

        assert np.array_equal(kept_by(target, demo.max_mapnr), demo.ram)
        assert call("verify", target, "--against", spoilt).code == 0

    @pytest.mark.parametrize("level", [2, 4, 8, 16, 31])
    def test_other_levels_say_what_is_missing(self, level: int, spoilt: Path, target: Path) -> None:
        """One line names the note and what it is needed for; nothing is left."""
        drop_vmcoreinfo(spoilt)

        done = run("dump", "-d", level, spoilt, target)

        done.failed(1, f"a VMCOREINFO note is missing, needed for dump level {level}", "-d 1")
        assert left_in(target.parent) == []

    @pytest.mark.parametrize("words", [["dmesg"], ["translate", "ffffffff81000000"]])
    def test_commands_that_need_the_kernel(self, words: list[str], spoilt: Path) -> None:
        """They say so in one line."""
        drop_vmcoreinfo(spoilt)

        call(words[0], spoilt, *words[1:]).failed(1, "a VMCOREINFO note is missing")

    def test_info(self, spoilt: Path) -> None:
        """What can be told is told, with a note about the rest."""
        drop_vmcoreinfo(spoilt)

        done = call("info", spoilt)

        assert (done.code, done.err) == (0, "")
        assert "only dump levels 0 and 1 work" in done.out


def test_missing_keys(demo: DemoFacts, spoilt: Path, target: Path) -> None:
    """Without any one key, level 31 keeps what it can't tell apart, or says which key it wants.

    Whatever it leaves out, it must have had a reason to: no page is lost by ignorance.
    """
    wanted = demo.kept(31)
    original = spoilt.read_bytes()[:16384]
    lost: dict[str, BoolArray] = {}
    refused = []
    for key in keys(demo.path):
        drop_key(spoilt, key)
        done = dump(spoilt, target, 31)
        if done.code == 0:
            lost[key] = wanted & ~kept_by(target, demo.max_mapnr)
        else:
            done.failed(1, key.split("(")[-1].rstrip(")"))
            refused.append(key)
        with spoilt.open("r+b") as file:
            file.write(original)

    assert 0 < len(refused) < 30
    # Kernels without that flag have no other use for PG_swapcache: makedumpfile's rule too.
    swap = lost.pop("NUMBER(PG_swapbacked)")
    assert set(demo.kinds[swap].tolist()) <= {PageKind.OWNER_PRIVATE}
    assert [key for key, pages in lost.items() if pages.any()] == []


@pytest.mark.parametrize("level", NO_FILTER)
def test_missing_keys_at_low_levels(
    level: int, demo: DemoFacts, spoilt: Path, target: Path
) -> None:
    """Level 0 and 1 work without any one key, and without all of them but two."""
    original = spoilt.read_bytes()[:16384]
    for key in keys(demo.path)[::7]:
        drop_key(spoilt, key)
        dump(spoilt, target, level).succeeded()
        with spoilt.open("r+b") as file:
            file.write(original)
    drop_key(spoilt, *[key for key in keys(spoilt) if key not in ("OSRELEASE", "PAGESIZE")])
    assert keys(spoilt) == ["OSRELEASE", "PAGESIZE"]

    dump(spoilt, target, level).succeeded()

    kept = kept_by(target, demo.max_mapnr)
    assert not (demo.kept(level) & ~kept).any()


@pytest.mark.parametrize("key", ["OSRELEASE", "PAGESIZE"])
def test_text_that_is_no_vmcoreinfo(key: str, spoilt: Path, target: Path) -> None:
    """Without release or page size the note is none: level 1 works, the rest says why not."""
    drop_key(spoilt, key)

    dump(spoilt, target, 31).failed(1, key)
    assert left_in(target.parent) == []
    done = dump(spoilt, target, 1).succeeded()
    assert key in done.event("kernel_not_found")["text"]


LIES = [
    ("PAGESIZE", "0"),
    ("PAGESIZE", "4095"),
    ("PAGESIZE", "9999"),
    ("SYMBOL(init_top_pgt)", "0"),
    ("SYMBOL(init_top_pgt)", "ffffffffffffffff"),
    ("SYMBOL(init_top_pgt)", "ffffffff80000001"),
    ("SYMBOL(init_top_pgt)", "1000"),
    ("SYMBOL(mem_section)", "0"),
    ("SYMBOL(mem_section)", "1"),
    ("SYMBOL(mem_section)", "ffff800000000000"),
    ("SYMBOL(mem_section)", "7fffffffffffffff"),
    ("SIZE(page)", "0"),
    ("SIZE(page)", "-1"),
    ("SIZE(page)", "1"),
    ("SIZE(page)", "99"),
    ("OFFSET(page.flags)", "64"),
    ("OFFSET(page.flags)", "-1"),
    ("OFFSET(page._mapcount)", "63"),
    ("OFFSET(page.private)", "99"),
    ("NUMBER(PG_lru)", "64"),
    ("NUMBER(PG_lru)", "-1"),
    ("NUMBER(SECTION_SIZE_BITS)", "0"),
    ("NUMBER(SECTION_SIZE_BITS)", "1"),
    ("NUMBER(SECTION_SIZE_BITS)", "63"),
    ("NUMBER(MAX_PHYSMEM_BITS)", "0"),
    ("NUMBER(MAX_PHYSMEM_BITS)", "64"),
    ("LENGTH(mem_section)", "0"),
    ("LENGTH(mem_section)", "-99"),
    ("LENGTH(mem_section)", "9999"),
    ("SIZE(mem_section)", "0"),
    ("SIZE(mem_section)", "99"),
    ("NUMBER(phys_base)", "0"),
    ("NUMBER(phys_base)", "-1"),
    ("NUMBER(phys_base)", "999999999999999999999"),
    ("NUMBER(pgtable_l5_enabled)", "1"),
    ("KERNELOFFSET", "zz"),
]


@pytest.mark.parametrize(("key", "value"), LIES)
def test_lies(key: str, value: str, spoilt: Path, target: Path) -> None:
    """A value that can't be ends the dump with one line that says what does not fit, and soon."""
    set_key(spoilt, key, value)

    with bounded():
        done = dump(spoilt, target, 31)

    assert done.code in (0, 1)
    if done.code == 1:
        assert "unexpected" not in done.error
        assert left_in(target.parent) == []


@pytest.mark.parametrize(("key", "value"), LIES)
def test_lies_at_level_1(key: str, value: str, spoilt: Path, target: Path) -> None:
    """Level 1 asks nothing that a lie could spoil."""
    set_key(spoilt, key, value)

    done = dump(spoilt, target, 1).succeeded()

    assert done.event("dump_finished")["pages_zero"] > 0
