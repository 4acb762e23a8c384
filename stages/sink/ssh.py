"""``ssh://``: a stream through the system's ``ssh`` to a host that offers a shell and no more.

Where dumpstream is installed at the other end, it assembles a readable dump, which it names when it
sees the stream's end record. Elsewhere the shell writes the flattened stream into a file, whose
size and SHA-256 are compared before it gets its name. Nothing can be taken up again after a lost
connection: the run has to start over.
"""

from __future__ import annotations

import hashlib
import math
import time
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import anyio

from pipeline.errors import RestartableSinkError, SinkError
from pipeline.flow.channel import Inbox
from pipeline.flow.items import Chunk, EndOfDump, HeadOrder, Outline, Receipt, Totals
from pipeline.obs.log import log_event
from stages.formats.flattened import END_RECORD
from stages.sink import ssh_scripts
from stages.sink.digest import Piece, PieceDigests, piece_bytes_for
from stages.sink.flat_records import FlatRecords
from stages.sink.manifest import SUFFIX, DumpFacts, Form, build_manifest
from stages.sink.retry import Failure, RetryPolicy, TransientError, retry
from stages.sink.ssh_command import remote, ssh_argv
from stages.sink.ssh_remote import RemoteCommand, run_command
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


def make_sink(url: str, settings: Settings, *, form: Form = "kdump") -> SshSink:
    """The sink for an ``ssh://`` URL; `form` is what the chunks make up.

    Raises:
        UsageError: the URL is odd.
    """
    return SshSink(
        parse_ssh_url(url),
        settings.ssh,
        settings.net,
        overwrite=settings.dump.overwrite,
        form=form,
    )


