"""The kernel log as a flow of its own: for the last resort, when nothing larger gets through."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.flow.channel import Outbox
from pipeline.flow.items import Chunk, ChunkKind, EndOfDump, Outline, Totals
from stages.inspect.dmesg import read_log
from stages.translator.kernel import Kernel


@dataclass(frozen=True, slots=True)
class LogSource:
    """Source[Chunk]: text, as `dumpstream dmesg` prints it, and no dump."""

    kernel: Kernel
    name: str = "log"

    async def run(self, outbox: Outbox[Outline | Chunk | EndOfDump]) -> None:
        text = b"".join([piece async for piece in read_log(self.kernel)])
        await outbox.send(Outline(0, len(text)))
        if text:
            await outbox.send(Chunk(ChunkKind.DATA, 0, text))
        await outbox.send(EndOfDump(Totals()))
