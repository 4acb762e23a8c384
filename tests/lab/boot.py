"""QEMU's command lines for the lab's guests, and the four ways of taking a dump from one."""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING

from tests.lab import cache, elfhead, initramfs
from tests.lab.catalog import GIB, Image, Method
from tests.lab.commands import LabError, run
from tests.lab.disk import MIB, ensure_disk
from tests.lab.elfhead import PT_LOAD, PT_NOTE, ProgramHeader
from tests.lab.machines import MACHINES
from tests.lab.qemu import Guest, sections

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.lab.kernels import UnpackedKernel

READY = "LAB-READY"
KEXEC_TIMEOUT_S = 300
BALLOON_TIMEOUT_S = 60
CRASHKERNEL = "192M"
HEADER_ROOM = MIB  # in front of a sparse image's memory: headers and notes
LOW_RAM_MAX = 3 * GIB * MIB  # QEMU's pc machine: a larger guest's RAM goes on at 4 GiB
HIGH_RAM_START = 4 * GIB * MIB
VGA_HOLE = (0xA0000, 0xC0000)  # never RAM on a PC


def serial_log(image: Image) -> Path:
    """Where the guest's serial line is kept, also after a failure."""
    return cache.folder("logs") / f"{image.name}.log"


def _machine(image: Image, kernel: UnpackedKernel, initrd: Path, *append: str) -> list[str]:
    machine = MACHINES[kernel.architecture]
    la57 = () if image.paging_levels == 5 else ("la57=off",)
    cpu = machine.machine or ("-cpu", ",".join(("max", *la57)))
    return [
        *(machine.qemu, "-accel", "tcg,thread=multi", *cpu),
        *("-smp", "2", "-m", f"{image.memory_mib}M"),
        *("-net", "none", "-no-reboot"),
        *(("-device", "vmcoreinfo") if machine.has_vmcoreinfo else ()),
        *("-kernel", str(kernel.vmlinuz), "-initrd", str(initrd)),
        *(
            "-append",
            " ".join((f"console={machine.console} loglevel=4 panic=-1", image.append, *append)),
        ),
        *("-drive", f"file={ensure_disk(image.disk_mib)},if=virtio,format=raw,readonly=on"),
        *("-device", "virtio-balloon-pci"),
        *image.machine,
    ]


def _inflate(guest: Guest, image: Image) -> None:
    """Takes `image.balloon_mib` away from the guest and waits until it has given them."""
    wanted = (image.memory_mib - image.balloon_mib) * MIB
    guest.qmp("balloon", value=wanted)
    deadline = time.monotonic() + BALLOON_TIMEOUT_S
    while guest.qmp("query-balloon")["actual"] > wanted:
        if time.monotonic() > deadline:
            raise LabError(f"{image.name}: the balloon does not grow to {image.balloon_mib} MiB")
        time.sleep(0.1)


def _take_from_running(image: Image, kernel: UnpackedKernel, scratch: Path, dump: Path) -> None:
    """Way 1: QEMU writes the dump of a guest that does not notice."""
    initrd = scratch / "initrd"
    initramfs.build_guest(kernel, image.plan, initrd)
    with Guest(_machine(image, kernel, initrd), serial_log(image)) as guest:
        guest.wait_for(READY, image.timeout_s)
        _inflate(guest, image)
        guest.qmp("stop")
        form = {"format": "kdump-zlib"} if image.method is Method.QMP_KDUMP else {}
        guest.qmp("dump-guest-memory", paging=False, protocol=f"file:{dump}", **form)
    if image.normalised:
        elfhead.normalise(dump)


def _take_by_kexec(image: Image, kernel: UnpackedKernel, scratch: Path, dump: Path) -> None:
    """Way 2: the guest crashes, and its capture kernel copies /proc/vmcore to a second disk."""
    crash(image, kernel, scratch, dump, serial_log(image))


def crash(
    image: Image,
    kernel: UnpackedKernel,
    scratch: Path,
    dump: Path,
    log: Path,
    *,
    init: str = "capture.sh",
    disks: Sequence[Path] = (),
) -> None:
    """Boot the image's guest and crash it; its capture kernel runs `init`.

    Args:
        image: what the guest is.
        kernel: of the guest, and of the capture.
        scratch: a folder for its initial file systems.
        dump: the capture kernel's second disk, which gets /proc/vmcore.
        log: of the serial line.
        init: a file of guest/.
        disks: the capture kernel's third disk, and more.
    """
    initrd, capture = scratch / "initrd", scratch / "capture"
    initramfs.build_capture(kernel, capture, init)
    initramfs.build_guest(
        kernel, image.plan, initrd, {"vmlinuz": kernel.vmlinuz, "capture": capture}, crash=True
    )
    with dump.open("wb") as file:
        file.truncate((image.memory_mib + 64) * MIB)
    argv = _machine(image, kernel, initrd, f"crashkernel={CRASHKERNEL}")
    for disk in (dump, *disks):
        argv += ["-drive", f"file={disk},if=virtio,format=raw,cache=unsafe"]
    with Guest(argv, log) as guest:
        guest.wait_for(READY, image.timeout_s)
        guest.wait_for("LAB-COPIED", KEXEC_TIMEOUT_S)
        guest.wait_end(60)
        size = re.search(r"LAB-VMCORE (\d+)", guest.log())
    if size is None:
        raise LabError(f"{image.name}: the capture kernel did not tell the size of /proc/vmcore")
    os.truncate(dump, int(size[1]))


