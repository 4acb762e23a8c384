"""The other end of pass 1: takes verdicts, keeps the result."""

from __future__ import annotations

from pipeline.errors import TornStreamError
from pipeline.flow.channel import Inbox
from pipeline.flow.items import HeadOrder, Receipt
from pipeline.obs.counters import RunCounters
from stages.filter.stage import EndOfFilter, FilterResult
from stages.filter.sweep import SectionVerdict


class FilterCollector:
    """Sink[SectionVerdict]; the bitmaps were built by the stage, progress is counted here."""

    name = "collector"
    head_order = HeadOrder.FIRST
    result: FilterResult

    def __init__(self, counters: RunCounters) -> None:
        self._counters = counters

    async def open(self) -> None:
        """Nothing to claim."""

    async def run(self, inbox: Inbox[SectionVerdict | EndOfFilter]) -> Receipt:
        async for item in inbox:
            if isinstance(item, EndOfFilter):
                self.result = item.result
                return Receipt("plan", 0)
            self._counters.pages_done += item.n_pages
        raise TornStreamError("collector: the filter stopped before its end")

    async def commit(self) -> None:
        """Nothing to name."""

    async def abort(self) -> str | None:
        """Nothing is left."""
        return None
