"""Dumps that makedumpfile wrote, read back page by page against the image they came from."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from stages.reader.image import Image
from stages.reader.kdump_image import KdumpImage
from stages.reader.probe import open_image
from tests.support.images import read_all
from tests.support.vmcore_writer import PAGE, VmcoreWriter, described, prstatus

pytestmark = pytest.mark.skipif(
    shutil.which("makedumpfile") is None, reason="makedumpfile is not installed"
)
N_PAGES = 3000
FIRST = 256


def page_of(pfn: int) -> bytes:
    """Runs of three pages of each kind by turns: described, zero, random, and one that repeats."""
    match pfn // 3 % 4:
        case 0:
            return described(pfn)
        case 1:
            return bytes(PAGE)
        case 2:
            return np.random.default_rng(pfn).integers(0, 256, PAGE, np.uint8).tobytes()
    return (b"the quick brown fox " * 205)[:PAGE]


@pytest.fixture(scope="module")
def content() -> dict[int, bytes | None]:
    """What each page holds."""
    return {pfn: page_of(pfn) for pfn in range(FIRST, FIRST + N_PAGES)}


@pytest.fixture(scope="module")
def core(content: dict[int, bytes | None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vmcore without VMCOREINFO, in two loads."""
    pages = [page for page in content.values() if page is not None]
    writer = VmcoreWriter(data_align=PAGE).note("CORE", 1, prstatus()).note("CORE", 1, prstatus())
    writer.load(paddr=FIRST * PAGE, data=b"".join(pages[:1000]))
    writer.load(paddr=(FIRST + 1000) * PAGE, data=b"".join(pages[1000:]))
    return writer.write(tmp_path_factory.mktemp("core") / "vmcore")


def makedumpfile(*arguments: str | Path, stdout: Path | None = None, code: int = 0) -> None:
    """Run it; its exit code must be `code`."""
    command = ["makedumpfile", *map(str, arguments)]
    environment = {**os.environ, "TERM": "dumb"}
    with (stdout or Path(os.devnull)).open("wb") as out:
        done = subprocess.run(
            command, stdout=out, stderr=subprocess.PIPE, env=environment, check=False
        )
    assert done.returncode == code, done.stderr.decode()


def check(image: Image, content: dict[int, bytes | None]) -> None:
    """Every page equals the source's, in one call and in pieces."""
    assert read_all(image, content) == content
    assert read_all(image, list(content)[::7]) == dict(list(content.items())[::7])
    image.close()


@pytest.mark.parametrize("level", ["0", "1"])
@pytest.mark.parametrize("codec", [None, "-c", "-l"])
def test_dumps(
    codec: str | None, level: str, core: Path, content: dict[int, bytes | None], tmp_path: Path
) -> None:
    """Levels 0 and 1, raw, zlib and lzo: every page, the notes, the headers."""
    options = ["-d", level, *([codec] if codec else [])]
    makedumpfile(*options, core, tmp_path / "dump")

    image = open_image(str(tmp_path / "dump"))

    assert isinstance(image, KdumpImage)
    source = open_image(str(core))
    assert image.info.notes == source.info.notes
    source.close()
    assert image.ram == source.ram == image.saved
    assert image.max_mapnr == source.max_mapnr
    assert image.info.nr_cpus == 2
    assert image.info.dump_level == int(level)
    assert image.info.machine == "x86_64"
    assert image.info.incomplete is None
    assert list(image.iter_problems()) == []
    check(image, content)


@pytest.mark.parametrize("options", [["-c"], ["-l", "-d", "1"], ["-E"]], ids=" ".join)
def test_flattened_dumps(
    options: list[str], core: Path, content: dict[int, bytes | None], tmp_path: Path
) -> None:
    """The flattened form is read in place, kdump and ELF."""
    makedumpfile("-F", *options, core, stdout=tmp_path / "stream")

    image = open_image(str(tmp_path / "stream"))

    assert image.info.incomplete is None
    check(image, content)


def test_elf_dump(core: Path, content: dict[int, bytes | None], tmp_path: Path) -> None:
    """An ELF dump with zero pages left out: they are in `ram`, and not in `saved`."""
    makedumpfile("-E", "-d", "1", core, tmp_path / "dump")

    image = open_image(str(tmp_path / "dump"))

    assert image.ram.n_pages == N_PAGES
    saved = {pfn for extent in image.saved for pfn in range(*extent)}
    # Short runs of excluded pages are kept as they are; a run at the end of a load is not.
    assert {pfn for pfn, page in content.items() if page != bytes(PAGE)} <= saved
    check(image, {pfn: content[pfn] for pfn in sorted(saved)})


def test_split_dump(core: Path, content: dict[int, bytes | None], tmp_path: Path) -> None:
    """Parts hold their own pages, together all of them."""
    parts = [tmp_path / name for name in ("one", "two", "three")]
    makedumpfile("--split", "--splitblock-size", "1024", "-l", "-d", "1", core, *parts)

    found: dict[int, bytes | None] = {}
    for part in parts:
        image = open_image(str(part))
        assert "one part of a split dump" in (image.info.incomplete or "")
        mine = read_all(image, [pfn for extent in image.saved for pfn in range(*extent)])
        assert mine
        assert not set(mine) & set(found)
        found |= mine
        image.close()

    assert found == content


def test_incomplete_dump(core: Path, content: dict[int, bytes | None], tmp_path: Path) -> None:
    """Out of space half way: what is there is right, what isn't is known to be lost."""
    makedumpfile("-c", "-L", "2M", core, tmp_path / "dump", code=1)

    image = open_image(str(tmp_path / "dump"))

    assert "marked incomplete" in (image.info.incomplete or "")
    saved = [pfn for extent in image.saved for pfn in range(*extent)]
    assert 100 < len(saved) < N_PAGES
    check(image, {pfn: content[pfn] for pfn in saved})
