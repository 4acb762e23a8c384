"""The sink for stores that take a dump in parts, in any order, several at once (S3, Azure).

Chunks are copied into part buffers and released; a part whose bytes are all there is sealed
(checksums, in a thread) and sent while others fill. Memory is bounded by the number of buffers:
without a free one the sink takes no chunk, which stops the stages before it.

A part that was sent by a former run (journal) must have the digest that it had then, and is not
sent again: the encoding of a dump is deterministic, so anything else means a changed source.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import anyio
import anyio.to_thread

from pipeline.errors import SinkError, TornStreamError
from pipeline.flow.channel import Inbox
from pipeline.flow.items import Chunk, EndOfDump, HeadOrder, Outline, Receipt, Totals
from pipeline.obs.log import log_event
from stages.sink.journal import Journal
from stages.sink.manifest import DumpFacts, Form, build_manifest
from stages.sink.part_buffers import PartBuffers
from stages.sink.part_filling import Filling
from stages.sink.part_store import PartStore, Seal, SentPart, UploadGoneError
from stages.sink.parts import Grid, Part, plan_grid
from stages.sink.retry import Failure, RetryPolicy, TransientError, retry
from stages.sink.throttle import start_jitter
from stages.sink.upload_journal import FormerUpload, note_part, note_upload, read_former

if TYPE_CHECKING:
    from pipeline.config.targets import NetSettings

T = TypeVar("T")

_ABORT_S: Final = 10.0
"""A store that does not answer must not hold up the next target, or the reboot."""


@dataclass(frozen=True, slots=True)
class PartsOptions:
    """Of one upload.

    Attributes:
        name: of the dump, for its manifest.
        part_bytes: asked for, None for the smallest that does.
        buffer_bytes: all part buffers together.
        overwrite: an object of the same name may be replaced.
        form: what the chunks make up.
    """

    name: str
    part_bytes: int | None
    buffer_bytes: int
    overwrite: bool
    form: Form = "kdump"


class PartsSink:
    """Sink[Chunk] over a `PartStore`."""

    name = "sink"
    head_order = HeadOrder.LAST

    def __init__(
        self, store: PartStore, options: PartsOptions, net: NetSettings, journal: Journal | None
    ) -> None:
        self._store = store
        self._options = options
        self._net = net
        self._policy = RetryPolicy.of(net)
        self._journal = journal
        self._former: FormerUpload | None = None
        self._upload_id: str | None = None
        self._sent: dict[int, SentPart] = {}
        self._refused: set[int] = set()
        self._facts = DumpFacts()
        self._totals = Totals()
        self.n_retries = 0

    def describe(self, facts: DumpFacts) -> None:
        """Take what the manifest says of the run; the last call before `commit` counts."""
        self._facts = facts

    async def open(self) -> None:
        await start_jitter(self._net.start_jitter_s)
        try:
            await self._try(partial(self._store.open, overwrite=self._options.overwrite))
            self._former = await self._find_former()
            if self._former is not None:
                self._upload_id = self._former.upload_id
            else:
                self._upload_id = await self._try(self._store.begin)
        except BaseException:
            await self.abort()
            raise

    async def _find_former(self) -> FormerUpload | None:
        """The journal's upload, if there is one and the store still has it."""
        former = None if self._journal is None else read_former(self._journal)
        if former is None:
            return None
        try:
            tags = await self._try(partial(self._store.resume, former.upload_id))
        except UploadGoneError:
            log_event("upload_expired", "warning", target=self._store.target)
            return None
        if tags is not None:
            former = former.still_stored(tags)
        log_event("upload_resumed", target=self._store.target, parts=len(former.parts))
        return former

    async def run(self, inbox: Inbox[Outline | Chunk | EndOfDump]) -> Receipt:
        async with anyio.create_task_group() as group:
            outline = await self._receive(inbox)
            if not isinstance(outline, Outline):
                raise TornStreamError(f"{self._store.target}: the dump has no outline")
            upload = self._plan(outline, group)
            while not isinstance(item := await self._receive(inbox), EndOfDump):
                if isinstance(item, Chunk):
                    await upload.take(item)
            started = time.perf_counter()
            self._totals = item.totals
            await upload.finish()
        return Receipt(self._store.target, upload.size, time.perf_counter() - started)

    async def _receive(
        self, inbox: Inbox[Outline | Chunk | EndOfDump]
    ) -> Outline | Chunk | EndOfDump:
        try:
            return await inbox.receive()
        except anyio.EndOfStream:
            problem = f"{self._store.target}: the writer stopped before its end"
            raise TornStreamError(problem) from None

    def _plan(self, outline: Outline, group: anyio.abc.TaskGroup) -> Filling:
        grid = plan_grid(outline, self._store.limits, self._options.part_bytes)
        if self._former is not None:
            self._former.require_grid(grid)
        elif self._journal is not None and self._upload_id is not None:
            note_upload(self._journal, self._upload_id, grid)
            log_event("upload_begun", target=self._store.target, journal=str(self._journal.path))
        n_sending = _concurrency(grid, self._options.buffer_bytes, self._net.concurrency)
        buffers = PartBuffers(grid.n_open + n_sending, grid.data_part)

        may_send = anyio.Semaphore(n_sending)  # serves in the order of asking: part 1 comes last

        async def send(part: Part, buffer: mmap.mmap) -> None:
            async with may_send:
                await self._send(part, memoryview(buffer)[: part.n_bytes])
            buffers.give_back(buffer)

        def dispatch(part: Part, buffer: mmap.mmap) -> None:
            group.start_soon(send, part, buffer, name=f"part:{part.number}")

        return Filling(grid, self._store.limits.most_parts, buffers, dispatch)

    async def _send(self, part: Part, data: memoryview) -> None:
        seal = await anyio.to_thread.run_sync(self._store.seal, data)
        sent = None if self._former is None else self._former.find(part, seal)
        if sent is None:
            tag = await self._try(partial(self._put, part, data, seal))
            sent = SentPart(part, seal, tag)
            if self._journal is not None:
                note_part(self._journal, sent)
        self._sent[part.number] = sent

    async def _put(self, part: Part, data: memoryview, seal: Seal) -> str:
        """Send a part; a refused one once more, since the request may have been damaged."""
        try:
            return await self._store.put_part(part, data, seal)
        except TransientError:
            raise
        except SinkError as error:
            if part.number in self._refused:
                raise
            self._refused.add(part.number)
            raise TransientError(str(error)) from error

    async def commit(self) -> None:
        parts = [self._sent[number] for number in sorted(self._sent)]
        manifest = build_manifest(
            name=self._options.name,
            form=self._options.form,
            pieces=[sent.piece for sent in parts],
            totals=self._totals,
            facts=self._facts,
            stored=self._store.marks(parts),
        )
        await self._try(partial(self._store.put_manifest, manifest.pack()))
        await self._try(partial(self._store.complete, parts))
        await self._try(partial(self._store.confirm, parts))
        self._upload_id = None
        if self._journal is not None:
            self._journal.remove()
        await self._store.close()

    async def abort(self) -> str | None:
        with anyio.move_on_after(_ABORT_S, shield=True):
            await self._give_up()
        with anyio.move_on_after(_ABORT_S, shield=True):
            await self._store.close()
        return None

    async def _give_up(self) -> None:
        """Keep the parts if a journal can resume them, else discard them."""
        if self._upload_id is None:
            if self._journal is not None:
                self._journal.keep()
            return
        keeps = self._journal is not None and bool(self._sent or self._former)
        if self._journal is not None and keeps:
            self._journal.keep()
            log_event("upload_kept", "warning", resume=f"dumpstream resume {self._journal.path}")
            return
        try:
            await self._store.abort()
        except Exception as error:
            log_event("upload_not_aborted", "warning", target=self._store.target, why=str(error))
        if self._journal is not None:
            self._journal.remove()

    async def _try(self, attempt: Callable[[], Awaitable[T]]) -> T:
        return await retry(attempt, self._policy, on_failure=self._note_failure)

    def _note_failure(self, failure: Failure) -> None:
        self.n_retries += 1
        log_event(
            "request_failed",
            "warning",
            why=str(failure.error),
            failures=failure.n_failures,
            retry_in_s=round(failure.delay_s, 2),
        )


def _concurrency(grid: Grid, buffer_bytes: int, wanted: int) -> int:
    """Parts under way at once: as many as the buffers hold beside the open ones, 1 at least."""
    n_low = grid.n_open - 1
    left = buffer_bytes - n_low * grid.low_part - grid.data_part
    return max(min(wanted, left // grid.data_part), 1)
