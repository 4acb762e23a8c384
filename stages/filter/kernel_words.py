"""Arrays of longs and pointers out of kernel memory, in the kernel's own width and byte order."""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from pipeline.memory.addresses import AddrArray
from stages.translator.kernel import Kernel


class KernelWords(Struct, frozen=True):
    """Attributes:
    byte_order: ``<`` or ``>``.
    word: bytes of a long, 4 or 8.
    """

    kernel: Kernel
    byte_order: str
    word: int

    async def read(self, vaddr: int, n_words: int) -> AddrArray:
        """uint64[n_words] from `vaddr` on.

        Raises:
            TranslationError, MissingPageError: not all of it can be read.
        """
        raw = await self.kernel.read(vaddr & (1 << 64) - 1, n_words * self.word)
        return np.frombuffer(raw, dtype=f"{self.byte_order}u{self.word}").astype(np.uint64)
