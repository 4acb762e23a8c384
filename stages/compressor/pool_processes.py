"""Encoding in forked worker processes that share memory slots and the image's open file.

Forked, not spawned: a worker starts in 2 ms, shares the parent's interpreter and numpy pages (its
own memory is its buffers and little more), and reads the image by itself. Jobs and answers are
small datagrams on a socket pair per worker; the pages never pass through it::

    parent -> worker   slot index, n_pages, has_input
    worker -> parent   slot index, n_bytes, n_shared, CPU seconds, then the error's text if any

Each worker holds two jobs at most, so that it never waits for the parent's next turn.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import socket
import struct
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

import anyio
from anyio.abc import TaskStatus
from msgspec import Struct

from pipeline.errors import DumpError, WorkerDiedError
from pipeline.flow.items import PageBatch
from pipeline.flow.wakeup import Wakeup
from pipeline.obs.log import log_event
from stages.compressor.encode import BatchWorker, Encoded
from stages.compressor.pool import Job, load_slot
from stages.compressor.slots import Slot, SlotArena

_JOB: Final = struct.Struct("<II?")
_ANSWER: Final = struct.Struct("<IQId")
_MAX_MESSAGE: Final = 4096
_JOBS_EACH: Final = 2
_PR_SET_PDEATHSIG: Final = 1


class _Worker(Struct):
    pid: int
    link: socket.socket
    n_jobs: int = 0
    is_reaped: bool = False
    """Its number may be another process's by now."""


class ProcessPool:
    """`n_workers` forked processes."""

    mode = "processes"

    def __init__(
        self, make_worker: Callable[[], BatchWorker], arena: SlotArena, n_workers: int
    ) -> None:
        self.n_workers = n_workers
        self._arena = arena
        self._make_worker = make_worker
        self._workers: list[_Worker] = []
        self._jobs: dict[int, Job] = {}
        self._seconds = 0.0
        self._freed = Wakeup()

    @property
    def pids(self) -> list[int]:
        return [worker.pid for worker in self._workers]

    def __enter__(self) -> Self:
        gc.freeze()  # a collection in a child would touch, and so copy, every shared object
        try:
            for _ in range(self.n_workers):
                self._workers.append(self._fork())
        except OSError as error:
            # A limit on processes, or no memory for one: fewer of them make the same dump.
            if not self._workers:
                raise WorkerDiedError(
                    f"no worker process can be started: {error.strerror}; "
                    "--set compressor.mode=inline needs none"
                ) from error
            log_event(
                "workers_not_started",
                "warning",
                n_started=len(self._workers),
                n_wanted=self.n_workers,
                text=error.strerror,
            )
        finally:
            gc.unfreeze()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        left = [worker for worker in self._workers if not worker.is_reaped]
        for worker in self._workers:
            worker.link.close()
        for worker in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
        for worker in left:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(worker.pid, 0)
        self._workers.clear()

    def _fork(self) -> _Worker:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            raise
        if pid == 0:
            ours.close()
            for other in self._workers:
                other.link.close()
            _work(parent, theirs, self._arena, self._make_worker)
        theirs.close()
        ours.setblocking(False)
        return _Worker(pid, ours)

    async def serve(self, *, task_status: TaskStatus[None]) -> None:
        async with anyio.create_task_group() as group:
            for worker in self._workers:
                group.start_soon(self._take_answers, worker)
            # Jobs of a run that was cancelled still write into their slots.
            while any(worker.n_jobs for worker in self._workers):
                await self._freed.wait()
            task_status.started()

    async def _take_answers(self, worker: _Worker) -> None:
        while True:
            await anyio.wait_readable(worker.link)
            try:
                while message := worker.link.recv(_MAX_MESSAGE):
                    self._finish(worker, message)
            except BlockingIOError:
                continue
            except ConnectionError:
                pass  # it died with a job unread
            raise WorkerDiedError(self._obituary(worker))

    def _finish(self, worker: _Worker, message: bytes) -> None:
        index, n_bytes, n_shared, seconds = _ANSWER.unpack_from(message)
        text = message[_ANSWER.size :].decode("utf-8", "replace")
        job = self._jobs.pop(index)
        job.finish(DumpError(text) if text else Encoded(job.n_pages, n_bytes, n_shared))
        self._seconds += seconds
        worker.n_jobs -= 1
        self._freed.wake()

    def _obituary(self, worker: _Worker) -> str:
        worker.is_reaped = True
        try:
            _, status = os.waitpid(worker.pid, 0)
        except ChildProcessError:  # whoever started us ignores SIGCHLD: the kernel has reaped it
            return f"worker process {worker.pid} died"
        code = os.waitstatus_to_exitcode(status)
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"worker process {worker.pid} died ({how})"

    async def begin(self, batch: PageBatch, slot: Slot) -> Job:
        while (worker := self._least_busy()).n_jobs >= _JOBS_EACH:
            await self._freed.wait()
        job = self._jobs[slot.index] = Job(batch.n_pages)
        worker.n_jobs += 1
        self._send(worker, batch, slot)
        return job

    def _least_busy(self) -> _Worker:
        return min(self._workers, key=lambda one: one.n_jobs)

    def _send(self, worker: _Worker, batch: PageBatch, slot: Slot) -> None:
        pages = load_slot(batch, slot)
        if pages is not None:
            if slot.input is None:
                raise ValueError("the batch brought data, but the slots have no room for it")
            slot.input[: batch.n_pages] = pages
        try:
            worker.link.send(_JOB.pack(slot.index, batch.n_pages, pages is not None))
        except ConnectionError:
            raise WorkerDiedError(self._obituary(worker)) from None
        except OSError as error:  # it lives, and would be waited for
            raise WorkerDiedError(f"worker process {worker.pid}: {error.strerror}") from error

    def worker_seconds(self) -> float:
        return self._seconds


def _work(
    parent: int, link: socket.socket, arena: SlotArena, make_worker: Callable[[], BatchWorker]
) -> None:
    """A worker's whole life; never returns to the code that forked it."""
    code = 1
    try:
        # The parent decides what they mean; a terminal and an init system send them to all of us.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
        worker = make_worker()
        while job := link.recv(_MAX_MESSAGE):
            link.send(_answer(worker, arena, job))
        code = 0
    except (KeyboardInterrupt, ConnectionError):
        pass
    finally:
        os._exit(code)


def _answer(worker: BatchWorker, arena: SlotArena, job: bytes) -> bytes:
    index, n_pages, has_input = _JOB.unpack(job)
    slot = arena.slots[index]
    pages = slot.input[:n_pages] if has_input and slot.input is not None else None
    started = time.process_time()
    try:
        encoded = worker.run(slot, n_pages, pages)
    except Exception as error:  # whatever it is, the parent must hear of it
        said = str(error) or type(error).__name__
        # A file's name in it may be any bytes.
        text = said.encode(errors="backslashreplace")[: _MAX_MESSAGE - _ANSWER.size]
        return _ANSWER.pack(index, 0, 0, time.process_time() - started) + text
    seconds = time.process_time() - started
    return _ANSWER.pack(index, encoded.n_bytes, encoded.n_shared, seconds)
