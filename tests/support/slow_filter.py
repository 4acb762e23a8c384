"""The filter's rules written down page by page, as the facts state them: slow, and easy to check.

The judge of the vectorised classifier. Nothing here is shared with it but the table of offsets.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from stages.filter.page_layout import PageLayout


@dataclass(slots=True)
class SlowVerdict:
    """`classes` has one name a page, None for pages that are kept."""

    classes: list[str | None]
    carry_stop: int = 0
    carry_class: str | None = None
    bad_orders: list[int] = field(default_factory=list)


class SlowFilter:
    def __init__(self, raw: bytes, first_pfn: int, layout: PageLayout, level: int) -> None:
        self.raw = raw
        self.first_pfn = first_pfn
        self.layout = layout
        self.level = level
        self.n_pages = len(raw) // layout.size

    def _read(self, index: int, offset: int, n_bytes: int) -> int:
        start = index * self.layout.size + offset
        order: Literal["little", "big"] = "little" if self.layout.byte_order == "<" else "big"
        return int.from_bytes(self.raw[start : start + n_bytes], order)

    def _word(self, index: int, offset: int) -> int:
        return self._read(index, offset, self.layout.word)

    def _flags(self, index: int) -> int:
        return self._word(index, self.layout.flags_off)

    def _has_type(self, index: int, value: int | None) -> bool:
        if value is None or self.layout.mapcount_off is None:
            return False
        return self._read(index, self.layout.mapcount_off, 4) == value

    def _is_slab(self, index: int) -> bool:
        by_flag = bool(self._flags(index) & self.layout.masks.slab)
        return by_flag or self._has_type(index, self.layout.types.slab)

    def _is_anon(self, index: int) -> bool:
        return bool(self._word(index, self.layout.mapping_off) & 1) and not self._is_slab(index)

    def _is_cache(self, index: int) -> bool:
        masks, flags = self.layout.masks, self._flags(index)
        if masks.lru and flags & masks.lru:
            return True
        return bool(masks.swapcache) and flags & masks.swapcache == masks.swapcache

    def _compound(self, index: int) -> tuple[int, bool]:
        """Order, and whether it is hugetlb; (0, False) for anything but a head."""
        rule, pfn = self.layout.compound, self.first_pfn + index
        is_head = bool(self._flags(index) & self.layout.masks.head)
        if not is_head or pfn % 512 == 511 or index + 1 >= self.n_pages:
            return 0, False
        order = 0 if rule.order_off is None else self._read(index + 1, rule.order_off, 1)
        if order > 30 or pfn % (1 << order):
            order = 0
        if self.layout.types.hugetlb is not None:
            return order, self._has_type(index, self.layout.types.hugetlb)
        if rule.hugetlb_flag:
            return order, bool(self._flags(index + 1) & rule.hugetlb_flag)
        if rule.dtor_off is not None:
            return order, self._read(index + 1, rule.dtor_off, 1) == rule.dtor_value
        return order, False

    def judge(self, index: int) -> tuple[str | None, int, bool]:
        """Class or None, pages that go with it, and whether a buddy order was refused."""
        layout, level = self.layout, self.level
        if layout.compound_off is not None and self._word(index, layout.compound_off) & 1:
            return None, 1, False
        if level & 16:
            if self._has_type(index, layout.types.buddy) and not self._is_slab(index):
                assert layout.private_off is not None
                assert layout.n_orders is not None
                order = self._word(index, layout.private_off)
                if order >= layout.n_orders:
                    return None, 1, True
                return "free", 1 << order, False
            if self._has_type(index, layout.types.unaccepted):
                assert layout.n_orders is not None
                return "free", 1 << (layout.n_orders - 1), False
        order, is_hugetlb = self._compound(index)
        return self._judge_used(index, is_hugetlb), 1 << order, False

    def _judge_used(self, index: int, is_hugetlb: bool) -> str | None:
        layout, level = self.layout, self.level
        has_private = bool(self._flags(index) & layout.masks.private)
        if layout.compound_off is not None:
            can_tell_cache = bool(layout.masks.lru and layout.masks.private)
            if can_tell_cache and self._is_cache(index) and not self._is_anon(index):
                if level & 2 and not has_private:
                    return "cache"
                if level & 4:
                    return "cache_private" if has_private else "cache"
            if level & 8 and (is_hugetlb or (layout.knows_slab and self._is_anon(index))):
                return "user"
        if self._flags(index) & layout.masks.hwpoison:
            return "hwpoison"
        if self._has_type(index, layout.types.offline):
            return "offline"
        return None

    def run(
        self, present: list[bool], carry_stop: int = 0, carry_class: str | None = None
    ) -> SlowVerdict:
        out = SlowVerdict([None] * self.n_pages, carry_stop, carry_class)
        index = 0
        while index < self.n_pages:
            pfn = self.first_pfn + index
            if pfn < out.carry_stop:
                out.classes[index] = out.carry_class if present[index] else None
                index += 1
                continue
            if not present[index]:
                index += 1
                continue
            name, n_run, bad = self.judge(index)
            if bad:
                out.bad_orders.append(pfn)
            if name is None:
                index += 1
                continue
            for at in range(index, min(index + n_run, self.n_pages)):
                out.classes[at] = name if present[at] else None
            if index + n_run > self.n_pages:
                out.carry_stop, out.carry_class = pfn + n_run, name
            index += n_run
        return out
