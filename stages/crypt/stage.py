"""The stage between writer and sink that encrypts: chunks of a dump in, chunks of a file that only
its recipients can read out.

What leaves has the same form as what came: an outline, two cursors that only grow, a head last. So
every sink takes it, and retries, resumes and checks it as it would the dump itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import anyio.to_thread

from pipeline.errors import TornStreamError
from pipeline.flow.channel import Inbox, Outbox
from pipeline.flow.items import Chunk, ChunkKind, EndOfDump, HeadOrder, Outline
from stages.crypt.blocks import BlockAssembler, Run
from stages.crypt.payload import BLOCK, DumpKey, PayloadCipher, sealed_place

HEAD_ORDER: Final = HeadOrder.LAST
"""What the writer must be told, whatever the sink wants: a head that came twice would be sealed
with one nonce for two contents, which gives both away."""


_IN_THREAD_BLOCKS: Final = 8
"""512 KiB take 0.13 to 0.4 ms, without the interpreter's lock: from there on a hop pays."""


@dataclass(frozen=True, slots=True)
class EncryptStage:
    """Stage[Chunk, Chunk]."""

    key: DumpKey
    name: str = "encrypt"

    async def run(
        self,
        inbox: Inbox[Outline | Chunk | EndOfDump],
        outbox: Outbox[Outline | Chunk | EndOfDump],
    ) -> None:
        prefix = self.key.prefix()
        sealer = _Sealer(self.key.cipher(), prefix)
        blocks: BlockAssembler | None = None
        async for item in inbox:
            if isinstance(item, Outline):
                blocks = BlockAssembler(item.data_start)
                await outbox.send(sealer.outline(item, blocks.data_block))
                continue
            if blocks is None:
                raise TornStreamError(f"{self.name}: the dump had no outline")
            runs = blocks.add(item) if isinstance(item, Chunk) else blocks.finish()
            for run in runs:
                for chunk in await _seal(sealer, run):
                    await outbox.send(chunk)
            if isinstance(item, EndOfDump):
                await outbox.send(sealer.head())
                await outbox.send(item)
                return
            if item.release is not None:
                item.release()
        raise TornStreamError(f"{self.name}: the writer stopped before its end")


async def _seal(sealer: _Sealer, run: Run) -> list[Chunk]:
    if len(run.blocks) < _IN_THREAD_BLOCKS:
        return sealer.seal(run)
    return await anyio.to_thread.run_sync(sealer.seal, run)


class _Sealer:
    """Runs of blocks to chunks of the encrypted file."""

    def __init__(self, cipher: PayloadCipher, prefix: bytes) -> None:
        self._cipher = cipher
        self._start = len(prefix)
        self._head = [prefix]

    def outline(self, plain: Outline, data_block: int) -> Outline:
        n_blocks = max(-(-plain.most_bytes // BLOCK), 1)
        return Outline(
            data_start=sealed_place(self._start, data_block),
            most_bytes=sealed_place(self._start, n_blocks),
        )

    def seal(self, run: Run) -> list[Chunk]:
        """The chunk that `run` makes; none for a part of the head, which is gathered."""
        last = run.first + len(run.blocks) - 1 if run.ends else -1
        sealed = b"".join(
            self._cipher.seal(index, block, is_last=index == last)
            for index, block in enumerate(run.blocks, run.first)
        )
        if run.kind is ChunkKind.HEAD:
            self._head.append(sealed)
            return []
        return [Chunk(run.kind, sealed_place(self._start, run.first), sealed)]

    def head(self) -> Chunk:
        return Chunk(ChunkKind.HEAD, 0, b"".join(self._head))
