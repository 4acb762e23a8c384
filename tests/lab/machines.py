"""What differs between the architectures of the lab's guests, and how QEMU is asked for one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Machine:
    """An architecture by the name that Debian gives it."""

    debian: str
    qemu: str
    machine: tuple[str, ...]  # words for QEMU; the processor of an x86 guest is the image's choice
    console: str
    compiler: str  # for the filler, which is static
    busybox_suite: str | None  # whose busybox-static the guest runs; None: this machine's own
    ram_start: int = 0  # where the guest's one piece of memory starts, for `Method.FILE`
    elf_machine: int = 62
    has_vmcoreinfo: bool = True  # QEMU's device that takes the note from the guest


MACHINES = {
    machine.debian: machine
    for machine in (
        Machine("amd64", "qemu-system-x86_64", (), "ttyS0", "gcc", None),
        Machine(
            "arm64",
            "qemu-system-aarch64",
            ("-machine", "virt", "-cpu", "cortex-a72"),
            "ttyAMA0",
            "aarch64-linux-gnu-gcc",
            "bookworm",
            0x40000000,
            183,
        ),
        Machine(
            "riscv64",
            "qemu-system-riscv64",
            ("-machine", "virt"),
            "ttyS0",
            "riscv64-linux-gnu-gcc",
            "trixie",  # the first release that has riscv64
            0x80000000,
            243,
            has_vmcoreinfo=False,
        ),
    )
}
