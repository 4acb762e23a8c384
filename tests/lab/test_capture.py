"""dumpstream in a capture kernel: a real crash, /proc/vmcore, one CPU, 192 MiB."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.lab import boot, cache
from tests.lab.build import find
from tests.lab.kernels import ensure_kernel
from tests.lab.oracles.compare import compare_dumps, compare_with_image
from tests.lab.oracles.makedumpfile import makedumpfile_dump
from tests.lab.program_disk import (
    PYTHON,
    PYTHONPATH,
    build_program_disk,
    make_disk,
    read_disk,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.lab
MIB = 1 << 20
OUT_MIB = 1024
COMMANDS = f"""\
export PYTHONPATH={PYTHONPATH} PYTHONDONTWRITEBYTECODE=1
run() {{
	name=$1
	shift
	{PYTHON} -m pipeline "$@" > /out/$name.out 2> /out/$name.err
	echo $? > /out/$name.code
}}
run d31 dump --profile capture -d 31 --compress zstd --stats /out/d31.json /proc/vmcore /out/d31
run d1 dump --profile capture -d 1 --compress lzo --stats /out/d1.json /proc/vmcore /out/d1
run dmesg dmesg /proc/vmcore
"""
DUMPS = ("d31", "d1")


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``vmcore`` as dd copied it, and ``out``, what the commands left."""
    folder = tmp_path_factory.mktemp("capture")
    for name in ("tree", "scratch"):
        (folder / name).mkdir()
    build_program_disk(folder / "tree", COMMANDS, folder / "programs.img")
    cache.remove(folder / "tree")
    make_disk(folder / "out.img", OUT_MIB)
    image = find("kexec-6.1")
    boot.crash(
        image,
        ensure_kernel(image.kernel),
        folder / "scratch",
        folder / "vmcore",
        folder / "log",
        init="collect.sh",
        disks=[folder / "programs.img", folder / "out.img"],
    )
    read_disk(folder / "out.img", folder / "out")
    for name in ("programs.img", "out.img", "scratch"):
        cache.remove(folder / name)
    return folder


@pytest.mark.parametrize("name", [*DUMPS, "dmesg"])
def test_it_ends_well(captured: Path, name: str) -> None:
    """Exit code 0, and nothing but the summary is said."""
    said = (captured / f"out/{name}.err").read_text()

    assert (captured / f"out/{name}.code").read_text() == "0\n", said
    assert "Traceback" not in said


@pytest.mark.parametrize(("name", "level", "codec"), [("d31", 31, "zstd"), ("d1", 1, "lzo")])
def test_pages_are_those_of_makedumpfile(
    captured: Path, tmp_path: Path, name: str, level: int, codec: str
) -> None:
    """Set and contents; what the capture kernel mapped page by page is what dd has read."""
    makedumpfile_dump(captured / "vmcore", level, codec, tmp_path / "theirs")

    found = compare_dumps(captured / "out" / name, tmp_path / "theirs")

    assert not len(found.only_a), found.summary()
    assert not len(found.only_b), found.summary()
    assert not len(found.content), found.summary()
    assert compare_with_image(captured / "out" / name, captured / "vmcore").tolist() == []


@pytest.mark.parametrize("name", DUMPS)
def test_it_needs_little_memory(captured: Path, name: str) -> None:
    """The capture profile's 100 MiB, all processes together."""
    stats = json.loads((captured / f"out/{name}.json").read_text())

    assert stats["peak_rss_bytes"]["all_pss"] <= 100 * MIB


def test_the_kernel_log_has_its_last_line(captured: Path) -> None:
    """Read from the crashed kernel's memory, in the capture kernel."""
    assert "sysrq: Trigger a crash" in (captured / "out/dmesg.out").read_text()
