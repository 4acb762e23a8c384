"""VMCOREINFO: the text a kernel exports about its own layout.

References:
    kernel/vmcore_info.c (kernel/crash_core.c before v6.9),
    Documentation/admin-guide/kdump/vmcoreinfo.rst

One ``KEY=VALUE`` a line. The first line of a key wins, except KERNELOFFSET, where the last does::

    OSRELEASE=6.1.0-13-amd64            CRASHTIME=1690000000
    PAGESIZE=4096                       KERNELOFFSET=1c00000           hex, no 0x
    SYMBOL(init_top_pgt)=ffffffff...    hex, run-time address
    SIZE(page)=64                       OFFSET(page.flags)=0           LENGTH(mem_section)=2048
    NUMBER(phys_base)=-1234             decimal, may be negative; some are written as 0x...
"""

from __future__ import annotations

import re
from typing import Final

from pipeline.errors import FormatError, MissingInfoError

MAX_BYTES: Final = 1 << 20
"""Far above any kernel's text (one page, 4-64 KiB): larger notes are not VMCOREINFO."""
_KEY = re.compile(rb"^([A-Z][A-Z0-9_-]*)(?:\(([^)\n]{1,200})\))?=(.*)$")
_WORD: Final = (1 << 64) - 1


def _number(text: str) -> int | None:
    """Decimal, possibly negative; hex where that leaves junk behind (so ``0x...`` works)."""
    for base in (10, 16):
        try:
            return int(text, base)
        except ValueError:
            continue
    return None


class VmcoreInfo:
    """Parsed text. Getters give None for what is absent; `need_*` raise instead.

    Values are what the text says, checked for syntax only: callers check bounds before use.
    """

    def __init__(self, values: dict[tuple[str, str], str], text: bytes) -> None:
        self._values = values
        self.text = text

    @classmethod
    def parse(cls, text: bytes) -> VmcoreInfo:
        """Parse the note's descriptor; lines that do not look like VMCOREINFO are ignored.

        Raises:
            FormatError: larger than `MAX_BYTES`, or without OSRELEASE or a sane PAGESIZE.
        """
        if len(text) > MAX_BYTES:
            raise FormatError(
                "vmcoreinfo", None, "note size", len(text), f"{MAX_BYTES} bytes at most"
            )
        values: dict[tuple[str, str], str] = {}
        for line in text.rstrip(b"\0").split(b"\n"):
            found = _KEY.match(line)
            if found is None:
                continue
            kind, name, value = (part or b"" for part in found.groups())
            key = (kind.decode("ascii"), name.decode("ascii", "replace"))
            if key[0] == "KERNELOFFSET" or key not in values:
                values[key] = value.decode("ascii", "replace").strip()
        info = cls(values, text)
        if not info.osrelease:
            raise FormatError("vmcoreinfo", None, "OSRELEASE", "", "a kernel release")
        size = info._plain("PAGESIZE")
        if size is None or not 4096 <= size <= 65536 or size & (size - 1):
            seen = values.get(("PAGESIZE", ""), "") if size is None else size
            raise FormatError("vmcoreinfo", None, "PAGESIZE", seen, "a power of two, 4096 to 65536")
        return info

    def _plain(self, kind: str, name: str = "") -> int | None:
        text = self._values.get((kind, name))
        return None if text is None else _number(text)

    @property
    def osrelease(self) -> str:
        return self._values.get(("OSRELEASE", ""), "")[:64]

    @property
    def page_size(self) -> int:
        size = self._plain("PAGESIZE")
        assert size is not None  # checked by `parse`
        return size

    @property
    def crashtime(self) -> int | None:
        """Seconds since the epoch."""
        return self._plain("CRASHTIME")

    @property
    def build_id(self) -> str | None:
        return self._values.get(("BUILD-ID", ""))

    @property
    def kernel_offset(self) -> int:
        """KASLR offset; SYMBOL values have it added already."""
        return self.hexadecimal("KERNELOFFSET") or 0

    def hexadecimal(self, key: str) -> int | None:
        """A line such as ``KERNELOFFPHYS=1c00000``; None when absent or not hex."""
        try:
            return int(self._values[(key, "")], 16)
        except (KeyError, ValueError):
            return None

    def symbol(self, name: str) -> int | None:
        """Run-time address, or None when absent, 0, all ones, or not hex."""
        text = self._values.get(("SYMBOL", name))
        try:
            value = int(text, 16) if text else 0
        except ValueError:
            return None
        return value if 0 < value < _WORD else None

    def symbols(self) -> dict[str, int]:
        """Addresses of all symbols that have a sensible one."""
        names = [name for kind, name in self._values if kind == "SYMBOL"]
        return {name: at for name in names if (at := self.symbol(name)) is not None}

    def size(self, name: str) -> int | None:
        return self._plain("SIZE", name)

    def offset(self, name: str) -> int | None:
        """Byte offset of a member, such as ``page.flags``."""
        return self._plain("OFFSET", name)

    def length(self, name: str) -> int | None:
        return self._plain("LENGTH", name)

    def number(self, name: str) -> int | None:
        return self._plain("NUMBER", name)

    def flag(self, name: str) -> bool:
        """True for a line such as ``CONFIG_X86_PAE=y``."""
        return self._values.get((name, "")) == "y"

    def need_symbol(self, name: str, needed_for: str) -> int:
        return self._need(self.symbol(name), f"VMCOREINFO SYMBOL({name})", needed_for)

    def need_size(self, name: str, needed_for: str) -> int:
        return self._need(self.size(name), f"VMCOREINFO SIZE({name})", needed_for)

    def need_offset(self, name: str, needed_for: str) -> int:
        return self._need(self.offset(name), f"VMCOREINFO OFFSET({name})", needed_for)

    def need_number(self, name: str, needed_for: str) -> int:
        return self._need(self.number(name), f"VMCOREINFO NUMBER({name})", needed_for)

    @staticmethod
    def _need(value: int | None, what: str, needed_for: str) -> int:
        if value is None:
            raise MissingInfoError(what, needed_for)
        return value
