"""One read of several blocks, and how its pages get to those who asked for them."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from pipeline.flow.items import PageState
from pipeline.memory.addresses import BoolArray, ByteArray, PfnArray
from stages.reader.image import Image
from stages.reader.remote_link import SourceError


class BlockRead:
    """One read of several blocks; runs once, in any thread."""

    def __init__(
        self, image: Image, keys: Sequence[int], block_pages: int, *, hinted: bool
    ) -> None:
        self.keys = list(keys)
        self.hinted = hinted
        self.row_of = {key: row for row, key in enumerate(self.keys)}
        self.error: BaseException | None = None
        self.pages: ByteArray
        self.good: BoolArray
        self._image = image
        self._block_pages = block_pages
        self._done = threading.Event()

    def run(self) -> None:
        """Read; never raises, the error is for those who wait."""
        image, per_block = self._image, self._block_pages
        try:
            first: PfnArray = np.array(self.keys, dtype=np.uint64) * np.uint64(per_block)
            pages_of = np.arange(per_block, dtype=np.uint64)
            pfns: PfnArray = (first[:, None] + pages_of).reshape(-1)
            pages = np.empty((len(pfns), image.info.page_size), dtype=np.uint8)
            good = image.read_pages(pfns, pages) != PageState.MISSING
            pages[~good] = 0
            self.pages = pages.reshape(len(self.keys), per_block, -1)
            self.good = good.reshape(len(self.keys), per_block)
        except BaseException as error:
            self.error = error
        finally:
            self._done.set()

    @property
    def is_done(self) -> bool:
        return self._done.is_set()

    def wait(self) -> None:
        """Block until it is done."""
        self._done.wait()

    def give_up(self, why: SourceError) -> None:
        """End a read that will not run: those who wait for it get `why`."""
        self.error = why
        self._done.set()


class Rest:
    """The part of an answer that was not kept."""

    def __init__(
        self,
        rest: np.ndarray,
        blocks: PfnArray,
        inside: np.ndarray,
        rows: ByteArray,
        good: BoolArray,
    ) -> None:
        self._rest = rest
        self._blocks = blocks
        self._inside = inside
        self._rows = rows
        self._good = good

    def fill_from(self, read: BlockRead) -> None:
        """Copy what `read` brought."""
        at = np.array(
            [read.row_of.get(key, -1) for key in self._blocks[self._rest].tolist()], dtype=np.intp
        )
        mine = self._rest[at >= 0]
        at = at[at >= 0]
        self._rows[mine] = read.pages[at, self._inside[mine]]
        self._good[mine] = read.good[at, self._inside[mine]]
