"""The images the lab can make: which kernel, how much memory, what fills it, how it is dumped."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

GIB = 1024  # in MiB, as all sizes here


class Method(StrEnum):
    """How the dump is taken."""

    QMP_ELF = "dump-guest-memory of a running guest"
    QMP_KDUMP = "dump-guest-memory of a running guest, kdump-compressed, flattened"
    KEXEC = "kexec after a crash, /proc/vmcore copied by the capture kernel"
    FILE = "guest memory in a file, under an ELF head with the note that the kernel keeps in it"
    SPARSE = "guest memory in a sparse file that was made an ELF file in place"


@dataclass(frozen=True, slots=True)
class Image:
    """One image by name."""

    name: str
    kernel: str  # key of kernels.KERNELS; architectures but the lab's own have theirs in it
    paging_levels: int
    memory_mib: int
    disk_mib: int  # files the guest reads into its page cache
    plan: str  # shell lines for the guest; guest/init.sh and guest/fill.c say what they can call
    method: Method = Method.QMP_ELF
    bench: bool = False
    # QEMU's own ELF layout has section headers first, which makedumpfile cannot read.  A large
    # image is given makedumpfile's layout in place, because a second copy costs too much disk.
    normalised: bool = False
    timeout_s: int = 300  # from power-on to LAB-READY
    append: str = ""  # more words for the kernel's command line
    machine: tuple[str, ...] = ()  # more words for QEMU
    native: bool = True  # the architecture of the lab's own machine, so all oracles can read it
    balloon_mib: int = 0  # memory taken away from the filled guest, right before the dump

    @property
    def file_name(self) -> str:
        """The dump's name in the image's folder."""
        return "dump.kdump" if self.method is Method.QMP_KDUMP else "dump.elf"


def small_plan(memory_mib: int, *, poison: bool = True, huge_mib: int = 2) -> str:
    """Something for every dump level, about two thirds of the guest's memory in all."""
    share = memory_mib / GIB

    def size(mib: int) -> str:
        return f"{max(2, round(mib * share / 2) * 2)}M"  # whole huge pages

    return "\n".join(
        (
            # at least one of 2 MiB is left unused
            f"hugepages {max(round(32 * share / huge_mib), 1)}",
            f"fill huge {size(28)}",
            "pagecache",
            f"fill anon {size(128)}",
            f"fill thp {size(64)}",
            f"fill ksm {size(32)}",
            "merge",
            f"fill tmpfs {size(48)}",
            f"fill blank {size(16)}",
            f"fill files {round(8000 * share)}",
            *(("fill poison 8K",) if poison else ()),
            f"fill stale {size(160)}",
            "",
        )
    )


BENCH_PLAN = """\
hugepages 136
fill huge 256M
pagecache
fill anon 1228M
fill thp 410M
fill ksm 64M
merge
fill tmpfs 96M
fill files 150000
fill poison 8K
fill stale 716M
"""
BENCH_DISK_MIB = 716
# Pages of a tmpfs file that are allocated and never read: the kernel does not even zero them
# (unless told to by init_on_alloc, Debian's default), so their struct pages are in use while the
# file that holds the guest's memory stays sparse.
MOSTLY_USED_PLAN = BENCH_PLAN + "fill blank 52G\n"


def _small(kernel: str, levels: int, memory_mib: int = GIB // 2) -> Image:
    return Image(
        name=f"k{kernel}-{levels}l",
        kernel=kernel,
        paging_levels=levels,
        memory_mib=memory_mib,
        disk_mib=memory_mib // 8,
        plan=small_plan(memory_mib),
    )


def _bench(name: str, memory_mib: int, plan: str, method: Method, append: str = "") -> Image:
    return Image(
        name=name,
        kernel="6.1",
        paging_levels=4,
        memory_mib=memory_mib,
        disk_mib=BENCH_DISK_MIB,
        plan=plan,
        method=method,
        bench=True,
        normalised=True,
        timeout_s=900,
        append=append,
    )


def _kexec(kernel: str) -> Image:
    return Image(
        name=f"kexec-{kernel}",
        kernel=kernel,
        paging_levels=4,
        memory_mib=GIB,
        disk_mib=64,
        plan=small_plan(GIB // 2),
        method=Method.KEXEC,
    )


def _mixed() -> Image:
    """What only larger machines have: two nodes, a hole in RAM, a balloon, memory offline."""
    nodes = [
        f"-object memory-backend-ram,id=r{node},size=512M -numa node,nodeid={node},memdev=r{node}"
        for node in (0, 1)
    ]
    return Image(
        name="k6.1-mixed",
        kernel="6.1",
        paging_levels=4,
        memory_mib=GIB,
        disk_mib=64,
        plan="offline_block\n" + small_plan(GIB // 2),
        machine=("-machine", "pc,max-ram-below-4g=512M", *" ".join(nodes).split()),
        balloon_mib=48,
    )


def _foreign(
    kernel: str,
    levels: int,
    method: Method,
    *,
    poison: bool = False,
    huge_mib: int = 2,
    machine: tuple[str, ...] = (),
    suffix: str = "",
) -> Image:
    """A guest of another architecture: emulation is slow there, so it has half as much to do."""
    return Image(
        name=f"k{kernel}{suffix}",
        kernel=kernel,
        paging_levels=levels,
        memory_mib=GIB // 2,
        disk_mib=64,
        plan=small_plan(GIB // 4, poison=poison, huge_mib=huge_mib),
        method=method,
        append="loglevel=7",  # the console is what the log is compared with
        machine=machine,
        native=False,
    )


def _kdump() -> Image:
    return Image(
        name="qemu-kdump",
        kernel="6.1",
        paging_levels=4,
        memory_mib=GIB // 2,
        disk_mib=64,
        plan=small_plan(GIB // 2),
        method=Method.QMP_KDUMP,
    )


IMAGES: dict[str, Image] = {
    image.name: image
    for image in (
        _small("6.1", 4, GIB),
        _small("5.10", 4),
        _small("6.1", 5),
        _small("6.12", 4),
        _small("7.2", 5),
        _mixed(),
        _kdump(),
        _kexec("6.1"),
        _foreign("6.1-arm64", 4, Method.QMP_ELF, poison=True),
        # QEMU 7.2 gives a riscv64 guest no vmcoreinfo device; Linux has no memory failures there
        _foreign("6.12-riscv64", 5, Method.FILE),
        # only a processor newer than the usual one has pages of 16 KiB
        _foreign(
            "6.12-arm64-16k",
            4,
            Method.QMP_ELF,
            huge_mib=32,
            machine=("-cpu", "max,pauth-impdef=on"),
        ),
        # the same kernel, built for 52 bits of addresses, on a machine that has 48
        _foreign(
            "6.12-arm64-16k",
            3,
            Method.QMP_ELF,
            huge_mib=32,
            machine=("-cpu", "max,pauth-impdef=on,lpa2=off"),
            suffix="-47",
        ),
        _bench("bench-6g", 6 * GIB, BENCH_PLAN, Method.QMP_ELF),
        _bench("bench-64g-sparse", 64 * GIB, BENCH_PLAN, Method.SPARSE),
        _bench(
            "bench-64g-used", 64 * GIB, MOSTLY_USED_PLAN, Method.SPARSE, append="init_on_alloc=0"
        ),
    )
}