class SshSink:
    """Sink[Chunk] that pipes a flattened stream to a command on another host."""

    name = "sink"
    head_order = HeadOrder.FIRST

    def __init__(
        self,
        target: SshTarget,
        ssh: SshSettings,
        net: NetSettings,
        *,
        overwrite: bool,
        form: Form = "kdump",
    ) -> None:
        self._target = target
        self._form: Form = form
        self._ssh = ssh
        self._net = net
        self._overwrite = overwrite
        self._policy = RetryPolicy.of(net)
        self._bucket = TokenBucket(net.rate_limit)
        self._argv: list[str] = []
        self._command: RemoteCommand | None = None
        self._assembles = False
        """The other end makes a readable dump of the stream."""
        self._claimed = False
        self._digest = hashlib.sha256()
        self._dump_digests: PieceDigests | None = None
        self._n_sent = 0
        self._size = 0
        self._totals = Totals()
        self._facts = DumpFacts()

    def describe(self, facts: DumpFacts) -> None:
        """Take what the manifest says of the run; the last call before `commit` counts."""
        self._facts = facts

    async def open(self) -> None:
        await start_jitter(self._net.start_jitter_s)
        policy = replace(self._policy, deadline_s=min(self._policy.deadline_s, _OPEN_TRIES_S))
        try:
            self._argv = await ssh_argv(self._target, self._ssh, self._net)
            await retry(self._start, policy, on_failure=_note)
        except BaseException:
            await self.abort()
            raise

    async def _start(self) -> None:
        """Start what receives the dump; it has looked at the target when this returns."""
        script = ssh_scripts.receive(
            self._target.path, self._ssh.remote_program, overwrite=self._overwrite
        )
        command = await RemoteCommand.start(
            remote(self._argv, self._target, script), self._target.show()
        )
        try:
            with anyio.fail_after(self._net.connect_timeout_s + self._net.stall_timeout_s):
                answer = await command.answer()
                if answer not in ("ready cat", "ready receive"):
                    raise await command.refusal(answer)
        except TimeoutError:
            await command.close()
            raise TransientError(f"{self._target.show()}: no answer") from None
        except BaseException:
            await command.close()
            raise
        self._command, self._claimed = command, True
        self._assembles = answer == "ready receive"

    async def run(self, inbox: Inbox[Outline | Chunk | EndOfDump]) -> Receipt:
        records = FlatRecords(inbox, self._target.show(), self._see)
        try:
            async with aclosing(records.views()) as stream:
                async for views in stream:
                    await self._send(views)
            started = time.perf_counter()
            self._totals, self._size = records.totals, records.end
            if not self._assembles:
                await self._send([memoryview(END_RECORD)])
                self._size = self._n_sent
                self._compare(await self._running.finish())
        except TransientError as error:
            raise RestartableSinkError(
                f"{error}; after {self._n_sent} bytes, which ssh:// cannot take up again"
            ) from error
        return Receipt(self._target.show(), self._size, time.perf_counter() - started)

    def _see(self, item: Outline | Chunk) -> None:
        """Digest the dump that the other end makes of the stream."""
        if isinstance(item, Outline):
            self._dump_digests = PieceDigests(item.data_start, piece_bytes_for(item.most_bytes))
        elif self._assembles and self._dump_digests is not None:
            self._dump_digests.add(item)

    @property
    def _running(self) -> RemoteCommand:
        if self._command is None:
            raise SinkError(f"{self._target.show()}: is not open")
        return self._command

    async def _send(self, views: list[memoryview]) -> None:
        n_bytes = sum(map(len, views))
        await self._bucket.take(n_bytes)
        await self._running.send(views)
        self._n_sent += n_bytes
        if not self._assembles:
            for view in views:
                self._digest.update(view)

    def _compare(self, answers: dict[str, str]) -> None:
        """See that the file has what was sent."""
        where = self._target.show(self._target.partial)
        n_bytes = answers.get("bytes", "").strip()
        if n_bytes != str(self._n_sent):
            raise SinkError(f"{where}: has {n_bytes or '?'} bytes where {self._n_sent} were sent")
        digest = answers.get("sha256", "").split()
        if digest and digest[0] != self._digest.hexdigest():
            raise SinkError(
                f"{where}: SHA-256 is {digest[0]}, wanted {self._digest.hexdigest()}: what was "
                "written is not what was sent"
            )
        if not digest:
            log_event("digest_not_compared", "warning", why="no sha256sum at the other end")

    async def commit(self) -> None:
        if self._assembles:
            await self._finish_stream()
        else:
            script = ssh_scripts.commit(self._target.path, self._size, overwrite=self._overwrite)
            await self._run(script)
        self._claimed = False
        try:
            await self._run(ssh_scripts.put_manifest(self._target.path, SUFFIX), self._manifest())
        except SinkError as error:  # the dump itself is whole and in place
            log_event("manifest_not_written", "warning", reason=str(error))
        await self._running.close()

    async def _finish_stream(self) -> None:
        """Send the end record, on which the other end gives the dump its name."""
        try:
            await self._send([memoryview(END_RECORD)])
            await self._running.finish()
        except TransientError as error:
            try:  # the answer may be all that was lost
                await self._run(ssh_scripts.is_there(self._target.path, self._size))
            except SinkError:
                raise RestartableSinkError(f"{error}; the dump is not there") from error

    def _manifest(self) -> bytes:
        pieces = [Piece(0, self._size, self._digest.digest())]
        if self._assembles and self._dump_digests is not None:
            pieces = self._dump_digests.finish()
        return build_manifest(
            name=self._target.path.rpartition("/")[2],
            form=self._form if self._assembles else "flattened",
            holds=None if self._assembles else self._form,
            pieces=pieces,
            totals=self._totals,
            facts=self._facts,
        ).pack()

    async def _run(self, script: str, data: bytes = b"", *, most_s: float = math.inf) -> None:
        """Run a short command on a connection of its own, again when the connection is lost."""
        argv = remote(self._argv, self._target, script)
        await retry(
            lambda: run_command(argv, self._target.show(), data),
            replace(self._policy, deadline_s=min(self._policy.deadline_s, most_s)),
            on_failure=_note,
        )

    async def abort(self) -> str | None:
        left = None
        with anyio.CancelScope(shield=True):
            with suppress(Exception), anyio.move_on_after(_ABORT_S):
                left = await self._undo()
            if self._command is not None:
                await self._command.close()
        return left

    async def _undo(self) -> str | None:
        """Remove the partial file, unless the other end says that it is a readable part."""
        claimed, self._claimed = self._claimed, False
        if not claimed or self._command is None:
            return None
        if self._assembles:
            await self._command.hang_up()
            await self._run(ssh_scripts.has_partial(self._target.path), most_s=_UNDO_TRIES_S)
            return self._target.show(self._target.partial)
        await self._command.close()  # a stream without its end opens nowhere
        await self._run(ssh_scripts.remove(self._target.path), most_s=_UNDO_TRIES_S)
        return None


def _note(failure: Failure) -> None:
    log_event(
        "connection_lost",
        "warning",
        reason=str(failure.error),
        retry_in_s=round(failure.delay_s, 2),
    )
