"""``sftp://``: a directly readable dump on an SSH server, written over several connections at once.

The dump is ``NAME.partial`` until it is whole, synced, measured and read back in samples. Its head
is there from the start, marked incomplete, so what a crash of the collector leaves is readable as
far as it goes.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio

from pipeline.errors import SinkError, TornStreamError, UsageError, first_of
from pipeline.flow.channel import Inbox
from pipeline.flow.items import Chunk, ChunkKind, EndOfDump, HeadOrder, Outline, Receipt, Totals
from pipeline.obs.log import log_event
from stages.sink.digest import Piece, PieceDigests, piece_bytes_for
from stages.sink.manifest import DumpFacts, Form, build_manifest
from stages.sink.read_back import check_read_back
from stages.sink.retry import RetryPolicy
from stages.sink.sftp_file import SftpFile
from stages.sink.sftp_lanes import RefusedWriteError, SftpLanes
from stages.sink.sftp_pieces import Gatherer, PiecePool
from stages.sink.sftp_session import SftpSession
from stages.sink.sftp_sessions import SftpSessions
from stages.sink.ssh_command import ssh_argv, subsystem
from stages.sink.ssh_url import SshTarget, parse_ssh_url
from stages.sink.throttle import TokenBucket, start_jitter

if TYPE_CHECKING:
    from pipeline.config.settings import Settings
    from pipeline.config.targets import NetSettings, SshSettings

_OPEN_TRIES_S: Final = 30.0
"""How long the first connection may be tried for: a wrong address should not take minutes."""
_ABORT_S: Final = 10.0
"""A server that does not answer must not hold up the next target, or the reboot."""
_UNDO_TRIES_S: Final = 5.0
_LEAST_PIECES: Final = 4
"""Two are open, so that others can be under way."""


def make_sink(url: str, settings: Settings, *, form: Form = "kdump") -> SftpSink:
    """The sink for an ``sftp://`` URL; `form` is what the chunks make up.

    Raises:
        UsageError: the URL is odd, or a flattened dump is asked for.
    """
    if settings.dump.flatten:
        raise UsageError("--flatten is for targets that cannot seek; sftp:// can")
    return SftpSink(
        parse_ssh_url(url),
        settings.ssh,
        settings.net,
        overwrite=settings.dump.overwrite,
        fsync=settings.sink.fsync,
        form=form,
    )


class SftpSink:
    """Sink[Chunk] for a file on an SSH server."""

    name = "sink"
    head_order = HeadOrder.BOTH

    def __init__(
        self,
        target: SshTarget,
        ssh: SshSettings,
        net: NetSettings,
        *,
        overwrite: bool,
        fsync: bool,
        form: Form = "kdump",
    ) -> None:
        self._target = target
        self._form: Form = form
        self._ssh = ssh
        self._net = net
        self._policy = RetryPolicy.of(net)
        self._bucket = TokenBucket(net.rate_limit)
        connect_s = net.connect_timeout_s + net.stall_timeout_s
        self._sessions = SftpSessions(target.show(), connect_s=connect_s)
        self._file = SftpFile(target, overwrite=overwrite, fsync=fsync)
        self._has_head = False
        self._end = 0
        self._pieces: list[Piece] = []
        self._totals = Totals()
        self._facts = DumpFacts()

    def describe(self, facts: DumpFacts) -> None:
        """Take what the manifest says of the run; the last call before `commit` counts."""
        self._facts = facts

    async def open(self) -> None:
        await start_jitter(self._net.start_jitter_s)
        try:
            argv = await ssh_argv(self._target, self._ssh, self._net)
            self._sessions.argv = subsystem(argv, self._target)
            await self._sessions.do(self._file.claim, self._brief(_OPEN_TRIES_S))
        except BaseException:
            await self.abort()
            raise

    def _brief(self, most_s: float) -> RetryPolicy:
        return replace(self._policy, deadline_s=min(self._policy.deadline_s, most_s))

    async def run(self, inbox: Inbox[Outline | Chunk | EndOfDump]) -> Receipt:
        try:
            first = self._sessions.take_idle() or await self._connect_to_write()
            await self._copy(inbox, first)
        except BaseExceptionGroup as errors:
            refused, _ = errors.split(RefusedWriteError)
            if refused is None:
                raise
            raise await self._why_refused(refused) from errors
        started = time.perf_counter()
        await self._settle()
        return Receipt(self._target.show(), self._end, time.perf_counter() - started)

    async def _copy(self, inbox: Inbox[Outline | Chunk | EndOfDump], first: SftpSession) -> None:
        pool = PiecePool(
            max(self._ssh.window_bytes // first.most_write, _LEAST_PIECES), first.most_write
        )
        lanes = SftpLanes(
            pool,
            self._ssh.connections,
            self._connect_to_write,
            self._policy,
            stall_s=self._net.stall_timeout_s,
        )
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(lanes.run_lane, first, name="lane:0")
                for index in range(1, self._ssh.connections):
                    group.start_soon(lanes.run_lane, None, name=f"lane:{index}")
                await self._feed(inbox, Gatherer(pool, lanes.submit), lanes)
                group.cancel_scope.cancel()
        finally:
            for session in lanes.sessions:
                self._sessions.give_back(session)

    async def _connect_to_write(self) -> SftpSession:
        session = await self._sessions.connect()
        try:
            await self._file.reopen(session)
        except BaseException:
            await session.close()
            raise
        return session

    async def _feed(
        self, inbox: Inbox[Outline | Chunk | EndOfDump], gatherer: Gatherer, lanes: SftpLanes
    ) -> None:
        digests: PieceDigests | None = None
        async for item in inbox:
            if isinstance(item, Outline):
                digests = PieceDigests(item.data_start, piece_bytes_for(item.most_bytes))
            elif digests is None:
                break
            elif isinstance(item, EndOfDump):
                gatherer.flush()
                await lanes.drain()
                self._pieces, self._totals = digests.finish(), item.totals
                return
            else:
                digests.add(item)
                await self._take(item, gatherer, lanes)
        raise TornStreamError(f"{self._target.show()}: the writer stopped before its end")

    async def _take(self, chunk: Chunk, gatherer: Gatherer, lanes: SftpLanes) -> None:
        is_head = chunk.kind is ChunkKind.HEAD
        if is_head:  # what it says of the rest must be true when it is there
            gatherer.flush()
            await lanes.drain()
        await self._bucket.take(chunk.n_bytes)
        await gatherer.add(chunk)
        self._end = max(self._end, chunk.offset + chunk.n_bytes)
        if chunk.release is not None:
            chunk.release()
        if is_head:
            gatherer.flush()
            await lanes.drain()
            self._has_head = True

    async def _settle(self) -> None:
        """Make the file durable, and see meanwhile that it is what was sent."""
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._sync, name="sync")
                group.start_soon(self._read_back, name="read-back")
        except BaseExceptionGroup as errors:
            raise first_of(errors) from errors

    async def _sync(self) -> None:
        size = await self._sessions.do(self._file.sync, self._policy)
        if size not in (self._end, None):
            raise SinkError(f"{self._file.where}: has {size} bytes where {self._end} were sent")

    async def _read_back(self) -> None:
        async def read(offset: int, n_bytes: int) -> bytes:
            read_it = partial(self._file.read, offset=offset, n_bytes=n_bytes)
            return await self._sessions.do(read_it, self._policy)

        await check_read_back(self._file.where, self._pieces, read, self._ssh.verify)

    async def _why_refused(self, refused: BaseExceptionGroup[BaseException]) -> SinkError:
        """One line for a write that the server would not do."""
        problem = str(first_of(refused))
        with suppress(SinkError):
            is_full = partial(self._file.is_full, n_bytes=self._ssh.window_bytes)
            if await self._sessions.do(is_full, self._brief(_UNDO_TRIES_S)):
                problem = "no space left"
        return SinkError(f"{self._file.where}: {problem} (after {self._end} bytes)")

    async def commit(self) -> None:
        await self._sessions.do(partial(self._file.rename, size=self._end), self._policy)
        made = build_manifest(
            name=self._target.path.rpartition("/")[2],
            form=self._form,
            pieces=self._pieces,
            totals=self._totals,
            facts=self._facts,
        )
        try:
            put = partial(self._file.put_manifest, data=made.pack())
            await self._sessions.do(put, self._policy)
        except SinkError as error:  # the dump itself is whole and in place
            log_event("manifest_not_written", "warning", reason=str(error))
        await self._sessions.close()

    async def abort(self) -> str | None:
        left = None
        with anyio.CancelScope(shield=True):
            with suppress(Exception), anyio.move_on_after(_ABORT_S):
                left = await self._undo()
            await self._sessions.close()
        return left

    async def _undo(self) -> str | None:
        """Remove the file, unless it is a readable part of the dump; where that is."""
        if not self._file.claimed:
            return None
        if self._has_head:
            return self._file.where
        await self._sessions.do(self._file.remove, self._brief(_UNDO_TRIES_S))
        return None
