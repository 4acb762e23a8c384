"""Memory images for other programs: physical and virtual reads, and page translation.

    from pipeline.api import open_image

    with open_image("s3://dumps/host7/vmcore") as dump:
        banner = dump.read_virtual(dump.symbols["linux_banner"], 64)

`open_image` is for plain code and `open_image_async` for code that runs in an event loop (asyncio
or trio, through anyio). Both read what they are asked for and little around it: over a line they
go through the cache, with its prefetching, and a dump in an object store is not downloaded.
`docs/examples/remote_drgn.py` hands such a dump to drgn.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio.from_thread
import anyio.to_thread
import numpy as np

from pipeline.errors import FormatError, MissingInfoError, MissingPageError
from pipeline.run import assemble

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

    from pipeline.config.settings import Settings
    from stages.cache.blocks import BlockCache
    from stages.cache.pages import PageCache
    from stages.reader.image import Image, ImageInfo
    from stages.translator.kernel import Kernel

__all__ = ["AsyncDump", "Dump", "open_image", "open_image_async"]

T = TypeVar("T")

MAX_READ_BYTES: Final = 64 << 20
"""Of one call."""
_CHUNK_PAGES: Final = 1024
_CACHE_BYTES: Final = 32 << 20


class AsyncDump:
    """An open image; made by `open_image_async`. Calls may run side by side."""

    def __init__(self, image: Image, cache: PageCache | BlockCache, kernel: Kernel | None) -> None:
        self._image = image
        self._cache = cache
        self._kernel = kernel

    @property
    def info(self) -> ImageInfo:
        """What the image says about itself: format, machine, page size, VMCOREINFO."""
        return self._image.info

    @property
    def ram(self) -> list[tuple[int, int]]:
        """Physical memory that the image describes: (first byte, end), ascending."""
        size = self._image.info.page_size
        return [(extent.start * size, extent.stop * size) for extent in self._image.ram]

    @property
    def symbols(self) -> Mapping[str, int]:
        """Addresses of the symbols that VMCOREINFO names."""
        return {} if self._kernel is None else self._kernel.info.symbols()

    @property
    def source_bytes(self) -> int:
        """Bytes fetched from the source so far."""
        link = getattr(self._image, "link", None)
        return self._cache.stats.bytes_read if link is None else int(link.stats.bytes)

    async def read_physical(self, paddr: int, n_bytes: int) -> bytes:
        """`n_bytes` from physical address `paddr` on.

        Raises:
            FormatError: more than `MAX_READ_BYTES`, or not an address.
            MissingPageError: a page of it is not in the image.
        """
        if not 0 <= n_bytes <= MAX_READ_BYTES or not 0 <= paddr < 1 << 63:
            wanted = f"at most {MAX_READ_BYTES} bytes below 2**63"
            raise FormatError("physical memory", None, "read", (paddr, n_bytes), wanted)
        size = self._image.info.page_size
        first, skip = divmod(paddr, size)
        out = bytearray()
        stop = -(-(paddr + n_bytes) // size)
        for start in range(first, stop, _CHUNK_PAGES):
            pfns = np.arange(start, min(start + _CHUNK_PAGES, stop), dtype=np.uint64)
            pages, good = await self._cache.get_many(pfns)
            if not good.all():
                bad = int(pfns[np.argmin(good)])
                raise MissingPageError(bad, "not in the image", page_size=size)
            out += pages.reshape(-1).data
        return bytes(memoryview(out)[skip : skip + n_bytes])

    async def read_virtual(self, vaddr: int, n_bytes: int) -> bytes:
        """`n_bytes` from kernel address `vaddr` on.

        Raises:
            MissingInfoError: the image does not say where its kernel is.
            TranslationError: a page of it is not mapped.
            MissingPageError: a page of it is not in the image.
        """
        return await self._need_kernel().read(vaddr, n_bytes)

    async def translate(self, vaddrs: Sequence[int]) -> list[int | None]:
        """Physical addresses of kernel addresses, None for those that are not mapped.

        Raises:
            MissingInfoError: the image does not say where its kernel is.
        """
        wanted = np.array(vaddrs, dtype=np.uint64)
        paddrs, mapped = await self._need_kernel().translator.translate(wanted)
        return [
            paddr if good else None
            for paddr, good in zip(paddrs.tolist(), mapped.tolist(), strict=True)
        ]

    def _need_kernel(self) -> Kernel:
        if self._kernel is None:
            raise MissingInfoError("a VMCOREINFO note", "virtual addresses")
        return self._kernel


class Dump:
    """The same for code without an event loop; made by `open_image`. Calls block."""

    def __init__(self, dump: AsyncDump, portal: BlockingPortal) -> None:
        self._dump = dump
        self._portal = portal

    @property
    def info(self) -> ImageInfo:
        """What the image says about itself: format, machine, page size, VMCOREINFO."""
        return self._dump.info

    @property
    def ram(self) -> list[tuple[int, int]]:
        """Physical memory that the image describes: (first byte, end), ascending."""
        return self._dump.ram

    @property
    def symbols(self) -> Mapping[str, int]:
        """Addresses of the symbols that VMCOREINFO names."""
        return self._dump.symbols

    @property
    def source_bytes(self) -> int:
        """Bytes fetched from the source so far."""
        return self._dump.source_bytes

    def read_physical(self, paddr: int, n_bytes: int) -> bytes:
        """As `AsyncDump.read_physical`."""
        return self._call(self._dump.read_physical, paddr, n_bytes)

    def read_virtual(self, vaddr: int, n_bytes: int) -> bytes:
        """As `AsyncDump.read_virtual`."""
        return self._call(self._dump.read_virtual, vaddr, n_bytes)

    def translate(self, vaddrs: Sequence[int]) -> list[int | None]:
        """As `AsyncDump.translate`."""
        return self._call(self._dump.translate, vaddrs)

    def _call(self, what: Callable[..., Coroutine[Any, Any, T]], *arguments: object) -> T:
        result: T = self._portal.call(what, *arguments)
        return result


@asynccontextmanager
async def open_image_async(
    source: str, settings: Settings | None = None
) -> AsyncIterator[AsyncDump]:
    """Open the image at a path or URL (``http``, ``https``, ``s3``).

    Args:
        source: path or URL.
        settings: as `load_settings` gives them; None takes those of the environment for a URL.

    Raises:
        DumpError: it can't be opened, is no memory image, or is a broken one.
    """
    image = await anyio.to_thread.run_sync(assemble.open_source, source, settings)
    try:
        cache = assemble.make_plain_cache(image, _CACHE_BYTES)
        try:
            yield AsyncDump(image, cache, await assemble.find_kernel(image, cache, 0))
        finally:
            cache.close()
    finally:
        image.close()


@contextmanager
def open_image(source: str, settings: Settings | None = None) -> Iterator[Dump]:
    """`open_image_async` for code without an event loop; a thread of its own runs one."""
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(open_image_async(source, settings)) as dump,
    ):
        yield Dump(dump, portal)
