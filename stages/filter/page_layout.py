"""Where `struct page` keeps what the filter looks at, and which of its values mean what.

References:
    include/linux/mm_types.h, include/linux/page-flags.h, kernel/vmcore_info.c

Everything comes from VMCOREINFO and from the presence of its keys, the newest form first. Releases
are never compared: distributions move features between them.

Compound pages, by the newest key that is there (page1 is the head's second struct page)::

    key                            order                    hugetlb                   since
    PAGE_HUGETLB_MAPCOUNT_VALUE    page1.flags & 0xff       head's page type          v6.9
    PG_hugetlb                     page1.flags & 0xff       bit of page1.flags        v6.6
    folio._folio_order             that byte of page1       folio._folio_dtor         v6.3
    page.compound_order            that byte of page1       page.compound_dtor        v4.16
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from pipeline.errors import FormatError, MissingInfoError
from stages.filter.levels import DumpLevel
from stages.formats.vmcoreinfo import VmcoreInfo

_MIN_SIZE: Final = 32
_MAX_SIZE: Final = 256
_MAX_ORDERS: Final = 32
"""Kernels have 11 to 14 orders; ia64 had 17."""
_U32: Final = 0xFFFFFFFF


class FlagMasks(Struct, frozen=True):
    """Masks of `page.flags`; 0 where VMCOREINFO does not name the bit."""

    lru: int = 0
    private: int = 0
    swapcache: int = 0
    """PG_swapcache, together with PG_swapbacked where that is known: since v4.10 the first shares
    its bit with PG_owner_priv_1 and means something only together with the second."""
    head: int = 0
    hwpoison: int = 0
    slab: int = 0

    @property
    def all(self) -> int:
        return self.lru | self.private | self.swapcache | self.head | self.hwpoison | self.slab


class PageTypes(Struct, frozen=True):
    """Values of `page._mapcount` (as uint32) that are page types; None where not known."""

    buddy: int | None = None
    slab: int | None = None
    hugetlb: int | None = None
    offline: int | None = None
    """Compared exactly, as makedumpfile does: since v6.12 only the top byte is the type, and an
    offline page with something in the other 24 bits is kept."""
    unaccepted: int | None = None


class CompoundRule(Struct, frozen=True):
    """How a head tells its order and whether it is hugetlb; offsets are those inside page1."""

    order_off: int | None = None
    """Byte that holds the order."""
    hugetlb_flag: int = 0
    """Mask of page1.flags."""
    dtor_off: int | None = None
    dtor_value: int = 0


class PageLayout(Struct, frozen=True):
    """One kernel's `struct page`; every offset is checked to lie inside `size` bytes.

    Attributes:
        size: bytes a struct page.
        word: bytes of an unsigned long.
        byte_order: ``<`` or ``>``.
        compound_off: word whose bit 0 marks a tail: compound_head, compound_info since v7.1.
        n_orders: orders of the buddy allocator, LENGTH(zone.free_area).
        unknown: for people: classes that cannot be told apart, and why. Their pages are kept.
    """

    size: int
    word: int
    byte_order: str
    flags_off: int
    mapping_off: int
    compound_off: int | None
    mapcount_off: int | None
    private_off: int | None
    masks: FlagMasks
    types: PageTypes
    compound: CompoundRule
    n_orders: int | None
    unknown: tuple[str, ...]

    @classmethod
    def from_vmcoreinfo(cls, info: VmcoreInfo, *, byte_order: str = "<") -> PageLayout:
        """Build and check.

        Raises:
            MissingInfoError: SIZE(page), OFFSET(page.flags) or OFFSET(page.mapping) is absent.
            FormatError: a size, an offset or a bit number that no kernel can have.
        """
        return _Builder(info, byte_order).build()

    @property
    def knows_buddy(self) -> bool:
        return self.types.buddy is not None

    @property
    def knows_slab(self) -> bool:
        """Without it a slab page, whose mapping word is anything, looks like an anonymous one."""
        return self.types.slab is not None or bool(self.masks.slab)

    def is_needed(self, level: int) -> bool:
        """True when struct pages must be looked at; hwpoison alone makes it so at any level."""
        wanted = DumpLevel.CACHE | DumpLevel.CACHE_PRIVATE | DumpLevel.USER
        free = bool(level & DumpLevel.FREE) and self.knows_buddy
        return bool(level & wanted) or bool(self.masks.hwpoison) or free

    @property
    def max_block_pages(self) -> int:
        """Pages of the buddy allocator's largest block, 0 when not known."""
        return 1 << (self.n_orders - 1) if self.n_orders else 0


