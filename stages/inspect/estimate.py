"""How large a dump of an image would be, for dump levels and codecs, and how long it would take.

The filter says how many pages each class has; a random sample of each class is read and compressed
with every codec. Pages with the same contents share their bytes in a dump, which a sample does not
see: real dumps are a little smaller.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import anyio.to_thread
import numpy as np

from pipeline.errors import UnsupportedError
from pipeline.flow.items import PageState
from pipeline.memory.addresses import ByteArray, PfnArray
from pipeline.memory.sizes import show_count, show_size
from stages.compressor.kernels import BatchEncoder, make_encoder
from stages.filter.levels import MAX_LEVEL, DumpLevel, needs_struct_pages
from stages.filter.stage import FilterResult, filter_image
from stages.formats.kdump import KdumpLayout
from stages.inspect.sample import RUN_PAGES, PageSet
from stages.reader.image import Image
from stages.sink.measure import TargetFacts
from stages.translator.kernel import Kernel

LEVELS: Final = (1, 15, 17, 31)
_SAMPLE_RUNS: Final = 256
"""16 MiB of each class; a 6 GiB image was told within 5 % at levels 1 and 31, zstd and lzo."""
_SEED: Final = 1  # the same image gives the same estimate
_GROUPS: Final = {
    "free": DumpLevel.FREE,
    "user": DumpLevel.USER,
    "cache": DumpLevel.CACHE | DumpLevel.CACHE_PRIVATE,
}


_ELF_LOADS: Final = 65533
_ELF_LOAD_BYTES: Final = 56
"""An ELF dump has room for so many program headers, or for one for every two pages."""


@dataclass(frozen=True, slots=True)
class LevelEstimate:
    """Of one dump level; `n_bytes` by codec, `seconds` of one CPU's compression by codec.

    Both have the codecs that were asked for, and ``elf`` for an ELF dump if ``none`` was.
    """

    level: int
    n_pages: int
    n_bytes: dict[str, int]
    seconds: dict[str, float]


@dataclass(slots=True)
class Estimate:
    """What `estimate` prints.

    Attributes:
        n_sampled: pages that were read.
        uncertainty: half of the 95 % interval, as a share of the size; the largest of all.
        missing_codecs: those whose library is not installed.
    """

    source: str
    page_size: int
    levels: list[LevelEstimate]
    n_sampled: int
    uncertainty: float
    target: TargetFacts | None = None
    missing_codecs: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """For people."""
        codecs = list(self.levels[0].n_bytes) if self.levels else []
        yield f"{'level':>5} {'pages':>12} " + " ".join(f"{name:>11}" for name in codecs)
        for one in self.levels:
            sizes = " ".join(f"{show_size(one.n_bytes[name]):>11}" for name in codecs)
            yield f"{one.level:>5} {one.n_pages:>12} {sizes}"
        yield (
            f"about {self.uncertainty:.0%} either way, from {show_count(self.n_sampled, 'page')} "
            "read; pages with the same contents share their bytes, so dumps may be smaller"
        )
        if self.missing_codecs:
            yield f"not installed: {', '.join(self.missing_codecs)}"
        yield from self.problems
        yield from self._target_lines(codecs)

    def _target_lines(self, codecs: Sequence[str]) -> Iterator[str]:
        target = self.target
        if target is None:
            return
        yield from target.lines()
        if not target.bytes_per_s:
            return
        for one in self.levels:
            times = (
                f"{name} {max(one.n_bytes[name] / target.bytes_per_s, one.seconds[name]):.0f} s"
                for name in codecs
            )
            yield f"level {one.level}: {', '.join(times)} with one CPU to compress"


async def estimate(
    image: Image,
    kernel: Kernel | None,
    codec_levels: Mapping[str, int],
    *,
    levels: Sequence[int] = LEVELS,
    chosen: FilterResult | None = None,
) -> Estimate:
    """Sizes of dumps of `image`.

    Args:
        image: to be dumped.
        kernel: the one inside it; None leaves the levels that need none.
        codec_levels: codecs to try, and the level of each.
        levels: dump levels to list.
        chosen: what pass 1 found at the highest level, when that was done already.

    Raises:
        MissingInfoError: the filter lacks something in VMCOREINFO.
    """
    encoders, missing = _encoders(codec_levels, image.info.page_size)
    if kernel is None:
        levels = [one for one in levels if not needs_struct_pages(one, image.info.dump_level)]
        groups = {"kept": PageSet(image.saved_bitmap())}
        counts: dict[str, int] = {}
    else:
        top = chosen or await filter_image(image, kernel, MAX_LEVEL)
        groups = await _groups(image, kernel, top)
        counts = top.counts
    sampler = _Sampler(image, encoders)
    for name, pages in groups.items():
        await anyio.to_thread.run_sync(sampler.sample, name, pages)
    sizes = {name: pages.n_pages for name, pages in groups.items()}
    return Estimate(
        source=image.path,
        page_size=image.info.page_size,
        levels=[_level(image, one, sizes, counts, sampler) for one in levels],
        n_sampled=sampler.n_sampled,
        uncertainty=sampler.uncertainty(sizes),
        missing_codecs=missing,
        problems=[] if kernel else ["no VMCOREINFO: only dump levels 0 and 1 work"],
    )


def _encoders(
    codec_levels: Mapping[str, int], page_size: int
) -> tuple[dict[str, BatchEncoder], list[str]]:
    found: dict[str, BatchEncoder] = {}
    missing: list[str] = []
    for name, level in codec_levels.items():
        try:
            found[name] = make_encoder(name, level, page_size)
        except (UnsupportedError, ImportError):
            missing.append(name)
    return found, missing


async def _groups(image: Image, kernel: Kernel, top: FilterResult) -> dict[str, PageSet]:
    """What every level keeps, and each group of classes that some level leaves out."""
    groups = {"kept": PageSet(top.kept)}
    for name, bits in _GROUPS.items():
        looked_for = bits & ~image.info.dump_level
        if looked_for:
            with_group = await filter_image(image, kernel, MAX_LEVEL & ~bits)
            groups[name] = PageSet(with_group.kept, top.kept)
    return groups


def _level(
    image: Image,
    level: int,
    sizes: Mapping[str, int],
    counts: Mapping[str, int],
    sampler: _Sampler,
) -> LevelEstimate:
    n_by_group = {name: _n_kept(name, level, n, counts) for name, n in sizes.items()}
    n_pages = sum(n_by_group.values())
    layout = KdumpLayout(
        block_size=image.info.page_size,
        max_mapnr=image.max_mapnr,
        notes_size=len(image.info.notes),
        n_dumped=n_pages,
        eraseinfo_size=len(image.info.eraseinfo),
    )
    n_bytes = {
        codec: layout.data_start + round(sampler.total(n_by_group, "sizes", codec))
        for codec in sampler.codecs
    }
    seconds = {codec: sampler.total(n_by_group, "seconds", codec) for codec in sampler.codecs}
    if "none" in n_bytes:
        room = min(n_pages // 2, _ELF_LOADS) * _ELF_LOAD_BYTES
        stored = round(sampler.total(n_by_group, "sizes", "none"))
        n_bytes["elf"] = len(image.info.notes) + room + stored
        seconds["elf"] = seconds["none"]
    return LevelEstimate(level, n_pages, n_bytes, seconds)


def _n_kept(group: str, level: int, n_pages: int, counts: Mapping[str, int]) -> int:
    """Pages of a group that `level` keeps."""
    bits = _GROUPS.get(group)
    if bits is None:
        return n_pages
    if group == "cache":
        if level & DumpLevel.CACHE_PRIVATE:
            return 0
        return n_pages - (counts.get("cache", 0) if level & DumpLevel.CACHE else 0)
    return 0 if level & bits else n_pages


@dataclass(slots=True)
class _Measured:
    """Per page of one group, by codec: means, and the standard error of the mean size."""

    sizes: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class _Sampler:
    """Reads and compresses samples."""

    def __init__(self, image: Image, encoders: Mapping[str, BatchEncoder]) -> None:
        self._image = image
        self._encoders = encoders
        self._measured: dict[str, _Measured] = {}
        self._draw = random.Random(_SEED)
        self.n_sampled = 0

    @property
    def codecs(self) -> list[str]:
        return list(self._encoders)

    def sample(self, group: str, pages: PageSet) -> None:
        """Blocks: up to 16 MiB are read and compressed with each codec."""
        page_size = self._image.info.page_size
        buffer = np.empty((RUN_PAGES, page_size), dtype=np.uint8)
        out = np.empty(2 * buffer.size, dtype=np.uint8)
        runs = pages.pick(_SAMPLE_RUNS, self._draw)
        sizes: dict[str, list[float]] = {name: [] for name in self._encoders}
        seconds = dict.fromkeys(self._encoders, 0.0)
        n_pages = 0
        for pfns in runs:
            rows = self._read(pfns, buffer[: len(pfns)])
            n_pages += len(pfns)
            for name, encoder in self._encoders.items():
                started = time.perf_counter()
                n_bytes = 0
                if len(rows):
                    coded, _ = encoder.encode(buffer[: len(pfns)], rows, out)
                    n_bytes = int(coded.sum())
                seconds[name] += time.perf_counter() - started
                sizes[name].append(n_bytes / len(pfns))
        self.n_sampled += n_pages
        found = self._measured[group] = _Measured()
        for name, values in sizes.items():
            found.sizes[name] = float(np.mean(values)) if values else 0.0
            spread = float(np.std(values)) if values else 0.0
            found.errors[name] = spread / max(len(values), 1) ** 0.5
            found.seconds[name] = seconds[name] / max(n_pages, 1)

    def _read(self, pfns: PfnArray, pages: ByteArray) -> Any:
        """Rows that would be stored: not zero, and readable."""
        states = self._image.read_pages(pfns, pages)
        return np.flatnonzero((states == PageState.DATA) & pages.any(axis=1))

    def total(self, n_by_group: Mapping[str, int], what: str, codec: str) -> float:
        """Sum over groups of a mean times the pages."""
        return sum(
            n_pages * float(getattr(self._measured[group], what)[codec])
            for group, n_pages in n_by_group.items()
        )

    def uncertainty(self, sizes: Mapping[str, int]) -> float:
        """Half a 95 % interval as a share, of the codec for which it is largest."""
        shares = [0.0]
        for codec in self._encoders:
            mean = self.total(sizes, "sizes", codec)
            if mean:
                errors = (n * self._measured[group].errors[codec] for group, n in sizes.items())
                shares.append(2 * sum(one * one for one in errors) ** 0.5 / mean)
        return max(shares)
