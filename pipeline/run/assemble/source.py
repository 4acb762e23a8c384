"""Opens the memory image of a run, and the cache that single pages of it are read through."""

from __future__ import annotations

import os
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from pipeline.errors import DumpError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.config.request import DumpRequest
    from pipeline.config.resolved import ImageFacts, Resolved
    from pipeline.config.settings import Settings
    from stages.cache.blocks import BlockCache
    from stages.cache.pages import PageCache
    from stages.reader.image import Image


def open_source(path: str, settings: Settings | None = None) -> Image:
    """The memory image at `path` or URL, by the first format that recognises it.

    Without `settings` a URL takes those of profile and environment.
    """
    if "://" in path and settings is None:
        from pipeline.config.layers import load_settings

        settings = load_settings(environ=os.environ).settings
    if settings is not None and ("://" in path or settings.source.latency.is_on):
        from stages.reader.remote_image import open_slow

        return open_slow(path, settings)
    from stages.reader.probe import open_image

    return open_image(path)


@contextmanager
def opened_source(path: str, settings: Settings | None = None) -> Iterator[Image]:
    """`open_source`, closed again; what fails on an image that is cut says so."""
    with closing(open_source(path, settings)) as image:
        try:
            yield image
        except DumpError as error:
            if image.info.incomplete:
                error.add_note(f"the image is incomplete: {image.info.incomplete}")
            raise


def image_facts(image: Image, request: DumpRequest, settings: Settings) -> ImageFacts:
    """What the resolver of `auto` has to know of source and targets."""
    from pipeline.config.resolved import ImageFacts

    return ImageFacts(
        page_size=image.info.page_size,
        fork_safe=image.fork_safe,
        n_pages=image.saved.n_pages,
        max_mapnr=image.max_mapnr,
        is_stream=request.is_stream,
        in_flight=_in_flight(image),
        schemes=tuple(_scheme(target) for target in request.targets),
        next_schemes=tuple(_scheme(each.url) for each in settings.targets if each.what == "dump"),
        encrypts=bool(request.encrypt_to),
    )


def _scheme(target: str) -> str:
    scheme, found, _ = target.partition("://")
    return scheme.lower() if found else ""


def _in_flight(image: Image) -> int:
    link = getattr(image, "link", None)
    return 0 if link is None else int(link.max_in_flight)


def make_cache(image: Image, resolved: Resolved) -> PageCache | BlockCache:
    """The cache that every single-page read goes through; disabled, it still holds one page."""
    from stages.cache.pages import CacheOptions, make_cache

    cache, page_size = resolved.cache, image.info.page_size
    options = CacheOptions(
        capacity_bytes=cache.capacity if cache.enabled else page_size,
        block_bytes=cache.block if cache.enabled else page_size,
        prefetch=cache.prefetch and cache.enabled,
        depth=cache.depth,
        window_bytes=cache.window,
    )
    return make_cache(image, options)


def make_plain_cache(image: Image, capacity_bytes: int) -> PageCache | BlockCache:
    """A cache with usual settings, for whatever reads single pages and is no dump."""
    from stages.cache.pages import CacheOptions, make_cache

    return make_cache(image, CacheOptions(capacity_bytes))
