"""One dump to several targets at once: each at its own speed, one failing without the others.

Every target has a bounded channel. A chunk's memory goes back when all have taken it; a target that
lags behind gets copies, as far as its channel holds them, and then stops the flow. A target that
fails is undone, dropped and reported; only when none is left does the dump fail.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import anyio

from pipeline.errors import RestartableSinkError, SinkError, TornStreamError
from pipeline.flow.channel import Channel, Inbox
from pipeline.flow.items import Chunk, ChunkKind, EndOfDump, HeadOrder, Outline, Receipt
from pipeline.flow.protocols import Sink
from pipeline.obs.log import log_event

if TYPE_CHECKING:
    from stages.sink.manifest import DumpFacts

Item: TypeAlias = Outline | Chunk | EndOfDump


@dataclass(slots=True, eq=False)
class Branch:
    """One of the targets, and how it fared.

    Attributes:
        label: URL or path without secrets.
        error: why it was dropped, None while all is well.
        receipt: what it has, once everything arrived.
        left: a usable part of a dump that it left when it was dropped.
        committed: the dump has its final name there; nothing may be undone any more.
    """

    label: str
    sink: Sink[Item]
    channel: Channel[Item]
    error: Exception | None = None
    receipt: Receipt | None = None
    left: str | None = None
    committed: bool = False
    held: set[_Share] = field(default_factory=set)


class _Share:
    """A chunk's memory, given back when the last of its holders lets go."""

    def __init__(self, release: Callable[[], None] | None) -> None:
        self._release = release
        self._n_holders = 1

    def add_holder(self) -> None:
        self._n_holders += 1

    def let_go(self) -> None:
        self._n_holders -= 1
        if self._n_holders == 0 and self._release is not None:
            self._release()


