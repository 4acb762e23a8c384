"""The receiver: takes connections, finds out who is there, and gives each upload its session.

Whatever one peer does ends its own connection and nothing else.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple

import anyio
import anyio.to_thread
from anyio.abc import ByteStream, SocketAttribute, SocketStream

from pipeline.errors import DumpError, SinkError, first_of
from pipeline.memory.sizes import show_count
from pipeline.obs.log import log_event
from pipeline.obs.plain import one_line
from stages.sink.throttle import TokenBucket
from stages.transport.depot import Depot
from stages.transport.errors import ProtocolError, RefusedError
from stages.transport.frames import TO_RECEIVER
from stages.transport.limits import Limits
from stages.transport.link import Link, LinkLostError
from stages.transport.messages import VERSION, Done, Hello, Problem, TrailerFrame, Welcome
from stages.transport.session import Session
from stages.transport.store import UploadStore

_TAKEOVER_S: Final = 20.0
"""For a connection that is replaced to finish the write or sync that it is in."""
_MAX_TEXT: Final = 1000
_OURS: Final = (DumpError, LinkLostError)
_GOODBYE_S: Final = 2.0


class Peer(NamedTuple):
    """Who is at the other end; `subject` of its certificate, empty without TLS."""

    host: str
    subject: str


@dataclass(slots=True)
class _Active:
    """A connection that has an upload."""

    peer: Peer
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    released: anyio.Event = field(default_factory=anyio.Event)


async def serve(
    listen: tuple[str, int],
    folder: Path,
    limits: Limits,
    tls: ssl.SSLContext | None = None,
    *,
    on_listening: Callable[[str, int], None] | None = None,
) -> None:
    """Receive dumps into `folder` until cancelled.

    Args:
        listen: host and port; port 0 picks a free one.
        folder: only this receiver may write uploads there.
        limits: see `Limits`.
        tls: from `stages.transport.tls.server_context`; None takes anybody who can connect.
        on_listening: called with host and port of each listening socket.

    Raises:
        SinkError: the directory or the address cannot be used.
    """
    depot = Depot(folder, limits)
    depot.open()
    try:
        host, port = listen
        try:
            listener = await anyio.create_tcp_listener(local_host=host, local_port=port)
        except OSError as error:
            raise SinkError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
        async with listener:
            for one in listener.listeners:
                address = one.extra(SocketAttribute.local_address)
                if on_listening is not None:
                    on_listening(str(address[0]), int(address[1]))
            await listener.serve(Receiver(depot, limits, tls).handle)
    finally:
        depot.close()


class Receiver:
    """Handles connections; see `serve`."""

    def __init__(self, depot: Depot, limits: Limits, tls: ssl.SSLContext | None) -> None:
        self._depot = depot
        self._limits = limits
        self._tls = tls
        self._bucket = TokenBucket(limits.max_rate)
        self._active: dict[str, _Active] = {}
        self._admitting = anyio.Lock()
        self._n_connections = 0

    async def handle(self, stream: SocketStream) -> None:
        """Converse with one peer; never raises because of it."""
        if self._n_connections >= self._limits.max_connections:
            await anyio.aclose_forcefully(stream)
            return
        self._n_connections += 1
        host = "unknown"
        try:
            host = str(stream.extra(SocketAttribute.remote_address)[0])
            await self._converse(stream, host)
        except Exception as error:
            first = first_of(error)
            why = str(first) if isinstance(first, _OURS) else f"{type(first).__name__}: {first}"
            log_event("connection_ended", "warning", peer=host, why=why)
        finally:
            self._n_connections -= 1
            with anyio.CancelScope(shield=True):
                await anyio.aclose_forcefully(stream)

    async def _converse(self, stream: SocketStream, host: str) -> None:
        limits = self._limits
        hello_by = anyio.current_time() + limits.hello_timeout_s
        try:
            with anyio.fail_after(limits.hello_timeout_s):
                secured, subject = await self._secure(stream)
        except TimeoutError:
            raise LinkLostError(f"no TLS after {limits.hello_timeout_s:g} s") from None
        async with Link(secured, TO_RECEIVER, timeout_s=limits.idle_timeout_s) as link:
            try:
                hello = await _hello(link, hello_by)
                await self._upload(link, hello, Peer(host, subject))
            except Exception as error:
                why, retry = _reason(error)
                with anyio.move_on_after(_GOODBYE_S), suppress(LinkLostError):
                    await link.send(Problem(text=why, retry=retry))
                    await link.close_politely(_GOODBYE_S)
                raise

    async def _secure(self, stream: SocketStream) -> tuple[ByteStream, str]:
        if self._tls is None:
            return stream, ""
        from stages.transport.tls import accept_tls

        return await accept_tls(stream, self._tls)

    async def _upload(self, link: Link, hello: Hello, peer: Peer) -> None:
        async with self._admitted(hello, peer) as store:
            if store is None:
                await self._confirm_commit(link, hello)
                return
            if hello.data_start or hello.most_bytes:
                await anyio.to_thread.run_sync(
                    store.lay_out, hello.data_start, hello.most_bytes, self._limits
                )
            log_event(
                "upload_connected",
                _level(hello),
                peer=peer.host,
                name=store.name,
                chunks=store.position,
            )
            await link.send(
                Welcome(
                    version=VERSION,
                    name=store.name,
                    position=store.position,
                    durable=store.durable,
                )
            )
            session = Session(link, hello, store, self._depot, self._limits, self._bucket)
            await session.run()
            if session.is_over:
                log_event("upload_ended", peer=peer.host, name=store.name, chunks=store.position)
            await link.close_politely(_GOODBYE_S)

    async def _confirm_commit(self, link: Link, hello: Hello) -> None:
        """The sender lost our DONE: say it again if its trailer is that of the dump."""
        await link.send(
            Welcome(version=VERSION, name=hello.name, position=0, durable=0, committed=True)
        )
        with anyio.fail_after(self._limits.idle_timeout_s):
            frame = await link.receive()
        if not isinstance(frame, TrailerFrame):
            raise ProtocolError(f"{type(frame).__name__} where the trailer was due")
        await anyio.to_thread.run_sync(self._depot.check_committed, hello.name, frame.trailer)
        await link.send(Done(name=hello.name))
        await link.close_politely(_GOODBYE_S)

    @asynccontextmanager
    async def _admitted(self, hello: Hello, peer: Peer) -> AsyncIterator[UploadStore | None]:
        """The upload, for as long as the block runs; its former connection is ended first."""
        await self._take_over(hello, peer)
        async with self._admitting:
            name = self._depot.name_of(hello)
            if name in self._active:
                raise RefusedError(f"{name}: another connection has it", retry=True)
            if len(self._active) >= self._limits.max_dumps:
                dumps = show_count(self._limits.max_dumps, "dump")
                raise RefusedError(f"this receiver takes {dumps} at once, no more", retry=True)
            store = await anyio.to_thread.run_sync(self._admit, hello, peer)
            if store is not None:
                active = self._active[store.name] = _Active(peer)
                self._depot.active.add(store.name)
        if store is None:
            yield None
            return
        try:
            with active.scope:
                yield store
            if active.scope.cancelled_caught:
                raise LinkLostError("another connection took over")
        finally:
            del self._active[store.name]
            self._depot.active.discard(store.name)
            active.released.set()

    def _admit(self, hello: Hello, peer: Peer) -> UploadStore | None:
        try:
            return self._depot.admit(hello, peer=peer.subject, host=peer.host)
        except OSError as error:
            raise RefusedError(f"{hello.name}: {error.strerror or error}") from error

    async def _take_over(self, hello: Hello, peer: Peer) -> None:
        former = self._active.get(self._depot.name_of(hello) or "")
        if former is None:
            return
        if former.peer.subject != peer.subject:
            raise RefusedError("this upload was begun by another peer")
        former.scope.cancel()
        with anyio.move_on_after(_TAKEOVER_S):
            await former.released.wait()


def _level(hello: Hello) -> Literal["debug", "info"]:
    """A connection that only asks, or only ends an upload, is of no interest by itself."""
    return "info" if hello.most_bytes and not hello.finishing else "debug"


async def _hello(link: Link, by: float) -> Hello:
    """The first frame, which must be there at time `by`."""
    with anyio.move_on_after(by - anyio.current_time()):
        hello = await link.receive()
        if not isinstance(hello, Hello):
            raise ProtocolError(f"{type(hello).__name__} where HELLO was due")
        if not hello.oldest <= VERSION <= hello.newest:
            raise ProtocolError(
                f"protocol versions {hello.oldest} to {hello.newest}; this receiver speaks "
                f"{VERSION}"
            )
        return hello
    raise LinkLostError("no HELLO in time")


def _reason(error: BaseException) -> tuple[str, bool]:
    """What to tell the peer, and whether it may try again."""
    error = first_of(error)
    text = one_line(str(error))[:_MAX_TEXT]
    match error:
        case RefusedError():
            return text, error.retry
        case ProtocolError():
            return text, error.corrupt
        case LinkLostError():
            return text, True
        case ssl.SSLError():
            return one_line(error.reason or "TLS failed"), False
        case DumpError():
            return text, False
        case _:
            # Nothing of the machinery's own words goes to strangers.
            return f"internal error ({type(error).__name__})", True
