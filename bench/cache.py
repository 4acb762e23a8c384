"""What the cache and its prefetching gain, and what they cost where nothing is waited for.

    python -m bench.cache [--rounds 5] [--only NAME]

Every figure is a ratio of medians, both sides in turn, in one run on warm files. Delays are real
waits (`source.latency`). `bench/latency_figure.py` draws time against latency.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import numpy as np

from bench.measure import warm
from pipeline.config.layers import load_settings
from pipeline.run import assemble
from stages.cache.blocks import BlockCache
from stages.cache.pages import CacheOptions, PageCache, make_cache
from stages.filter.prepare import prepare_filter
from stages.translator.kernel import open_kernel
from tests.lab.build import ensure_image
from tests.lab.net.nginx import nginx
from tests.lab.tools import makedumpfile
from tests.support.certificates import Authority

SPARSE, USED, GIB = "bench-64g-sparse", "bench-64g-used", "k6.1-4l"
DELAY = "source.latency.per_request_ms"
_MIN_PAIRS = 16


@dataclass(frozen=True, slots=True)
class Figure:
    name: str
    value: float
    goal: float
    least: float
    more: str = ""

    def line(self) -> str:
        larger_is_better = self.goal > self.least
        reached = [
            self.value >= limit if larger_is_better else self.value <= limit
            for limit in (self.goal, self.least)
        ]
        mark = "ok" if reached[0] else "least" if reached[1] else "MISS"
        return (
            f"{self.name:<46}{self.value:>9.3f} {self.goal:>8} {self.least:>8}  {mark}  {self.more}"
        )


def dump(source: str, *sets: str, level: int = 31) -> dict[str, Any]:
    """One dump in a process of its own; its ``--stats`` with the whole wall time."""
    with tempfile.TemporaryDirectory() as folder:
        stats = Path(folder) / "stats.json"
        words = [sys.executable, "-m", "pipeline", "dump", "-d", str(level), "--progress", "none"]
        words += ["-f", "--stats", str(stats), *(word for each in sets for word in ("--set", each))]
        began = time.perf_counter()
        subprocess.run([*words, source, f"{folder}/out"], check=True, capture_output=True)
        return {**json.loads(stats.read_text()), "wall_s": time.perf_counter() - began}


def pass_1(image: str, *sets: str) -> float:
    """Seconds of pass 1: finding the kernel and filtering, in a process of its own."""
    code = (
        "import gc, sys, time, anyio\n"
        "gc.set_threshold(50_000)\n"
        "from pipeline.config.layers import load_settings\n"
        "from pipeline.run import assemble\n"
        "from stages.filter.stage import filter_image\n"
        "settings = load_settings(sets=sys.argv[2:]).settings\n"
        "image = assemble.open_source(sys.argv[1], settings)\n"
        "workers = 1\n"
        "if settings.source.latency.is_on and settings.cache.prefetch: workers = 4\n"
        "from stages.cache.pages import CacheOptions, make_cache\n"
        "from stages.translator.kernel import open_kernel\n"
        "async def go():\n"
        "    began = time.perf_counter()\n"
        "    options = CacheOptions(8 << 20, prefetch=settings.cache.prefetch)\n"
        "    cache = make_cache(image, options)\n"
        "    kernel = await open_kernel(image, cache)\n"
        "    await filter_image(image, kernel, 31, workers=workers)\n"
        "    print(time.perf_counter() - began)\n"
        "    cache.close()\n"
        "anyio.run(go)\n"
    )
    words = [sys.executable, "-c", code, image, *sets]
    # Both as the command line has them: idle threads of BLAS would spin on a core of the run's.
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    return float(subprocess.run(words, check=True, capture_output=True, text=True, env=env).stdout)


def ratio(
    upper: Callable[[], float], lower: Callable[[], float], rounds: int
) -> tuple[float, float, float]:
    """Median of each side, in turns, and their ratio."""
    pairs = [(upper(), lower()) for _ in range(rounds)]
    above, below = (statistics.median(column) for column in zip(*pairs, strict=True))
    return above / below, above, below


def delayed_pass_1(rounds: int) -> Iterator[Figure]:
    image = str(ensure_image(SPARSE))
    warm(Path(image))
    value, slow, fast = ratio(lambda: pass_1(image, f"{DELAY}=5"), lambda: pass_1(image), rounds)
    yield Figure(
        "pass 1, 64 GiB sparse, 5 ms / none", value, 1.3, 2, f"{slow:.3f} s / {fast:.3f} s"
    )
    off = pass_1(image, f"{DELAY}=5", "cache.prefetch=false")
    yield Figure("the same, prefetch off / on", off / slow, 20, 8, f"{off:.1f} s / {slow:.3f} s")


def their_pass_1(rounds: int) -> Iterator[Figure]:
    image = str(ensure_image(USED))
    warm(Path(image))
    value, mine, other = ratio(lambda: pass_1(image), lambda: makedumpfile_pass_1(image), rounds)
    more = f"{mine:.3f} s / {other:.3f} s"
    yield Figure("pass 1, 64 GiB used / makedumpfile's", value, 0.5, 1.0, more)


def makedumpfile_pass_1(image: str) -> float:
    """Sum of its 'Excluding unnecessary pages' steps, as it reports them."""
    with tempfile.TemporaryDirectory() as folder:
        words = [*makedumpfile(), "-d", "31", "--message-level", "16", "-l", image, f"{folder}/out"]
        said = subprocess.run(words, check=True, capture_output=True, text=True)
    lines = (said.stdout + said.stderr).replace("\r", "\n").splitlines()
    steps = [line for line in lines if "STEP" in line and "Excluding unnecessary pages" in line]
    return sum(float(line.rsplit(":", 1)[1].split()[0]) for line in steps)


def vmalloc(rounds: int) -> Iterator[Figure]:
    """Translates every mapped page of the vmalloc area, one at a time."""
    settings = load_settings(sets=[f"{DELAY}=0.01"]).settings
    image = assemble.open_source(str(ensure_image(GIB)), settings)

    async def go() -> tuple[int, PageCache | BlockCache, int]:
        cache = make_cache(image, CacheOptions(8 << 20))
        kernel = await open_kernel(image, cache)
        start, stop = await vmalloc_area(kernel, image)
        vaddrs: list[int] = []
        runs = kernel.translator.iter_runs(start, stop - start)
        async for run in runs:
            if run.paddr is not None:
                vaddrs += range(run.vaddr, run.vaddr + run.n_bytes, kernel.page_size)
        fresh = make_cache(image, CacheOptions(8 << 20))
        again = await open_kernel(image, fresh)
        before = image.link.stats.requests  # type: ignore[attr-defined]
        fresh.stats.hits = fresh.stats.misses = 0
        for vaddr in vaddrs:
            await again.translator.translate(np.array([vaddr], dtype=np.uint64))
        return len(vaddrs), fresh, image.link.stats.requests - before  # type: ignore[attr-defined]

    n_pages, cache, requests = anyio.run(go)
    more = f"{n_pages} pages"
    yield Figure("vmalloc area, hit ratio in %", cache.stats.hit_ratio * 100, 99.95, 99.9, more)
    per_1000 = requests / n_pages * 1000
    yield Figure(
        "the same, requests per 1,000 translations", per_1000, 2, 2, f"{requests} requests"
    )


async def vmalloc_area(kernel: Any, image: Any) -> tuple[int, int]:
    """What lies between the direct map and the struct pages: vmalloc's, and nothing else's."""
    plan = await prepare_filter(image, kernel, 31)
    memmap = min(region.memmap_vaddr for region in plan.model.regions if region.memmap_vaddr)
    start = await kernel.find_page_offset()
    return start + (image.max_mapnr + (1 << 18)) * kernel.page_size, memmap


@contextmanager
def served(image: Path) -> Iterator[str]:
    """URL of `image` on a real nginx."""
    with tempfile.TemporaryDirectory() as folder:
        pem = Authority(Path(folder)).issue("bench")
        (Path(folder) / "nginx").mkdir()
        with nginx(Path(folder) / "nginx", pem) as server:
            (server.root / "dump.elf").symlink_to(image)
            yield server.url("dump.elf")


def over_http(rounds: int) -> Iterator[Figure]:
    image = ensure_image(GIB)
    warm(image)
    with served(image) as url:
        value, remote, local = ratio(
            lambda: dump(url, f"{DELAY}=20")["wall_s"],
            lambda: dump(str(image))["wall_s"],
            rounds,
        )
    more = f"{remote:.2f} s / {local:.2f} s"
    yield Figure("-d 31, 1 GiB, nginx with 20 ms / local", value, 1.5, 2.5, more)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one dump took, of its whole process."""

    wall_s: float
    cpu_s: float
    rss_bytes: int