class FanOutSink:
    """Sink[Chunk] over several; `branches` tell afterwards which of them has the dump."""

    name = "sink"

    def __init__(
        self,
        sinks: Sequence[tuple[str, Sink[Item]]],
        *,
        buffer_bytes: int,
        open_s: float = math.inf,
    ) -> None:
        """Feed `sinks`.

        Args:
            sinks: with their labels.
            buffer_bytes: how far each may lag behind.
            open_s: what takes longer to open is dropped, for the others wait for it.
        """
        if not sinks:
            raise ValueError("a fan-out needs a sink")
        self._open_s = open_s
        self.branches = [
            Branch(label, sink, Channel(f"target:{label}", buffer_bytes)) for label, sink in sinks
        ]

    @property
    def head_order(self) -> HeadOrder:
        """What all want, or the head at both ends when they differ; only after `open`."""
        orders = {branch.sink.head_order for branch in self._live()}
        return orders.pop() if len(orders) == 1 else HeadOrder.BOTH

    def _live(self) -> list[Branch]:
        return [branch for branch in self.branches if branch.error is None]

    def describe(self, facts: DumpFacts) -> None:
        """Pass on what manifests say of the run."""
        for branch in self._live():
            describe = getattr(branch.sink, "describe", None)
            if describe is not None:
                describe(facts)

    async def open(self) -> None:
        try:
            await self._each(self._open, undo=False)
        except BaseException:
            await self.abort()
            raise

    async def _open(self, branch: Branch) -> None:
        with anyio.move_on_after(self._open_s) as scope:
            await branch.sink.open()
        if scope.cancelled_caught:
            raise SinkError(f"{branch.label}: not open after {self._open_s:g} s")

    async def run(self, inbox: Inbox[Item]) -> Receipt:
        async with anyio.create_task_group() as group:
            for branch in self._live():
                group.start_soon(self._run_branch, branch, name=f"target:{branch.label}")
            await self._feed(inbox)
        self._require_one()
        return self.receipt()

    async def _run_branch(self, branch: Branch) -> None:
        try:
            async with branch.channel.receiver():
                branch.receipt = await branch.sink.run(branch.channel)
        except Exception as error:
            await self._drop(branch, error, undo=True)
        finally:
            for share in branch.held:
                share.let_go()
            branch.held.clear()

    async def _feed(self, inbox: Inbox[Item]) -> None:
        is_first = True
        async for item in inbox:
            self._require_one()
            if isinstance(item, Chunk):
                await self._pass_on(item, is_first=is_first)
                is_first = False
                continue
            for branch in self._live():
                await self._send(branch, item)
            if isinstance(item, EndOfDump):
                return
        raise TornStreamError("fan-out: the writer stopped before its end")

    async def _pass_on(self, chunk: Chunk, *, is_first: bool) -> None:
        share = _Share(chunk.release)
        early_head = is_first and chunk.kind is ChunkKind.HEAD
        try:
            for branch in self._live():
                if early_head and branch.sink.head_order is HeadOrder.LAST:
                    continue
                if branch.error is not None:
                    continue  # while another one was waited for: it will let go of nothing more
                await self._send(branch, _for_branch(branch, chunk, share))
        finally:
            share.let_go()

    async def _send(self, branch: Branch, item: Item) -> None:
        try:
            await branch.channel.send(item)
        except anyio.BrokenResourceError:
            if branch.receipt is not None:
                raise  # it ended before the dump did
            # It failed, and its own task says why.

    def receipt(self) -> Receipt:
        """What those have that did not fail, as far as is known by now."""
        receipts = [branch.receipt for branch in self._live() if branch.receipt is not None]
        return Receipt(
            ", ".join(receipt.target for receipt in receipts),
            max(receipt.n_bytes for receipt in receipts),
            max(receipt.seconds_syncing for receipt in receipts),
        )

    async def commit(self) -> None:
        await self._each(self._commit, undo=True)

    async def _commit(self, branch: Branch) -> None:
        await branch.sink.commit()
        branch.committed = True

    async def abort(self) -> str | None:
        """Undo everywhere but where the dump is whole; where something usable is, whole or not."""
        # Cleanup goes on in a run that was cancelled; sinks bound how long theirs takes.
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as group:
                for branch in self._live():
                    if not branch.committed:
                        group.start_soon(self._undo, branch)
        left = [branch.left for branch in self.branches if branch.left is not None]
        whole = [branch.receipt for branch in self._live() if branch.committed]
        left += [receipt.target for receipt in whole if receipt is not None]
        return ", ".join(sorted(left)) or None

    async def _undo(self, branch: Branch) -> None:
        branch.left = await branch.sink.abort()

    async def _each(self, step: Callable[[Branch], Awaitable[None]], *, undo: bool) -> None:
        """Do `step` for all at once, and drop those that fail."""

        async def guarded(branch: Branch) -> None:
            try:
                await step(branch)
            except Exception as error:
                await self._drop(branch, error, undo=undo)

        async with anyio.create_task_group() as group:
            for branch in self._live():
                group.start_soon(guarded, branch, name=f"target:{branch.label}")
        self._require_one()

    async def _drop(self, branch: Branch, error: Exception, *, undo: bool) -> None:
        cause: BaseException = error
        while isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        branch.error = cause if isinstance(cause, Exception) else error
        if undo:
            await self._undo(branch)
        log_event(
            "target_dropped",
            "error",
            target=branch.label,
            reason=str(branch.error),
            **({} if branch.left is None else {"left": branch.left}),
        )

    def _require_one(self) -> None:
        if self._live():
            return
        reasons = [f"{branch.label}: {branch.error}" for branch in self.branches]
        errors = [branch.error for branch in self.branches]
        again = any(isinstance(error, RestartableSinkError) for error in errors)
        kind = RestartableSinkError if again else SinkError
        raise kind(f"every target failed: {'; '.join(reasons)}") from errors[0]


def _for_branch(branch: Branch, chunk: Chunk, share: _Share) -> Chunk:
    """`chunk` for one target: shared, or a copy when the target still has others to take."""
    if branch.channel.fill_bytes or chunk.release is None:
        return Chunk(chunk.kind, chunk.offset, bytes(chunk.data))
    share.add_holder()
    branch.held.add(share)

    def let_go() -> None:
        if share in branch.held:
            branch.held.remove(share)
            share.let_go()

    return Chunk(chunk.kind, chunk.offset, chunk.data, let_go)
