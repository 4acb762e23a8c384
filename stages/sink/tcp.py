"""``tcp://`` and ``tls://``: a dump to a machine that runs `dumpstream receive`.

The receiver writes a directly readable file as chunks arrive, its head last; what is acknowledged
is written there, and a lost connection, or a sender that is run again after it died, goes on from
that point. docs/protocol.md describes what goes over the line.
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Annotated, Final

import anyio
import anyio.to_thread
from msgspec import Meta, Struct, ValidationError, convert

from pipeline.errors import FormatError, SinkError, TornStreamError, UsageError
from pipeline.flow.channel import Inbox
from pipeline.flow.items import Chunk, EndOfDump, HeadOrder, Outline, Receipt, Totals
from pipeline.obs.log import log_event
from stages.sink.digest import PieceDigests, piece_bytes_for
from stages.sink.manifest import DumpFacts, Form, build_manifest
from stages.sink.retry import RetryPolicy
from stages.sink.throttle import start_jitter
from stages.transport.endpoint import Address, Endpoint
from stages.transport.messages import Hello, Token, Trailer, TrailerFrame
from stages.transport.sender import Sender, SendOptions

if TYPE_CHECKING:
    from pipeline.config.settings import Settings
    from stages.sink.journal import Journal

_ABORT_S: Final = 10.0
_IN_THREAD: Final = 64 << 10
"""Bytes above which hashing goes to a thread: 60 us of work, half of what the hop costs."""
_LEAST_CHUNK: Final = 4096
_RECORD: Final = "tcp_upload"


def make_sink(
    url: str, settings: Settings, journal: Journal | None = None, *, form: Form = "kdump"
) -> TcpSink:
    """The sink for `url`.

    Raises:
        UsageError: the URL has parts that it should not have, or a TLS file cannot be used.
        FormatError: the journal's record of the upload is damaged.
    """
    address = Address.parse(url)
    net, tcp = settings.net, settings.tcp
    tls = None
    if address.scheme == "tls":
        from stages.transport.tls import client_context

        tls = client_context(net.ca_file, tcp.cert_file, tcp.key_file)
    elif tcp.cert_file is not None:
        raise UsageError(f"{address}: tcp.cert_file is set, but only tls:// encrypts")
    options = SendOptions(
        policy=RetryPolicy.of(net),
        window_bytes=tcp.window_bytes,
        stall_s=net.stall_timeout_s,
        heartbeat_s=min(tcp.heartbeat_s, net.stall_timeout_s / 3),
        rate=net.rate_limit,
    )
    return TcpSink(
        Endpoint(address, net.connect_timeout_s, tls, tcp.server_name or ""),
        options,
        chunk_bytes=tcp.chunk_bytes,
        overwrite=settings.dump.overwrite,
        start_jitter_s=net.start_jitter_s,
        journal=journal,
        form=form,
    )


class TcpSink:
    """Sink[Chunk] for one receiver."""

    name = "sink"
    head_order = HeadOrder.BOTH

    def __init__(
        self,
        endpoint: Endpoint,
        options: SendOptions,
        *,
        chunk_bytes: int,
        overwrite: bool = False,
        start_jitter_s: float = 0.0,
        journal: Journal | None = None,
        form: Form = "kdump",
    ) -> None:
        self._address = endpoint.address
        self._journal = journal
        self._start_jitter_s = start_jitter_s
        self._form: Form = form
        self._chunk_bytes = _fitting_chunk(chunk_bytes, options)
        former = _former(journal)
        self._token = secrets.token_hex(16) if former is None else former.token
        hello = Hello(
            name=self._address.name if former is None else former.name,
            token=self._token,
            identity="" if journal is None else journal.header.source.path[:1024],
            overwrite=overwrite,
            heartbeat_s=min(max(options.heartbeat_s, 0.05), 60.0),
        )
        self.sender = Sender(endpoint, hello, options)
        self._facts = DumpFacts()
        self._totals = Totals()
        self._digests: PieceDigests | None = None
        self._size = 0
        self._ended = 0.0

    @property
    def target(self) -> str:
        """URL with the name that the receiver gave."""
        name = self.sender.name or self._address.name
        return f"{str(self._address).removesuffix('/' + self._address.name)}/{name}"

    def describe(self, facts: DumpFacts) -> None:
        """Take what the manifest says of the run; the last call before `commit` counts."""
        self._facts = facts

    async def open(self) -> None:
        await start_jitter(self._start_jitter_s)
        n_there = await self.sender.claim()
        if n_there:
            log_event("upload_resumed", target=self.target, chunks=n_there)
        elif self._journal is not None:
            try:
                self._journal.append(_RECORD, token=self._token, name=self.sender.name)
            except SinkError:
                await self.abort()
                raise

    async def run(self, inbox: Inbox[Outline | Chunk | EndOfDump]) -> Receipt:
        outline = await _outline(inbox, self.target)
        digests = PieceDigests(outline.data_start, piece_bytes_for(outline.most_bytes))
        self.sender.lay_out(outline.data_start, outline.most_bytes)
        started = time.perf_counter()
        async with anyio.create_task_group() as group:
            group.start_soon(self._take_all, inbox, digests)
            await self.sender.deliver()
            seconds = time.perf_counter() - max(self._ended, started)
        self._digests = digests
        window = self.sender.window
        log_event(
            "upload_delivered",
            target=self.target,
            chunks=window.added,
            not_sent_again=window.n_skipped,
            sent_again=window.n_resent,
            connections_lost=self.sender.n_lost,
        )
        return Receipt(self.target, self._size, seconds)

    async def _take_all(
        self, inbox: Inbox[Outline | Chunk | EndOfDump], digests: PieceDigests
    ) -> None:
        async for item in inbox:
            if isinstance(item, EndOfDump):
                self._totals = item.totals
                self._ended = time.perf_counter()
                self.sender.complete()
                return
            if isinstance(item, Chunk):
                await self._take(item, digests)
        raise TornStreamError(f"{self.target}: the writer stopped before its end")

    async def _take(self, chunk: Chunk, digests: PieceDigests) -> None:
        """Hash `chunk`, copy it into the window as that gets room, and release it."""
        if chunk.n_bytes > _IN_THREAD:
            await anyio.to_thread.run_sync(digests.add, chunk)
        else:
            digests.add(chunk)
        view = memoryview(chunk.data)
        for at in range(0, len(view), self._chunk_bytes):
            piece = view[at : at + self._chunk_bytes]
            await self.sender.put(chunk.kind, chunk.offset + at, piece)
        self._size = max(self._size, chunk.offset + chunk.n_bytes)
        if chunk.release is not None:
            chunk.release()

    async def commit(self) -> None:
        if self._digests is None:
            raise TornStreamError(f"{self.target}: nothing was delivered")
        manifest = build_manifest(
            name=self.sender.name,
            form=self._form,
            pieces=self._digests.finish(),
            totals=self._totals,
            facts=self._facts,
        )
        trailer = Trailer(
            size=manifest.size,
            n_chunks=self.sender.window.added,
            digest=manifest.digest.whole,
        )
        await self.sender.finish(TrailerFrame(trailer, manifest.pack()))
        if self._journal is not None:
            self._journal.remove()

    async def abort(self) -> str | None:
        await self.sender.close()
        n_there = self.sender.window.acknowledged
        if not n_there:
            with anyio.move_on_after(_ABORT_S, shield=True):
                try:
                    n_there = await self.sender.discard()
                except SinkError as error:
                    log_event("upload_not_discarded", "warning", why=str(error))
        if n_there:
            if self._journal is not None:
                self._journal.keep()
                log_event(
                    "upload_kept", "warning", resume=f"dumpstream resume {self._journal.path}"
                )
            return f"{self.target}.partial" if self._form in ("kdump", "elf") else None
        if self._journal is not None:
            self._journal.remove()
        return None


async def _outline(inbox: Inbox[Outline | Chunk | EndOfDump], target: str) -> Outline:
    async for item in inbox:
        if isinstance(item, Outline):
            return item
        break
    raise TornStreamError(f"{target}: the dump had no outline")


def _fitting_chunk(chunk_bytes: int, options: SendOptions) -> int:
    """Chunks small enough that several fit the window, and that a rate limit stays smooth."""
    most = min(chunk_bytes, options.window_bytes // 4)
    if options.rate:
        most = min(most, options.rate // 4)
    return max(most, _LEAST_CHUNK)


class _UploadRecord(Struct, frozen=True):
    token: Token
    name: Annotated[str, Meta(max_length=255)]


def _former(journal: Journal | None) -> _UploadRecord | None:
    """The upload that `journal` tells of, if one had begun."""
    records = [] if journal is None else journal.records
    for record in records:
        if record.get("kind") == _RECORD:
            try:
                return convert(record, _UploadRecord)
            except ValidationError as error:
                raise FormatError("journal", None, _RECORD, str(error), "token, name") from error
    return None
