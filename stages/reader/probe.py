"""Open whatever memory image a path names.

Formats are asked in order, and asking never fails: a probe looks at the first bytes and answers
yes or no. Only the format that said yes is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from msgspec import Struct

from pipeline.errors import DumpError, UnsupportedError
from stages.formats import elf, flattened, kdump
from stages.reader.file_io import ImageFile
from stages.reader.image import Image
from stages.reader.read_errors import OnReadError
from stages.reader.vmcore_file import open_local

_HEAD_BYTES: Final = 64


class Probe(Struct, frozen=True):
    """A format: how its files start, and who opens them."""

    name: str
    magic: bytes
    open: Callable[[ImageFile, OnReadError | None], Image]


def _open_kdump(file: ImageFile, on_read_error: OnReadError | None) -> Image:
    from stages.reader.kdump_image import KdumpImage

    return KdumpImage(file, on_read_error)


def _open_elf(file: ImageFile, on_read_error: OnReadError | None) -> Image:
    from stages.reader.elf_image import ElfImage

    return ElfImage(file, on_read_error)


def _open_flattened(file: ImageFile, on_read_error: OnReadError | None) -> Image:
    from stages.reader.flattened_file import FlattenedFile

    inner = FlattenedFile(file)
    return _probe_file(inner, on_read_error, (KDUMP, ELF))


KDUMP: Final = Probe("kdump-compressed", kdump.SIGNATURE, _open_kdump)
FLATTENED: Final = Probe("flattened", flattened.SIGNATURE, _open_flattened)
ELF: Final = Probe("ELF core", elf.MAGIC, _open_elf)
PROBES: Final = (KDUMP, FLATTENED, ELF)

_KNOWN_OTHERS: Final = (
    (kdump.DISKDUMP_SIGNATURE, "a diskdump, the predecessor of kdump"),
    (b"EMiL", "a LiME image"),
    (b"AVML", "an AVML image"),
    (b"sadump\0\0", "a sadump image"),
    (b"sadu", "a sadump image"),
    (b"\x1f\x8b", "compressed by gzip; decompress it first"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; decompress it first"),
    (b"\xfd7zXZ\0", "compressed by xz; decompress it first"),
    (b"BZh", "compressed by bzip2; decompress it first"),
    (b"\x04\x22\x4d\x18", "compressed by lz4; decompress it first"),
    (b"age-encryption.org/v1\n", "encrypted; dumpstream decrypt opens it"),
)


def open_image(path: str, *, on_read_error: OnReadError | None = None) -> Image:
    """Open the memory image at `path`: a file, a block device, or /proc/vmcore.

    Args:
        path: of the image.
        on_read_error: called for each run of pages that turns out unreadable, see `OnReadError`;
            the pages are MISSING all the same.

    Raises:
        DumpError: it can't be opened, is no memory image, or is a broken one.
    """
    return open_file(open_local(path), on_read_error=on_read_error)


def open_file(file: ImageFile, *, on_read_error: OnReadError | None = None) -> Image:
    """Open the memory image in `file`, which becomes the image's to close; see `open_image`."""
    try:
        return _probe_file(file, on_read_error, PROBES)
    except OSError as error:
        file.close()
        raise DumpError(f"{file.path}: {error.strerror or error}") from error
    except DumpError as error:
        file.close()
        if file.path not in str(error):
            error.add_note(f"in {file.path}")
        raise
    except BaseException:
        file.close()
        raise


def _probe_file(
    file: ImageFile, on_read_error: OnReadError | None, probes: tuple[Probe, ...]
) -> Image:
    head = file.read(0, _HEAD_BYTES)
    for probe in probes:
        if head.startswith(probe.magic):
            return probe.open(file, on_read_error)
    # Last: nobody knows it.
    for magic, kind in _KNOWN_OTHERS:
        if head.startswith(magic):
            raise UnsupportedError(f"not a memory image: {file.path} is {kind}")
    names = ", ".join(probe.name for probe in probes)
    raise DumpError(
        f"not a memory image: {file.path} starts with {head[:8].hex(' ')}, wanted one of {names}"
    )