def copy_cost(source: str, *sets: str) -> Cost:
    """``dump -d 1 -`` to nowhere, without compression: only reading is left to be slow."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        stats = Path(folder) / "stats.json"
        words = [sys.executable, "-m", "pipeline", "dump", "-d", "1", "--compress", "none"]
        words += ["--progress", "none", "--stats", str(stats)]
        words += [word for each in sets for word in ("--set", each)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.perf_counter()
        nowhere = subprocess.DEVNULL
        subprocess.run([*words, source, "-"], check=True, stdout=nowhere, stderr=nowhere)
        wall_s = time.perf_counter() - began
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Cost(wall_s, cpu_s, json.loads(stats.read_text())["peak_rss_bytes"]["main"])


def cost_pairs(image: str, n_pairs: int) -> list[tuple[Cost, Cost]]:
    """(cache on, cache off), each pair side by side in time, and each order as often."""
    pairs: list[tuple[Cost, Cost]] = []
    for nth in range(n_pairs):
        if nth % 2:
            off = copy_cost(image, "cache.enabled=false")
            pairs.append((copy_cost(image), off))
        else:
            pairs.append((copy_cost(image), copy_cost(image, "cache.enabled=false")))
    return pairs


def no_cost(rounds: int) -> Iterator[Figure]:
    """Medians of the pairs' own ratios: what the machine does besides changes from pair to pair."""
    image = str(ensure_image(GIB))
    warm(Path(image))
    pairs = cost_pairs(image, max(rounds, _MIN_PAIRS))
    for what, name in (("time", "wall_s"), ("CPU", "cpu_s")):
        ratios = sorted(getattr(on, name) / getattr(off, name) for on, off in pairs)
        middle = statistics.median(getattr(off, name) for _, off in pairs)
        quarter = len(ratios) // 4
        more = f"{len(pairs)} pairs of {middle:.2f} s, half of them "
        more += f"{ratios[quarter]:.3f} to {ratios[-1 - quarter]:.3f}"
        value = statistics.median(ratios)
        yield Figure(f"-d 1 local, cache on / off, {what}", value, 1.0, 1.02, more)
    grown = statistics.median(on.rss_bytes - off.rss_bytes for on, off in pairs)
    yield Figure("RSS grown by the cache, MiB (capacity 8)", grown / 2**20, 10, 10)


def line_memory(rounds: int) -> Iterator[Figure]:
    """What a dump over a line takes beyond one of the same file, in memory."""
    image = str(ensure_image(SPARSE))
    warm(Path(image))
    sides = [
        [dump(image, *sets)["peak_rss_bytes"]["main"] for _ in range(rounds)]
        for sets in ((f"{DELAY}=5",), (f"{DELAY}=5", "cache.enabled=false"))
    ]
    on, off = (statistics.median(side) / 2**20 for side in sides)
    yield Figure(
        "RSS grown by the cache over a line, MiB", on - off, 10, 10, f"{on:.0f} / {off:.0f} MiB"
    )


GROUPS: dict[str, Callable[[int], Iterator[Figure]]] = {
    "delayed": delayed_pass_1,
    "makedumpfile": their_pass_1,
    "vmalloc": vmalloc,
    "http": over_http,
    "cost": no_cost,
    "memory": line_memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=GROUPS)
    asked = parser.parse_args()
    print(f"{'figure':<46}{'value':>9} {'goal':>8} {'least':>8}")
    for name, group in GROUPS.items():
        if asked.only in (None, name):
            for figure in group(asked.rounds):
                print(figure.line(), flush=True)


if __name__ == "__main__":
    main()
