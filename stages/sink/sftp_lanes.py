"""Several SFTP connections that write one file, and what happens when one of them breaks.

Pieces wait in one queue. Each lane takes some, sends them, and gives them back when the server has
answered; what a broken lane had not been answered for goes to the front of the queue, for whichever
lane comes first. So a lost connection costs what was under way on it, and nothing starts over::

    submit -> | ready | -> lane 0: unanswered {id: piece} -> give back
                        -> lane 1: ...            |
              front  <----------- connection lost +

Writing a piece twice is harmless: the same bytes go to the same place.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anyio

from pipeline.errors import SinkError
from pipeline.obs.log import log_event
from stages.sink.retry import RetryPolicy
from stages.sink.sftp_pieces import Piece, PiecePool
from stages.sink.sftp_session import SftpSession
from stages.sink.sftp_wire import Reply, SftpFormatError, SftpStatusError, require_ok
from stages.sink.ssh_process import LostConnectionError

Connect = Callable[[], Awaitable[SftpSession]]
"""Makes a session whose `handle` is the file to write."""


@dataclass(slots=True, eq=False)
class _Lane:
    """One connection and its successors."""

    session: SftpSession | None
    unanswered: dict[int, Piece] = field(default_factory=dict)
    asked: anyio.Event = field(default_factory=anyio.Event)
    """Something is unanswered; the receiver waits for it."""
    has_room: anyio.Event = field(default_factory=anyio.Event)
    """Something was answered; the sender waits for it when too much is not."""
    n_failures: int = 0
    failing_since: float | None = None
    """Since when nothing has been answered on it; None when all is well."""


class RefusedWriteError(SinkError):
    """The server answered a write with an error: another connection would get the same."""


class SftpLanes:
    """The queue and its lanes: `run_lane` is a task for each, `submit` and `drain` feed them.

    When everything is drained the tasks may be cancelled; `sessions` then holds the connections
    on which nothing was under way, for the caller to use and to close.
    """

    def __init__(
        self,
        pool: PiecePool,
        n_lanes: int,
        connect: Connect,
        policy: RetryPolicy,
        *,
        stall_s: float,
    ) -> None:
        """A lane that waits `stall_s` for an answer is taken for broken."""
        self._pool = pool
        self._most_unanswered = max(pool.n_pieces // n_lanes, 1)
        self._connect = connect
        self._policy = policy
        self._stall_s = stall_s
        self._ready: deque[Piece] = deque()
        self._n_unanswered = 0
        self._n_live = n_lanes
        self._idle: deque[anyio.Event] = deque()
        self._drained = anyio.Event()
        self.sessions: list[SftpSession] = []

    def submit(self, piece: Piece) -> None:
        """Queue `piece`; the pool's size bounds the queue."""
        self._ready.append(piece)
        self._wake_one()

    async def drain(self) -> None:
        """Wait until the server has answered for everything."""
        while self._ready or self._n_unanswered:
            self._drained = anyio.Event()
            await self._drained.wait()

    async def run_lane(self, session: SftpSession | None) -> None:
        """Send pieces until cancelled; starts on `session`, or on a new connection.

        Raises:
            SinkError: the server refused a write, or this was the last lane and its connection
                cannot be restored.
        """
        lane = _Lane(session)
        try:
            while True:
                try:
                    await self._work(lane)
                except LostConnectionError as error:
                    await self._lost(lane, error)
        except SinkError as error:
            if self._n_live == 1 or isinstance(error, (RefusedWriteError, SftpFormatError)):
                raise
            log_event("connection_given_up", "warning", reason=str(error))
        finally:
            self._n_live -= 1
            await self._leave(lane)

    async def _leave(self, lane: _Lane) -> None:
        """What was under way on a lane that ends is the others' work."""
        session, was_busy = lane.session, bool(lane.unanswered)
        self._put_back(lane)
        if session is not None and not was_busy:
            self.sessions.append(session)
        elif session is not None:
            await session.close()

    def _wake_one(self) -> None:
        """Tell one idle lane of a piece; waking all for each piece cost 1 s of CPU in 1.6 GB."""
        if self._idle:
            self._idle.popleft().set()

    async def _work(self, lane: _Lane) -> None:
        """Send and receive until the connection breaks."""
        if lane.session is None:
            lane.session = await self._connect()
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._send, lane, lane.session)
                group.start_soon(self._receive, lane, lane.session)
        except BaseExceptionGroup as errors:
            raise _first(errors) from errors

    async def _send(self, lane: _Lane, session: SftpSession) -> None:
        while True:
            if len(lane.unanswered) >= self._most_unanswered:
                lane.has_room = anyio.Event()
                await lane.has_room.wait()
            elif not self._ready:
                await self._idle_turn()
            else:
                piece = self._ready.popleft()
                request_id = session.new_id()
                lane.unanswered[request_id] = piece
                self._n_unanswered += 1
                lane.asked.set()
                await session.send_write(request_id, piece.offset, piece.data)

    async def _idle_turn(self) -> None:
        """Wait until a piece may be there."""
        turn = anyio.Event()
        self._idle.append(turn)
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():
                self._wake_one()  # somebody else has to take what this lane was woken for
            else:
                self._idle.remove(turn)
            raise

    async def _receive(self, lane: _Lane, session: SftpSession) -> None:
        while True:
            if not lane.unanswered:
                lane.asked = anyio.Event()
                await lane.asked.wait()
            reply = await self._reply(session)
            if reply.id not in lane.unanswered:
                raise SftpFormatError(
                    f"{session.target}: answer to {reply.id}, which was not asked"
                )
            try:
                require_ok(reply)
            except SftpStatusError as error:
                raise RefusedWriteError(str(error)) from error
            self._answered(lane, reply.id)

    async def _reply(self, session: SftpSession) -> Reply:
        """The next answer; several often come at once, and only the first has to be waited for."""
        reply = session.received()
        if reply is not None:
            return reply
        try:
            with anyio.fail_after(self._stall_s):
                return await session.receive()
        except TimeoutError:
            problem = f"{session.target}: no answer for {self._stall_s:g} s"
            raise LostConnectionError(problem) from None

    def _answered(self, lane: _Lane, request_id: int) -> None:
        self._pool.give_back(lane.unanswered.pop(request_id))
        self._n_unanswered -= 1
        lane.n_failures, lane.failing_since = 0, None
        lane.has_room.set()
        if not self._n_unanswered and not self._ready:
            self._drained.set()

    async def _lost(self, lane: _Lane, error: LostConnectionError) -> None:
        """Put back what was under way, and wait before the next try.

        Raises:
            SinkError: the lane has failed for too long.
        """
        self._put_back(lane)
        session, lane.session = lane.session, None
        if session is not None:
            await session.close()
        now = anyio.current_time()
        lane.failing_since = now if lane.failing_since is None else lane.failing_since
        lane.n_failures += 1
        delay = random.uniform(0, self._policy.bound_s(lane.n_failures))
        if now + delay - lane.failing_since > self._policy.deadline_s:
            raise SinkError(f"{error}; given up after {self._policy.deadline_s:g} s") from error
        log_event("connection_lost", "warning", reason=str(error), retry_in_s=round(delay, 2))
        await anyio.sleep(delay)

    def _put_back(self, lane: _Lane) -> None:
        self._ready.extendleft(reversed(lane.unanswered.values()))
        self._n_unanswered -= len(lane.unanswered)
        for _ in lane.unanswered:
            self._wake_one()
        lane.unanswered.clear()


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The failure of a lane's own two tasks; a refusal counts more than a connection's end."""
    leaves = list(errors.exceptions)
    for leaf in leaves:
        if not isinstance(leaf, LostConnectionError):
            return leaf
    return leaves[0]
