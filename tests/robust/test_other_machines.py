"""Images of machines whose kdump-compressed dumps are not written, and of memory far up."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.robust.guard import bounded
from tests.robust.running import QUICK, call, left_in
from tests.support.vmcore_writer import (
    EM_386,
    EM_AARCH64,
    EM_S390,
    EM_X86_64,
    PAGE,
    VmcoreWriter,
    described,
)

EM_RISCV = 243
PIB = 1 << 50


def kdump_is_refused(source: Path, target: Path, *said: str) -> None:
    call("dump", *QUICK, "-d", "1", source, target).failed(1, "--format elf", *said)
    assert left_in(target.parent) == []


def elf_is_written(source: Path, target: Path, n_pages: int) -> None:
    call("dump", *QUICK, "-d", "1", "--format", "elf", source, target).succeeded()
    verified = call("verify", target, "--against", source)
    assert verified.out.startswith(f"ok: {n_pages} of {n_pages} pages good"), verified.out


@pytest.mark.parametrize(
    ("writer", "said"),
    [
        (VmcoreWriter(machine=EM_386, bits=32), "32-bit machines (i686)"),
        (VmcoreWriter(machine=EM_S390, order=">"), "big-endian machines (s390x)"),
        (VmcoreWriter(machine=EM_S390, bits=32, order=">"), "32-bit machines (s390)"),
    ],
    ids=["i686", "s390x", "s390"],
)
def test_fields_of_another_kind(
    writer: VmcoreWriter, said: str, tmp_path: Path, target: Path
) -> None:
    """One line says what cannot be written and what can, and that works."""
    source = writer.load(paddr=0x100000, data=described(0x100, 16)).write(tmp_path / "source")

    kdump_is_refused(source, target, said, "cannot be written")
    elf_is_written(source, target, 16)


@pytest.mark.parametrize(
    ("machine", "paddr"),
    [(EM_X86_64, (1 << 52) - PAGE), (EM_AARCH64, 3 * PIB), (EM_RISCV, (1 << 56) - PAGE)],
)
def test_memory_far_up(machine: int, paddr: int, tmp_path: Path, target: Path) -> None:
    """Up to the last address of the architecture; bitmaps of petabytes are left to ELF."""
    writer = VmcoreWriter(machine=machine).load(paddr=0x100000, data=described(0x100, 16))
    source = writer.load(paddr=paddr, data=b"far up!!" * (PAGE // 8)).write(tmp_path / "source")

    with bounded():
        kdump_is_refused(source, target, "cannot hold memory up to", hex(paddr + PAGE))
        elf_is_written(source, target, 17)


@pytest.mark.parametrize(
    ("machine", "paddr"), [(EM_X86_64, 1 << 52), (EM_AARCH64, 1 << 52), (EM_RISCV, 1 << 56)]
)
def test_memory_where_none_can_be(machine: int, paddr: int, tmp_path: Path, target: Path) -> None:
    """One page further is a lie."""
    source = VmcoreWriter(machine=machine).load(paddr=paddr, data=bytes(PAGE))

    done = call("dump", *QUICK, "-d", "1", source.write(tmp_path / "source"), target)

    done.failed(1, "p_memsz", f"an end below {paddr:#x}")


def test_more_memory_than_machines_have(tmp_path: Path, target: Path) -> None:
    """Loads without bytes cost nothing to claim, so their sum is bounded."""
    writer = VmcoreWriter()
    for index in range(4):
        writer.load(paddr=index << 50, data=described(index << 38, 1), mem_size=1 << 48)

    with bounded():
        done = call("dump", *QUICK, "-d", "1", writer.write(tmp_path / "source"), target)

    done.failed(1, "p_memsz", "at most 0x1000000000000 in all")