def ram_headers(memory_bytes: int, note: bytes) -> list[ProgramHeader]:
    """Program headers of a sparse image: the note behind the headers, RAM from `HEADER_ROOM` on."""
    low = min(memory_bytes, LOW_RAM_MAX)
    ranges = [(0, VGA_HOLE[0], 0), (VGA_HOLE[1], low, VGA_HOLE[1])]
    if memory_bytes > low:
        ranges.append((HIGH_RAM_START, HIGH_RAM_START + memory_bytes - low, low))
    loads = [
        ProgramHeader(PT_LOAD, 0, HEADER_ROOM + off, 0, start, stop - start, stop - start, 0)
        for start, stop, off in ranges
    ]
    note_off = len(elfhead.pack_headers(loads)) + elfhead.PROGRAM_HEADER_SIZE
    return [ProgramHeader(PT_NOTE, 0, note_off, 0, 0, len(note), len(note), 0), *loads]


def _take_sparse(image: Image, kernel: UnpackedKernel, scratch: Path, dump: Path) -> None:
    """Way 3: the guest's memory is a sparse file, and headers are put in front of it."""
    initrd, note_dump = scratch / "initrd", scratch / "note.elf"
    initramfs.build_guest(kernel, image.plan, initrd)
    memory = f"memory-backend-file,id=pc.ram,size={image.memory_mib}M,mem-path={dump},share=on"
    argv = [*_machine(image, kernel, initrd), "-object", memory]
    argv += ["-machine", "pc,memory-backend=pc.ram"]
    with Guest(argv, serial_log(image)) as guest:
        guest.wait_for(READY, image.timeout_s, grows=dump)
        guest.qmp("stop")
        where = {"protocol": f"file:{note_dump}", "begin": 0, "length": 4096}
        guest.qmp("dump-guest-memory", paging=False, **where)
    note = elfhead.read_note(note_dump)
    headers = ram_headers(image.memory_mib * MIB, note)
    # moves no data: needs ext4 or xfs
    run(["fallocate", "--insert-range", "-o", "0", "-l", str(HEADER_ROOM), dump], timeout_s=600)
    with dump.open("r+b") as file:
        file.write(elfhead.pack_headers(headers) + note)


def _take_file(image: Image, kernel: UnpackedKernel, scratch: Path, dump: Path) -> None:
    """Way 4: as way 3, where QEMU cannot get the note: the guest says where it lies in memory."""
    initrd, registers = scratch / "initrd", scratch / "registers.elf"
    initramfs.build_guest(kernel, image.plan, initrd)
    machine = MACHINES[kernel.architecture]
    memory = f"memory-backend-file,id=ram,size={image.memory_mib}M,mem-path={dump},share=on"
    argv = [*_machine(image, kernel, initrd), "-object", memory]
    argv += ["-machine", "virt,memory-backend=ram"]
    with Guest(argv, serial_log(image)) as guest:
        guest.wait_for(READY, image.timeout_s, grows=dump)
        guest.qmp("stop")
        where = {"protocol": f"file:{registers}", "begin": machine.ram_start, "length": 4096}
        guest.qmp("dump-guest-memory", paging=False, **where)
        at, size = (int(word, 16) for word in sections(guest.log())["vmcoreinfo"].split())
    note = elfhead.read_note(registers)
    with dump.open("rb") as file:
        file.seek(at - machine.ram_start)
        note += file.read(size)
    n_bytes = image.memory_mib * MIB
    load = ProgramHeader(PT_LOAD, 0, HEADER_ROOM, 0, machine.ram_start, n_bytes, n_bytes, 0)
    note_off = len(elfhead.pack_headers([load])) + elfhead.PROGRAM_HEADER_SIZE
    headers = [ProgramHeader(PT_NOTE, 0, note_off, 0, 0, len(note), len(note), 0), load]
    run(["fallocate", "--insert-range", "-o", "0", "-l", str(HEADER_ROOM), dump], timeout_s=600)
    with dump.open("r+b") as file:
        file.write(elfhead.pack_headers(headers, machine.elf_machine) + note)


_WAYS = {
    Method.QMP_ELF: _take_from_running,
    Method.QMP_KDUMP: _take_from_running,
    Method.KEXEC: _take_by_kexec,
    Method.SPARSE: _take_sparse,
    Method.FILE: _take_file,
}


def take_dump(image: Image, kernel: UnpackedKernel, dump: Path) -> str:
    """Boots the image's guest, writes its dump, and returns what the serial line said."""
    scratch = dump.with_name("scratch")
    scratch.mkdir()
    _WAYS[image.method](image, kernel, scratch, dump)
    cache.remove(scratch)
    dump.chmod(0o644)  # QEMU makes it readable for root alone
    return serial_log(image).read_text(errors="replace").replace("\r", "")
