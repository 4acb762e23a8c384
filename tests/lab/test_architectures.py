"""The main job on kernels of other architectures, judged by their own counters, log, and drgn."""

from __future__ import annotations

import json
import re
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

import anyio
import numpy as np
import pytest

from stages.arch.paging import ADDRESS_LIMIT
from stages.cache.pages import PageCache
from stages.reader.probe import open_image
from stages.translator.kernel import Kernel, open_kernel
from tests.lab.boot import serial_log
from tests.lab.build import ensure_image, sidecar
from tests.lab.catalog import IMAGES
from tests.lab.elfhead import read_note
from tests.lab.oracles.compare import compare_with_image
from tests.lab.oracles.drgn_memory import digest, drgn_digests
from tests.lab.oracles.drgn_tasks import drgn_tasks
from tests.lab.ours import dump, dumpstream
from tests.lab.tools import vmlinux

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = pytest.mark.lab
FOREIGN = [image.name for image in IMAGES.values() if not image.native]
WALKED_BY_DRGN = [name for name in FOREIGN if "arm64" in name]
FORMS = {
    "k6.1-arm64": "aarch64-4k-48",
    "k6.12-arm64-16k": "aarch64-16k-52",
    "k6.12-arm64-16k-47": "aarch64-16k-47",
    "k6.12-riscv64": "riscv64-sv57",
}
MIB = 1 << 20
N_BYTES = 64


def meminfo(name: str) -> dict[str, int]:
    """What the guest said of its memory, in KiB (huge pages: their number)."""
    pairs = re.findall(r"^(\S+): +(\d+)(?: kB)?$", sidecar(name)["meminfo"], re.MULTILINE)
    return {key: int(value) for key, value in pairs}


class Samples(NamedTuple):
    """Kernel addresses, and what we read there."""

    vaddrs: NDArray[np.uint64]
    digests: list[str | None]


def samples(path: Path, *, per_run: int, seed: int = 7) -> Samples:
    """Addresses from every piece of what the kernel's tables map, large pieces more often.

    Pages that the image does not hold give None.
    """

    async def look() -> Samples:
        with closing(open_image(str(path))) as image:
            kernel = await open_kernel(image, PageCache(image, capacity_bytes=8 * MIB))
            vaddrs = await mapped_addresses(kernel, per_run, seed)
            rows, good = await kernel.read_many(vaddrs, N_BYTES)
            pairs = zip(rows, good.tolist(), strict=True)
            return Samples(vaddrs, [digest(row.tobytes()) if ok else None for row, ok in pairs])

    return anyio.run(look)


async def mapped_addresses(kernel: Kernel, per_run: int, seed: int) -> NDArray[np.uint64]:
    rng = np.random.default_rng(seed)
    picked: list[int] = []
    upper = kernel.layout.form.windows[-1]
    async for run in kernel.translator.iter_runs(upper.first, ADDRESS_LIMIT - upper.first):
        if run.paddr is None or run.n_bytes < 2 * N_BYTES:
            continue
        n_picked = min(per_run, max(run.n_bytes >> 12, 1))
        inside = rng.integers(0, run.n_bytes - N_BYTES, n_picked).tolist()
        picked += [run.vaddr + at for at in inside]
    return np.array(sorted(picked), dtype=np.uint64)


