"""The kernel log as a flow of its own: for the last resort, when nothing larger gets through."""

from __future__ import annotations

from msgspec import Struct

from pipeline.errors import MissingInfoError
from pipeline.flow.channel import Outbox
from pipeline.flow.items import Chunk, ChunkKind, EndOfDump, Outline, Totals
from stages.inspect.dmesg import read_log
from stages.translator.kernel import Kernel


class LogSource(Struct, frozen=True):
    """Source[Chunk]: text, as `dumpstream dmesg` prints it, and no dump.

    It has no head: an outline whose data starts at 0 is what tells sinks so.
    """

    kernel: Kernel
    name: str = "log"

    async def run(self, outbox: Outbox[Outline | Chunk | EndOfDump]) -> None:
        text = b"".join([piece async for piece in read_log(self.kernel)])
        if not text:
            raise MissingInfoError("every record of the kernel log", "a target that takes the log")
        await outbox.send(Outline(0, len(text)))
        await outbox.send(Chunk(ChunkKind.DATA, 0, text))
        await outbox.send(EndOfDump(Totals()))
