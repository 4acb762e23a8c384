"""The idle connections of an SFTP target, and how a request outlives the one it was sent on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from pipeline.errors import SinkError
from pipeline.obs.log import log_event
from stages.sink.retry import Failure, RetryPolicy, retry
from stages.sink.sftp_session import SftpSession
from stages.sink.sftp_wire import SftpStatusError

T = TypeVar("T")


class SftpSessions:
    """Connections to one server on which nothing is under way."""

    def __init__(self, target: str, *, connect_s: float) -> None:
        """`target` is for messages; a connection that takes longer than `connect_s` failed."""
        self.argv: list[str] = []
        self._target = target
        self._connect_s = connect_s
        self._idle: list[SftpSession] = []
        self._n_busy = 0
        self._freed = anyio.Event()

    async def connect(self) -> SftpSession:
        """A new connection; the caller's until it is given back.

        Raises:
            LostConnectionError: there is none now.
            SinkError: there will be none.
        """
        return await SftpSession.start(self.argv, self._target, most_s=self._connect_s)

    def take_idle(self) -> SftpSession | None:
        """A connection that is there, for the caller to give back or to close."""
        return self._idle.pop() if self._idle else None

    def give_back(self, session: SftpSession) -> None:
        """`session` has no request under way."""
        self._idle.append(session)

    async def do(self, operation: Callable[[SftpSession], Awaitable[T]], policy: RetryPolicy) -> T:
        """Do `operation`, and again on a new connection when the one it had broke.

        Several callers share the connections that are there; a new one is made only when there is
        none, since a server may take no more of them.

        Raises:
            SinkError: refused, or no connection for as long as `policy` bears.
        """

        async def attempt() -> T:
            await self._wait_for_one()
            self._n_busy += 1
            try:
                return await self._do_once(operation)
            finally:
                self._n_busy -= 1
                self._freed.set()
                self._freed = anyio.Event()

        try:
            return await retry(attempt, policy, on_failure=_note)
        except SftpStatusError as error:
            raise SinkError(f"{self._target}: {error}") from error

    async def _wait_for_one(self) -> None:
        """Wait while all connections are busy."""
        while self._n_busy and not self._idle:
            await self._freed.wait()

    async def _do_once(self, operation: Callable[[SftpSession], Awaitable[T]]) -> T:
        session = self.take_idle() or await self.connect()
        try:
            done = await operation(session)
        except BaseException:
            await session.close()
            raise
        self.give_back(session)
        return done

    async def close(self) -> None:
        """End all idle connections; works when cancelled."""
        idle, self._idle = self._idle, []
        async with anyio.create_task_group() as group:
            for session in idle:
                group.start_soon(session.close)


def _note(failure: Failure) -> None:
    log_event(
        "connection_lost",
        "warning",
        reason=str(failure.error),
        retry_in_s=round(failure.delay_s, 2),
    )
