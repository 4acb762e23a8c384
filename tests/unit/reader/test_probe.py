"""Which format a file is, and what is said of those that are none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DumpError, UnsupportedError
from stages.reader.probe import PROBES, open_image
from tests.support.kdump_writer import KdumpWriter, flatten
from tests.support.vmcore_writer import VmcoreWriter, described


@pytest.mark.parametrize(
    ("blob", "form"),
    [
        (VmcoreWriter().load(paddr=0, data=described(0)).pack(), "elf"),
        (KdumpWriter(max_mapnr=8).page(0, described(0)).pack(), "kdump"),
        (flatten(VmcoreWriter().load(paddr=0, data=described(0)).pack()), "elf"),
        (flatten(KdumpWriter(max_mapnr=8).page(0, described(0)).pack()), "kdump"),
    ],
    ids=["elf", "kdump", "flattened elf", "flattened kdump"],
)
def test_forms(blob: bytes, form: str, tmp_path: Path) -> None:
    """Each format is known by its first bytes, in whatever it is wrapped."""
    (tmp_path / "image").write_bytes(blob)

    image = open_image(str(tmp_path / "image"))

    assert image.info.form == form
    assert image.path == str(tmp_path / "image")
    image.close()


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"\x1f\x8b\x08", "compressed by gzip; decompress it first"),
        (b"age-encryption.org/v1\n-> X25519", "encrypted; dumpstream decrypt opens it"),
        (b"\x28\xb5\x2f\xfd", "compressed by zstd"),
        (b"DISKDUMP", "a diskdump"),
        (b"EMiL", "a LiME image"),
    ],
)
def test_other_files_are_named(start: bytes, words: str, tmp_path: Path) -> None:
    """A user who passes a well-known other file is told what it is."""
    (tmp_path / "image").write_bytes(start + bytes(100))

    with pytest.raises(UnsupportedError, match=f"^not a memory image: .* is {words}"):
        open_image(str(tmp_path / "image"))


def test_unknown_file(tmp_path: Path) -> None:
    """Nobody knows it: the line shows its first bytes and what would do."""
    (tmp_path / "image").write_bytes(b"hello, world")

    with pytest.raises(
        DumpError,
        match=r"^not a memory image: .*/image starts with 68 65 6c 6c 6f 2c 20 77, wanted one of "
        "kdump-compressed, flattened, ELF core$",
    ):
        open_image(str(tmp_path / "image"))


def test_flattened_stream_of_something_else(tmp_path: Path) -> None:
    """A stream that holds no dump is not opened, and one inside another neither."""
    for inner in (b"hello, world", flatten(b"x")):
        (tmp_path / "image").write_bytes(flatten(inner))
        with pytest.raises(DumpError, match="not a memory image"):
            open_image(str(tmp_path / "image"))


def test_program() -> None:
    """An executable is an ELF file, and no core."""
    with pytest.raises(UnsupportedError, match="not a memory image: an ELF file of type"):
        open_image(str(Path(sys.executable).resolve()))


@settings(deadline=None)
@given(st.binary(max_size=64))
def test_probes_never_raise(head: bytes) -> None:
    """A probe is asked about anything, and answers; at most one says yes."""
    assert sum(head.startswith(probe.magic) for probe in PROBES) <= 1


def test_refused_files_are_closed(tmp_path: Path) -> None:
    """However opening ends, no descriptor stays behind."""
    good = VmcoreWriter().load(paddr=0, data=described(0)).pack()
    cases = [b"junk", good[:70], flatten(b"junk"), flatten(good)[:5000], b"KDUMP   " + bytes(10)]
    before = len(list(Path("/proc/self/fd").iterdir()))

    for blob in cases:
        (tmp_path / "image").write_bytes(blob)
        with pytest.raises(DumpError):
            open_image(str(tmp_path / "image"))

    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_only_the_format_in_use_is_imported(tmp_path: Path) -> None:
    """Opening an ELF image loads neither the kdump reader nor any codec."""
    path = VmcoreWriter().load(paddr=0, data=described(0)).write(tmp_path / "core")
    code = (
        "import sys; from stages.reader.probe import open_image; open_image(sys.argv[1]).close();"
        "print(*sorted(name for name in sys.modules))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )

    loaded = set(done.stdout.split())
    assert "stages.reader.elf_image" in loaded
    assert not loaded & {
        "stages.reader.kdump_image", "anyio", "zstandard", "cramjam", "isal", "lzallright",
    }  # fmt: skip