@pytest.mark.parametrize("name", FOREIGN)
class TestForeign:
    def test_info_names_the_kernel_without_a_doubt(self, name: str) -> None:
        """`info` finds machine, release and paging form, and nothing to warn of."""
        facts = json.loads(dumpstream("info", "--json", ensure_image(name)))

        machine = FORMS[name].partition("-")[0]
        assert facts["machine"] == machine
        assert facts["kernel"]["release"] == sidecar(name)["kernel_release"]
        assert facts["kernel"]["utsname"]["machine"] == machine
        assert facts["kernel"]["paging"] == FORMS[name]
        assert facts["kernel"]["page_offset"] is not None
        assert facts["problems"] == []

    @pytest.mark.parametrize("codec", ["none", "zlib", "lzo", "snappy", "zstd"])
    def test_every_codec_decodes_to_the_image(self, name: str, codec: str, tmp_path: Path) -> None:
        """An independent reader decodes each page to what the image holds, and `verify` agrees."""
        image = ensure_image(name)
        dump(image, 31, codec, tmp_path / "dump")

        assert compare_with_image(tmp_path / "dump", image).tolist() == []
        assert "0 problems" in dumpstream("verify", tmp_path / "dump", "--against", image)

    def test_classes_are_those_the_guest_counted(self, name: str) -> None:
        """Free, cached and anonymous pages come to what the kernel itself said of them."""
        shown = dumpstream("info", "--json", ensure_image(name))
        facts = json.loads(shown)
        kib = facts["page_size"] // 1024
        found = {kind: n_pages * kib for kind, n_pages in facts["pages"]["by_class"].items()}
        said = meminfo(name)
        huge = said["HugePages_Total"] * said["Hugepagesize"]
        pairs = {
            "free": (found["free"], said["MemFree"]),
            "cache": (found["cache"] + found["cache_private"], said["Cached"] + said["Buffers"]),
            "user": (found["user"], said["AnonPages"] + huge),
        }

        # The guest went on for a moment after it had told.
        off = {kind: pair for kind, pair in pairs.items() if abs(pair[0] - pair[1]) > pair[1] / 50}
        assert off == {}

    def test_dmesg_has_every_line_of_the_serial_console(self, name: str) -> None:
        """What the guest's console showed is in the log of its memory, in the same order."""
        text = dumpstream("dmesg", ensure_image(name))
        said = re.sub(
            r"^(\[ *[\d.]+\]) \[ *[CT]\d+\]", r"\1", text, flags=re.MULTILINE
        ).splitlines()
        log = serial_log(IMAGES[name]).read_text(errors="replace").replace("\r", "")
        shown = [line for line in log.splitlines() if re.match(r"\[ *\d+\.\d{6}\]", line)]

        rest = iter(said)
        assert [line for line in shown if line not in rest] == []
        assert len(shown) > 50

    def test_text_is_where_the_guest_says(self, name: str) -> None:
        """The kernel's first instruction translates into /proc/iomem's "Kernel code"."""
        image = ensure_image(name)
        found = re.search(rb"SYMBOL\(_stext\)=(\w+)", read_note(image))
        assert found is not None
        shown = dumpstream("translate", "--json", image, found[1].decode())
        paddr = int(re.findall(r'"paddr": "(0x\w+)"', shown)[0], 16)
        code = re.search(r"(\w+)-(\w+) : Kernel code", sidecar(name)["iomem"])

        assert code is not None
        assert int(code[1], 16) <= paddr <= int(code[2], 16)

    def test_drgn_reads_the_same_of_our_dump(self, name: str, tmp_path: Path) -> None:
        """libkdumpfile's translation finds, at thousands of addresses, what ours does."""
        dump(ensure_image(name), 31, "zstd", tmp_path / "dump")
        ours = samples(tmp_path / "dump", per_run=8000)
        theirs = drgn_digests(tmp_path / "dump", ours.vaddrs.tolist(), N_BYTES)

        assert differing(ours, theirs) == []
        assert sum(seen is not None for seen in theirs) > 2000

    def test_drgn_finds_the_guests_tasks(self, name: str, tmp_path: Path) -> None:
        """With debug symbols drgn lists every task that the guest listed, by pid and name."""
        dump(ensure_image(name), 31, "lzo", tmp_path / "dump")
        tasks = set(drgn_tasks(tmp_path / "dump", vmlinux(IMAGES[name].kernel)))
        said = {(task["pid"], task["comm"]) for task in sidecar(name)["tasks"]}

        assert said - tasks == set()
        assert len(tasks) > 20


@pytest.mark.parametrize("name", WALKED_BY_DRGN)
def test_drgns_own_walker_reads_the_same_of_the_image(name: str) -> None:
    """drgn walks the page tables of an ELF image itself, and finds what we find."""
    image = ensure_image(name)
    ours = samples(image, per_run=8000)
    theirs = drgn_digests(image, ours.vaddrs.tolist(), N_BYTES)

    assert differing(ours, theirs) == []
    assert sum(seen is not None for seen in theirs) > 4000


def differing(ours: Samples, theirs: list[str | None]) -> list[tuple[str, bool, bool]]:
    """Addresses where the two differ, and which of them read something."""
    return [
        (hex(vaddr), mine is not None, his is not None)
        for vaddr, mine, his in zip(ours.vaddrs.tolist(), ours.digests, theirs, strict=True)
        if mine != his
    ]
