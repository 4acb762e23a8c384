"""C structures whose size and member offsets VMCOREINFO tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import FormatError
from pipeline.memory.addresses import ByteArray
from stages.formats.vmcoreinfo import VmcoreInfo

_MAX_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class CStruct:
    """A structure by its kernel name. Its members are checked to lie inside it."""

    info: VmcoreInfo
    name: str
    n_bytes: int
    needed_for: str

    @classmethod
    def named(cls, info: VmcoreInfo, name: str, needed_for: str) -> CStruct:
        """The structure called `name`.

        Raises:
            MissingInfoError: VMCOREINFO has no size for it.
            FormatError: the size makes no sense.
        """
        n_bytes = info.need_size(name, needed_for)
        if not 0 < n_bytes <= _MAX_BYTES:
            raise FormatError("vmcoreinfo", None, f"SIZE({name})", n_bytes, f"1 to {_MAX_BYTES}")
        return cls(info, name, n_bytes, needed_for)

    def offset(self, member: str, n_bytes: int, *, of_part: str | None = None) -> int:
        """Where the `n_bytes` of `member` start; with `of_part`, of ``member.of_part`` inside it.

        Args:
            member: a member's name.
            n_bytes: how much will be read there.
            of_part: ``struct.member`` of the member's own type, such as ``atomic_long_t.counter``.

        Raises:
            MissingInfoError: VMCOREINFO does not tell.
            FormatError: it does not lie inside the structure.
        """
        key = f"{self.name}.{member}"
        at = self.info.need_offset(key, self.needed_for)
        if of_part is not None:
            at += self.info.need_offset(of_part, self.needed_for)
        if not 0 <= at <= self.n_bytes - n_bytes:
            wanted = f"{n_bytes} bytes inside the {self.n_bytes} of {self.name}"
            raise FormatError("vmcoreinfo", None, f"OFFSET({key})", at, wanted)
        return at


def column(rows: ByteArray, offset: int, dtype: str) -> NDArray[Any]:
    """dtype[n]: the number at `offset` of each of `rows`, uint8[n, struct size]."""
    width = np.dtype(dtype).itemsize
    return np.ascontiguousarray(rows[:, offset : offset + width]).view(dtype)[:, 0]
