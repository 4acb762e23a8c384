"""libkdumpfile, taken from drgn's wheel: reads pages of any dump format by physical address."""

from __future__ import annotations

import ctypes
from enum import IntEnum
from functools import cache
from typing import TYPE_CHECKING, Self

from tests.lab.commands import LabError
from tests.lab.tools import ensure_drgn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from types import TracebackType

PAGE_SIZE = 4096
_NUMBER = 2  # kdump_attr_type_t
_MACHINE_PHYSICAL = 1  # kdump_addrspace_t


class Status(IntEnum):
    """kdump_status; only what reading a page can give."""

    OK = 0
    SYSTEM_ERROR = 1
    NOT_IMPLEMENTED = 2
    NO_DATA = 3  # the page was left out, or never existed
    CORRUPT = 4
    INVALID = 5
    NO_KEY = 6
    END_OF_FILE = 7
    BUSY = 8
    ADDRXLAT = 9


class _Value(ctypes.Union):
    _fields_ = (("number", ctypes.c_uint64), ("pointer", ctypes.c_void_p))


class _Attribute(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("value", _Value))


@cache
def _library() -> ctypes.CDLL:
    files = sorted((ensure_drgn() / "drgn.libs").glob("libkdumpfile-*.so*"))
    if not files:
        raise LabError(f"{ensure_drgn()}: drgn without libkdumpfile")
    library = ctypes.CDLL(str(files[0]))
    library.kdump_new.restype = ctypes.c_void_p
    library.kdump_free.argtypes = [ctypes.c_void_p]
    library.kdump_get_err.argtypes = [ctypes.c_void_p]
    library.kdump_get_err.restype = ctypes.c_char_p
    library.kdump_set_attr.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    library.kdump_read.argtypes = [
        *(ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64),
        *(ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t)),
    ]
    return library


class KdumpFile:
    """A dump opened by libkdumpfile; use it as a context manager."""

    def __init__(self, path: Path) -> None:
        """Opens the dump.

        Raises:
            LabError: libkdumpfile does not accept it.
        """
        self._library = _library()
        self._file = path.open("rb")
        self._context = self._library.kdump_new()
        attribute = _Attribute(_NUMBER, _Value(number=self._file.fileno()))
        status = self._library.kdump_set_attr(self._context, b"file.fd", ctypes.byref(attribute))
        if status != Status.OK:
            message = self._message()
            self.close()
            raise LabError(f"libkdumpfile does not accept {path}: {message}")

    def __enter__(self) -> Self:
        """The opened dump."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes it."""
        self.close()

    def close(self) -> None:
        """Gives back the library's context and the file."""
        if self._context is not None:
            self._library.kdump_free(self._context)
            self._context = None
        self._file.close()

    def _message(self) -> str:
        text: bytes = self._library.kdump_get_err(self._context) or b""
        return text.decode(errors="replace")

    def read_page(self, pfn: int) -> bytes | Status:
        """A page's bytes, or why there are none (`Status.NO_DATA` for a page that was left out)."""
        buffer = ctypes.create_string_buffer(PAGE_SIZE)
        length = ctypes.c_size_t(PAGE_SIZE)
        status = self._library.kdump_read(
            self._context, _MACHINE_PHYSICAL, pfn * PAGE_SIZE, buffer, ctypes.byref(length)
        )
        return buffer.raw if status == Status.OK else Status(status)

    def read_pages(self, pfns: Iterable[int]) -> Iterator[bytes | Status]:
        """`read_page` of each pfn, in their order."""
        return map(self.read_page, pfns)
