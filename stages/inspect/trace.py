"""``dumpstream trace``: record what a run asks of the page cache, and try other caches on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from pipeline.errors import DumpError
from pipeline.memory.sizes import show_size
from stages.cache.pages import CacheOptions, make_cache
from stages.cache.policy import POLICIES
from stages.cache.trace import TraceReader, TraceWriter
from stages.filter.levels import MAX_LEVEL
from stages.filter.stage import filter_image
from stages.reader.image import Image
from stages.translator.kernel import open_kernel

_CACHE_BYTES: Final = 8 << 20
_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a cache would have done on a trace.

    Attributes:
        policy: name of it.
        capacity_bytes: of the cache.
        pages: asked for.
        hits: of them found.
        requests: to the source; neighbours that miss together are one.
        wait_s: for the source, one request after the other.
    """

    policy: str
    capacity_bytes: int
    pages: int
    hits: int
    requests: int
    wait_s: float

    @property
    def hit_ratio(self) -> float:
        return self.hits / max(self.pages, 1)


async def record(image: Image, out: str) -> int:
    """Find the kernel and filter `image`, and write what that asks of the cache to `out`.

    Returns:
        Number of requests.

    Raises:
        DumpError: no kernel in the image, or it makes no sense.
        FileExistsError: `out` is there already.
    """
    cache = make_cache(image, CacheOptions(_CACHE_BYTES))
    with _create(out) as file:
        trace = cache.trace = TraceWriter(file, image.info.page_size)
        try:
            kernel = await open_kernel(image, cache)
            await filter_image(image, kernel, MAX_LEVEL)
        finally:
            cache.close()
    return trace.n_requests


def _create(path: str) -> BinaryIO:
    return Path(path).open("xb")


def replay(
    path: str,
    *,
    policies: Sequence[str],
    capacities: Sequence[int],
    latency_ms: float,
    block_pages: int,
) -> Iterator[Replayed]:
    """Each policy with each capacity (bytes) on the trace at `path`.

    Raises:
        DumpError: no trace, or a broken one.
    """
    try:
        trace = TraceReader(path)
    except OSError as error:
        raise DumpError(f"{path}: {error.strerror or error}") from error
    for capacity in capacities:
        for policy in policies:
            yield _replay_one(trace, policy, capacity, latency_ms / 1e3, block_pages)


def _replay_one(
    trace: TraceReader, name: str, capacity_bytes: int, latency_s: float, block_pages: int
) -> Replayed:
    block_bytes = trace.page_size * block_pages
    policy = POLICIES[name](max(capacity_bytes // block_bytes, 1))
    kept: set[int] = set()
    pages = hits = requests = 0
    for request in trace:
        keys = (request.pfns // block_pages).tolist()
        pages += len(keys)
        wanted = sorted(set(keys))
        missing = [key for key in wanted if key not in kept]
        gone = set(missing)
        hits += sum(key not in gone for key in keys)
        requests += sum(key - 1 not in gone for key in missing)
        policy.touch([key for key in wanted if key in kept])
        for key in missing:
            victim = policy.admit(key, preferred=request.preferred)
            if victim is not None:
                kept.discard(victim)
            kept.add(key)
    return Replayed(name, capacity_bytes, pages, hits, requests, requests * latency_s)


def table(rows: Sequence[Replayed]) -> Iterator[str]:
    """`rows` for people."""
    yield "policy    capacity     pages  hit ratio  requests   waiting"
    for row in rows:
        yield (
            f"{row.policy:<8}{show_size(row.capacity_bytes):>10}{row.pages:>10}"
            f"{row.hit_ratio * 100:>10.2f}%{row.requests:>10}{row.wait_s:>8.2f} s"
        )
