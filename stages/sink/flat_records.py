"""A dump's chunks as the bytes of a flattened stream, for sinks that only append."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

from pipeline.errors import TornStreamError
from pipeline.flow.channel import Inbox
from pipeline.flow.items import Chunk, EndOfDump, Outline, Totals
from stages.formats.flattened import HEADER, record_header


class FlatRecords:
    """Makes the stream up to, and without, its end record: that one is the sink's to send.

    Attributes:
        totals: the books of the run, once the stream has ended.
        end: size of the dump that the records make up.
    """

    def __init__(
        self,
        inbox: Inbox[Outline | Chunk | EndOfDump],
        target: str,
        see: Callable[[Outline | Chunk], None] | None = None,
    ) -> None:
        """`target` is for messages; `see` is shown every item before it is sent."""
        self._inbox = inbox
        self._target = target
        self._see = see
        self.totals = Totals()
        self.end = 0

    async def views(self) -> AsyncGenerator[list[memoryview], None]:
        """The stream, a few views at a time; they are good until the next ones are asked for.

        Raises:
            TornStreamError: the chunks stopped before the end of the dump.
        """
        async for item in self._inbox:
            if isinstance(item, EndOfDump):
                self.totals = item.totals
                return
            if self._see is not None:
                self._see(item)
            if isinstance(item, Outline):
                yield [memoryview(HEADER)]
                continue
            if item.n_bytes:
                head = record_header(item.offset, item.n_bytes)
                yield [memoryview(head), memoryview(item.data)]
                self.end = max(self.end, item.offset + item.n_bytes)
            if item.release is not None:
                item.release()
        raise TornStreamError(f"{self._target}: the writer stopped before its end")
