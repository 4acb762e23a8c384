"""A dump on a web server that takes whole files only: one PUT of the flattened stream.

What a lost connection had carried is gone at the other end too, so the run has to start over: the
error says so by its type.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Final

import anyio

from pipeline.errors import RestartableSinkError, SinkError
from pipeline.flow.channel import Inbox
from pipeline.flow.items import Chunk, ChunkKind, EndOfDump, HeadOrder, Outline, Receipt, Totals
from pipeline.obs.log import log_event
from stages.formats.flattened import END_RECORD
from stages.sink.digest import Piece, PieceDigests, piece_bytes_for
from stages.sink.flat_records import FlatRecords
from stages.sink.http_files import HttpFiles
from stages.sink.http_url import PARTIAL
from stages.sink.manifest import SUFFIX, DumpFacts, Form, build_manifest
from stages.sink.read_back import Extent, check_read_back
from stages.sink.retry import RetryPolicy, TransientError, retry

if TYPE_CHECKING:
    from pipeline.config.targets import NetSettings

_STEP: Final = 256 << 10
_ABORT_S: Final = 10.0
"""A server that does not answer must not hold up the next target, or the reboot."""


class HttpStreamSink:
    """Sink[Chunk] that sends one body of unknown length.

    It goes to ``NAME.partial`` where the server can rename. Elsewhere to ``NAME`` itself, where
    servers show it when it is whole; `abort` removes it.
    """

    name = "sink"
    head_order = HeadOrder.FIRST

    def __init__(
        self,
        files: HttpFiles,
        net: NetSettings,
        *,
        moves: bool,
        reads: bool,
        overwrite: bool,
        verify: Extent,
        holds: Form,
    ) -> None:
        self._holds: Form = holds
        self._files = files
        self._policy = RetryPolicy.of(net)
        self._suffix = PARTIAL if moves else ""
        self._reads = reads
        self._overwrite = overwrite
        self._verify: Extent = verify
        self._begun = False
        self._n_sent = 0
        self._digests = PieceDigests(0, piece_bytes_for(0))
        self._pieces: list[Piece] = []
        self._totals = Totals()
        self._facts = DumpFacts()

    def describe(self, facts: DumpFacts) -> None:
        """Take what the manifest says of the run; the last call before `commit` counts."""
        self._facts = facts

    async def open(self) -> None:
        """There is nothing to claim before the first byte."""

    async def run(self, inbox: Inbox[Outline | Chunk | EndOfDump]) -> Receipt:
        where = self._files.target.show(self._suffix)
        self._begun = True
        try:
            async with aclosing(self._body(inbox)) as body:
                await self._files.put_stream(self._suffix, body)
        except TransientError as error:
            raise RestartableSinkError(
                f"{error}; after {self._n_sent} bytes of one PUT, which cannot be resumed"
            ) from error
        started = time.perf_counter()
        self._pieces = self._digests.finish()
        if self._reads:
            await retry(self._check, self._policy)
        else:
            log_event(
                "dump_not_read_back", "warning", target=where, why="the server does not let us"
            )
        return Receipt(self._files.target.show(), self._n_sent, time.perf_counter() - started)

    async def _body(self, inbox: Inbox[Outline | Chunk | EndOfDump]) -> AsyncGenerator[bytes, None]:
        records = FlatRecords(inbox, self._files.target.show(), self._see)
        async with aclosing(records.views()) as stream:
            async for views in stream:
                for view in views:
                    for at in range(0, len(view), _STEP):
                        yield self._passing(view[at : at + _STEP])
        self._totals = records.totals
        yield self._passing(memoryview(END_RECORD))

    def _see(self, item: Outline | Chunk) -> None:
        if isinstance(item, Outline):
            self._digests = PieceDigests(0, piece_bytes_for(item.most_bytes))

    def _passing(self, view: memoryview) -> bytes:
        """A copy of `view` for the connection; digested and counted."""
        data = bytes(view)
        self._digests.add(Chunk(ChunkKind.DATA, self._n_sent, data))
        self._n_sent += len(data)
        return data

    async def _check(self) -> None:
        """See that what was stored is what was sent."""
        where = self._files.target.show(self._suffix)
        seen = await self._files.size(self._suffix)
        if seen != self._n_sent:
            raise SinkError(f"{where}: has {seen} bytes where {self._n_sent} were sent")

        async def read(offset: int, n_bytes: int) -> bytes:
            return await self._files.read(self._suffix, offset, n_bytes)

        await check_read_back(where, self._pieces, read, self._verify)

    async def commit(self) -> None:
        if self._suffix:
            await retry(self._move, self._policy)
        self._begun = False
        made = build_manifest(
            name=self._files.target.name,
            form="flattened",
            holds=self._holds,
            pieces=self._pieces,
            totals=self._totals,
            facts=self._facts,
        )
        try:
            await retry(lambda: self._files.put(SUFFIX, made.pack()), self._policy)
        except SinkError as error:  # the dump itself is whole and in place
            log_event("manifest_not_written", "warning", reason=str(error))
        await self._files.close()

    async def _move(self) -> None:
        is_moved = self._reads and await self._files.size(self._suffix) is None
        if not is_moved:  # by a try whose answer was lost
            await self._files.move(self._suffix, "", overwrite=self._overwrite)

    async def abort(self) -> str | None:
        with anyio.move_on_after(_ABORT_S, shield=True), suppress(Exception):
            if self._begun:
                await self._files.delete(self._suffix)
        with anyio.move_on_after(_ABORT_S, shield=True):
            await self._files.close()
        return None