class _Builder:
    """Reads the keys one group at a time and collects what is not known."""

    def __init__(self, info: VmcoreInfo, byte_order: str) -> None:
        self._info = info
        self._byte_order = byte_order
        self._unknown: list[str] = []
        self._word = self._word_size()
        self._size = info.need_size("page", "struct pages")
        if not _MIN_SIZE <= self._size <= _MAX_SIZE or self._size % 4:
            wanted = f"a multiple of 4 from {_MIN_SIZE} to {_MAX_SIZE}"
            raise FormatError("vmcoreinfo", None, "SIZE(page)", self._size, wanted)

    def build(self) -> PageLayout:
        flags_off = self._need("page.flags", self._word)
        mapping_off = self._need("page.mapping", self._word)
        compound_off = self._compound_word()
        mapcount_off = self._offset("page._mapcount", 4)
        private_off = self._offset("page.private", self._word)
        n_orders = self._n_orders()
        types = self._types(mapcount_off, private_off, n_orders)
        return PageLayout(
            size=self._size,
            word=self._word,
            byte_order=self._byte_order,
            flags_off=flags_off,
            mapping_off=mapping_off,
            compound_off=compound_off,
            mapcount_off=mapcount_off,
            private_off=private_off,
            masks=self._masks(types),
            types=types,
            compound=self._compound(types, flags_off),
            n_orders=n_orders,
            unknown=tuple(self._unknown),
        )

    def _word_size(self) -> int:
        """Bytes of a long: a list_head is two pointers."""
        size = self._info.size("list_head")
        if size not in (None, 8, 16):
            raise FormatError("vmcoreinfo", None, "SIZE(list_head)", size, "8 or 16")
        return 8 if size is None else size // 2

    def _checked(self, name: str, offset: int, n_bytes: int) -> int:
        if not 0 <= offset <= self._size - n_bytes:
            wanted = f"0 to {self._size - n_bytes}, inside struct page"
            raise FormatError("vmcoreinfo", None, f"OFFSET({name})", offset, wanted)
        return offset

    def _offset(self, name: str, n_bytes: int) -> int | None:
        offset = self._info.offset(name)
        return None if offset is None else self._checked(name, offset, n_bytes)

    def _need(self, name: str, n_bytes: int) -> int:
        offset = self._offset(name, n_bytes)
        if offset is None:
            raise MissingInfoError(f"VMCOREINFO OFFSET({name})", "struct pages")
        return offset

    def _compound_word(self) -> int | None:
        # Renamed in v7.1; bit 0 still marks tails, the rest may be a mask and is not looked at.
        for name in ("page.compound_info", "page.compound_head"):
            offset = self._offset(name, self._word)
            if offset is not None:
                return offset
        self._unknown.append("cache, user: OFFSET(page.compound_info) is missing")
        return None

    def _n_orders(self) -> int | None:
        length = self._info.length("zone.free_area")
        if length is not None and not 1 <= length <= _MAX_ORDERS:
            wanted = f"1 to {_MAX_ORDERS}"
            raise FormatError("vmcoreinfo", None, "LENGTH(zone.free_area)", length, wanted)
        return length

    def _bit(self, name: str) -> int:
        """Mask of flag `name`, 0 when not known."""
        number = self._info.number(name)
        if number is None:
            return 0
        if not 0 <= number < self._word * 8:
            wanted = f"a bit number below {self._word * 8}"
            raise FormatError("vmcoreinfo", None, f"NUMBER({name})", number, wanted)
        return 1 << number

    def _head_mask(self) -> int:
        mask = self._info.number("PG_head_mask")
        if mask is None:
            self._unknown.append("tails of compound pages: NUMBER(PG_head_mask) is missing")
            return 0
        if not 0 < mask < 1 << (self._word * 8):
            raise FormatError("vmcoreinfo", None, "NUMBER(PG_head_mask)", mask, "one bit of a word")
        return mask

    def _masks(self, types: PageTypes) -> FlagMasks:
        lru, private = self._bit("PG_lru"), self._bit("PG_private")
        if not lru or not private:
            self._unknown.append("cache: NUMBER(PG_lru) or NUMBER(PG_private) is missing")
        slab = self._bit("PG_slab")
        if not slab and types.slab is None:
            # v6.10 and later export no PG_slab, and its old number means PG_waiters there: no
            # default. Without either key a slab page cannot be told from an anonymous one.
            self._unknown.append("user: NUMBER(PAGE_SLAB_MAPCOUNT_VALUE) and PG_slab are missing")
        swapcache = self._bit("PG_swapcache")
        return FlagMasks(
            lru=lru if private else 0,
            private=private,
            swapcache=swapcache | self._bit("PG_swapbacked") if swapcache and private else 0,
            head=self._head_mask(),
            hwpoison=self._bit("PG_hwpoison"),
            slab=slab,
        )

    def _type(self, name: str) -> int | None:
        number = self._info.number(f"PAGE_{name}_MAPCOUNT_VALUE")
        # -1 is what pages without a type have, and any page that is not mapped.
        return None if number is None or number & _U32 == _U32 else number & _U32

    def _types(
        self, mapcount_off: int | None, private_off: int | None, n_orders: int | None
    ) -> PageTypes:
        if mapcount_off is None:
            self._unknown.append("free, offline: OFFSET(page._mapcount) is missing")
            return PageTypes()
        buddy = self._type("BUDDY")
        if buddy is None or private_off is None or n_orders is None:
            self._unknown.append(
                "free: PAGE_BUDDY_MAPCOUNT_VALUE, page.private or LENGTH(zone.free_area) is missing"
            )
            buddy = None
        return PageTypes(
            buddy=buddy,
            slab=self._type("SLAB"),
            hugetlb=self._type("HUGETLB"),
            offline=self._type("OFFLINE"),
            unaccepted=None if n_orders is None else self._type("UNACCEPTED"),
        )

    def _compound(self, types: PageTypes, flags_off: int) -> CompoundRule:
        low_byte = flags_off if self._byte_order == "<" else flags_off + self._word - 1
        if types.hugetlb is not None:
            return CompoundRule(order_off=low_byte)
        hugetlb_flag = self._bit("PG_hugetlb")
        if hugetlb_flag:
            return CompoundRule(order_off=low_byte, hugetlb_flag=hugetlb_flag)
        order_off, dtor_off = self._page1("order"), self._page1("dtor")
        dtor_value = self._info.number("HUGETLB_PAGE_DTOR")
        if order_off is None:
            self._unknown.append("tails of compound pages: where their order is kept is missing")
        if dtor_off is None or dtor_value is None or not 0 <= dtor_value <= 0xFF:
            self._unknown.append("hugetlb: how to tell it is missing")
            return CompoundRule(order_off=order_off)
        return CompoundRule(order_off=order_off, dtor_off=dtor_off, dtor_value=dtor_value)

    def _page1(self, what: str) -> int | None:
        """Offset inside page1 of the byte for ``order`` or ``dtor``."""
        folio = self._info.offset(f"folio._folio_{what}")  # v6.3 to v6.5, counted from the head
        if folio is not None:
            return self._checked(f"folio._folio_{what}", folio - self._size, 1)
        return self._offset(f"page.compound_{what}", 1)
