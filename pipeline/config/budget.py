"""Divides `memory.budget` among its consumers, and shrinks what does not fit.

`Sizes` is what is wished for; `fit` takes from it, in a fixed order, until the sum of `shares` is
inside the budget. What costs least speed goes first::

    buffers above a sixteenth of the budget   halved, the largest first
    batches                                   halved, down to 512 KiB
    buffers of targets above a third          halved, the largest first
    workers                                   one by one, down to 2
    batches                                   halved, down to 256 KiB
    buffers of targets                        halved, down to what an upload needs
    the second worker, then the buffers again, down to one batch each
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from pipeline.config.resolved import ImageFacts, MemoryShare
from pipeline.config.settings import KIB, MIB, Mode
from pipeline.config.target_buffers import TargetBuffer

BASE_BYTES: Final = 45 * MIB
"""Interpreter with numpy, anyio, msgspec and a codec; outside the budget."""
MIN_BUDGET: Final = 8 * MIB
"""Below this not even one worker with the smallest buffers fits."""
PFN_BYTES: Final = 8
SLOTS_PER_WORKER: Final = 2
"""One is filled while the writer still holds the other."""

# A hop between stages costs up to 0.2 ms; coding 512 KiB takes 2 ms and more: under a tenth.
_GOOD_BATCH: Final = 512 * KIB
_LEAST_BATCH: Final = 256 * KIB
_PRIVATE_BYTES: Final[dict[Mode, int]] = {
    "inline": 1 * MIB,  # the codec's tables
    "threads": 1 * MIB,
    "processes": 2 * MIB,  # those, and what a forked interpreter writes to
}
# Classification holds the struct pages and about two arrays of their fields beside them.
_WINDOW_COPIES: Final = 3
_DESCRIPTOR_COPIES: Final = 2  # one fills while the other is on its way
_SEALING_BYTES: Final = 2 * MIB  # what is sealed at once, before and after
_LEAST_CACHE: Final = 64 * KIB
_LEAST_WINDOW: Final = 64 * KIB
_LEAST_DESCRIPTORS: Final = 4 * KIB

# A packed block of 32768 pages takes 4 KiB, but most blocks are runs; 1 KiB is what busy images
# average, and Python's objects around a block add 200 bytes. Two bitmaps: RAM, and what is kept.
_BITMAP_BLOCK_PAGES: Final = 32768
_BITMAP_BLOCK_BYTES: Final = 1 * KIB + 200
_N_BITMAPS: Final = 2


class Sizes(Struct, frozen=True):
    """Everything that costs memory, in bytes unless named otherwise."""

    page_size: int
    sends_data: bool
    """The reader reads for everybody; else it sends page numbers, and workers read."""
    mode: Mode
    workers: int
    batch_pages: int
    reader_channel: int
    filter_channel: int
    compressor_channel: int
    writer_channel: int
    sink_channel: int
    cache: int
    ahead: int
    """Read ahead of its use over a slow line."""
    filter_workers: int
    window: int
    descriptors: int
    bitmaps: int
    targets: tuple[TargetBuffer, ...] = ()
    n_sinks: int = 1
    """Targets at once; each may lag behind by `sink_channel`."""
    encrypts: bool = False

    @property
    def batch_bytes(self) -> int:
        return self.batch_pages * self.page_size

    @property
    def slot_bytes(self) -> int:
        return slot_bytes(self.batch_bytes)


def slot_bytes(batch_bytes: int) -> int:
    """Room for a batch none of whose pages compresses, and for what a codec writes past a page."""
    return batch_bytes + batch_bytes // 50 + MIB


def pages_of(n_bytes: int, page_size: int) -> int:
    """Pages that `n_bytes` make, 1 at least."""
    return max(n_bytes // page_size, 1)


def estimate_bitmaps(max_mapnr: int | None, budget: int) -> int:
    """Memory of the page bitmaps: by size of the image when known, and an eighth at most."""
    most = budget // 8
    if max_mapnr is None:
        return most // 2
    n_blocks = -(-max_mapnr // _BITMAP_BLOCK_PAGES)
    return min(n_blocks * _BITMAP_BLOCK_BYTES * _N_BITMAPS, most)


def shares(sizes: Sizes) -> tuple[MemoryShare, ...]:
    """What each consumer holds at its peak, the interpreter first."""
    worker = SLOTS_PER_WORKER * sizes.slot_bytes + _PRIVATE_BYTES[sizes.mode] + sizes.batch_bytes
    reading = sizes.batch_bytes if sizes.sends_data else 0
    windows = sizes.filter_workers * sizes.window * _WINDOW_COPIES
    sealing = sizes.writer_channel + _SEALING_BYTES if sizes.encrypts else 0
    return (
        MemoryShare("interpreter and libraries", BASE_BYTES, counted=False),
        MemoryShare("page bitmaps", sizes.bitmaps),
        MemoryShare("page cache", sizes.cache),
        MemoryShare("filter windows", windows),
        # The filter has given its windows back when the copy begins.
        MemoryShare("read ahead over the line, beyond these", max(sizes.ahead - windows, 0)),
        MemoryShare("read buffer", reading),
        MemoryShare("workers: slots, buffers, codec", sizes.workers * worker),
        MemoryShare("descriptors", sizes.descriptors * _DESCRIPTOR_COPIES),
        MemoryShare("channel into the filter", sizes.filter_channel),
        MemoryShare("channel reader to compressor", sizes.reader_channel),
        MemoryShare("channel compressor to writer", sizes.compressor_channel),
        MemoryShare("channel writer to sink", sizes.writer_channel),
        MemoryShare("under way in the sink", sizes.n_sinks * sizes.sink_channel),
        *(MemoryShare("encryption, and the channel into it", sealing) for _ in range(sealing > 0)),
        *(MemoryShare(f"target: {each.key}", each.total) for each in sizes.targets),
    )


def total_bytes(sizes: Sizes) -> int:
    return sum(share.n_bytes for share in shares(sizes) if share.counted)


def least_budget(image: ImageFacts, targets: Sequence[TargetBuffer]) -> int:
    """Below this not even one worker gets a dump to `targets`."""
    batch = pages_of(_LEAST_BATCH, image.page_size) * image.page_size
    needs = sum(each.n_targets * each.least for each in targets)
    needs += (len(image.schemes) - 1) * batch
    return MIN_BUDGET + needs + (batch + _SEALING_BYTES if image.encrypts else 0)


def fit(wish: Sizes, budget: int) -> Sizes:
    """The largest sizes, in the order above, whose shares sum up to `budget` at most.

    `budget` is `least_budget` at least.
    """
    steps: tuple[Callable[[Sizes], Sizes | None], ...] = (
        lambda sizes: _halve_largest_buffer(sizes, budget // 16),
        lambda sizes: _halve_batch(sizes, _GOOD_BATCH),
        lambda sizes: _halve_target(sizes, budget // 3),
        lambda sizes: _halve_ahead(sizes, budget // 8),
        lambda sizes: _drop_worker(sizes, 2),
        lambda sizes: _halve_batch(sizes, _LEAST_BATCH),
        lambda sizes: _halve_target(sizes, 0),
        lambda sizes: _drop_worker(sizes, 1),
        lambda sizes: _halve_largest_buffer(sizes, 0),
        lambda sizes: _halve_ahead(sizes, 0),
        _drop_filter_worker,
    )
    sizes = wish
    for step in steps:
        while total_bytes(sizes) > budget:
            smaller = step(sizes)
            if smaller is None:
                break
            sizes = smaller
    return sizes


def _least(sizes: Sizes) -> dict[str, int]:
    """Buffers that may be halved, and what each needs for a run to get through."""
    # A channel lets one item pass whatever its capacity, so less than a batch saves nothing.
    batch = sizes.batch_bytes
    return {
        "cache": _LEAST_CACHE,
        "window": _LEAST_WINDOW,
        "descriptors": _LEAST_DESCRIPTORS,
        "filter_channel": _LEAST_WINDOW,
        "reader_channel": _least_reader_channel(sizes),
        "compressor_channel": batch,
        "writer_channel": batch,
        "sink_channel": batch,
    }


def _least_reader_channel(sizes: Sizes) -> int:
    return sizes.batch_bytes if sizes.sends_data else sizes.batch_pages * PFN_BYTES


def _halve_largest_buffer(sizes: Sizes, share: int) -> Sizes | None:
    """Halve the buffer that is furthest above both `share` and its own least size."""
    held = {name: int(getattr(sizes, name)) for name in _least(sizes)}
    spare = {name: held[name] - max(least, share) for name, least in _least(sizes).items()}
    name = max(spare, key=lambda each: spare[each])
    if spare[name] <= 0:
        return None
    return replace(sizes, **{name: max(held[name] // 2, held[name] - spare[name])})


def _halve_ahead(sizes: Sizes, least: int) -> Sizes | None:
    """Halve what is read ahead over a slow line, which is time rather than a need."""
    return None if sizes.ahead <= least else replace(sizes, ahead=max(sizes.ahead // 2, least))


def _halve_target(sizes: Sizes, share: int) -> Sizes | None:
    """Halve the target buffer that is furthest above both `share` and what its upload needs."""
    smaller = [each.halved(share // each.n_targets) for each in sizes.targets]
    gains = [old.total - new.total for old, new in zip(sizes.targets, smaller, strict=True)]
    best = max(range(len(gains)), key=lambda index: gains[index], default=None)
    if best is None or gains[best] <= 0:
        return None
    targets = (*sizes.targets[:best], smaller[best], *sizes.targets[best + 1 :])
    return replace(sizes, targets=targets)


def _halve_batch(sizes: Sizes, least_bytes: int) -> Sizes | None:
    """Halve batches, and with them the channels that were sized by them."""
    n_pages = max(sizes.batch_pages // 2, pages_of(least_bytes, sizes.page_size))
    if n_pages >= sizes.batch_pages:
        return None
    least = _least(sizes)
    smaller = replace(sizes, batch_pages=n_pages)
    channels = {
        name: max(int(getattr(sizes, name)) // 2, _least(smaller)[name])
        for name in ("reader_channel", "compressor_channel", "writer_channel", "sink_channel")
        if getattr(sizes, name) <= 2 * least[name]
    }
    return replace(smaller, **channels)


def _drop_worker(sizes: Sizes, least: int) -> Sizes | None:
    return None if sizes.workers <= least else replace(sizes, workers=sizes.workers - 1)


def _drop_filter_worker(sizes: Sizes) -> Sizes | None:
    if sizes.filter_workers <= 1:
        return None
    return replace(sizes, filter_workers=sizes.filter_workers - 1)
