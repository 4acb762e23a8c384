"""Run stages as tasks of one group, joined by channels, and tell what happened in one error.

The runner owns every channel end, names every task, and is the only place that looks into an
exception group. Nothing is committed here: the caller commits after `run_flow` has returned, when
no task is left that could still fail.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeAlias, TypeVar

import anyio
from msgspec import Struct

from pipeline.errors import DumpError, InterruptedRunError, StageError, TornStreamError, first_of
from pipeline.flow.channel import Channel
from pipeline.flow.items import Receipt
from pipeline.flow.protocols import Sink, Source, Stage

_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

T = TypeVar("T")
Job: TypeAlias = Callable[[], Coroutine[Any, Any, None]]


class Flow(Struct, frozen=True):
    """A source, stages, and a sink, with the channel in front of each but the source."""

    source: Source[Any]
    stages: Sequence[Stage[Any, Any]]
    sink: Sink[Any]
    channels: Sequence[Channel[Any]]

    def __post_init__(self) -> None:
        if len(self.channels) != len(self.stages) + 1:
            raise ValueError(f"{len(self.stages)} stages need {len(self.stages) + 1} channels")


async def run_watched(
    job: Callable[[], Coroutine[Any, Any, T]], companions: Sequence[Job] = ()
) -> T:
    """Run `job` to its end, with companions that live as long as it (progress, sampling).

    Raises:
        InterruptedRunError: SIGINT, SIGTERM or SIGHUP; `job` was cancelled and has cleaned up.
        BaseException: what `job` raised, as it was.
    """
    results: list[T] = []
    failures: list[BaseException] = []

    async def main_job() -> None:
        try:
            results.append(await job())
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # cancels the companions
            failures.append(error)
        group.cancel_scope.cancel()

    try:
        with _signals() as signals:
            async with anyio.create_task_group() as group:
                group.start_soon(_watch, signals, name="signals")
                for companion in companions:
                    group.start_soon(companion, name="companion")
                group.start_soon(main_job, name="job")
    except BaseExceptionGroup as errors:
        if not results:  # a signal in the very last moment undoes nothing
            raise first_of(errors) from None
    if failures:
        raise failures[0]
    return results[0]


@contextmanager
def _signals() -> Iterator[AsyncIterator[signal.Signals]]:
    """The signals that end a run. Whoever cleans up is not disturbed by a second one: impatient
    people and supervisors send several, and what is left behind is to be named and kept.
    """
    before = {one: signal.getsignal(one) for one in _ENDING}
    # Under nohup, or in the background of a shell script, some are ignored on purpose.
    ending = [one for one in _ENDING if before[one] is not signal.SIG_IGN]
    try:
        with anyio.open_signal_receiver(*ending) as signals:
            yield signals
    finally:
        for one in ending:
            if before[one] is not None:  # None: whoever embeds us set it up in C
                signal.signal(one, before[one])


async def _watch(signals: AsyncIterator[signal.Signals]) -> None:
    async for number in signals:
        raise InterruptedRunError(f"interrupted by {signal.Signals(number).name}")


async def run_flow(flow: Flow) -> Receipt:
    """Run `flow` to its end.

    Raises:
        StageError: a stage failed; the first real failure, not those that followed from it.
    """
    receipts: list[Receipt] = []
    failures: list[StageError] = []
    try:
        async with anyio.create_task_group() as group:
            for name, job in _jobs(flow, receipts):
                group.start_soon(_guarded, name, job, failures, name=f"stage:{name}")
    except BaseExceptionGroup as errors:
        raise _first_cause(errors, failures) from None
    if not receipts:
        raise TornStreamError("the sink ended without a receipt")
    return receipts[0]


def _jobs(flow: Flow, receipts: list[Receipt]) -> list[tuple[str, Job]]:
    channels = flow.channels
    jobs: list[tuple[str, Job]] = []

    async def source() -> None:
        async with channels[0].sender():
            await flow.source.run(channels[0])

    async def sink() -> None:
        async with channels[-1].receiver():
            receipts.append(await flow.sink.run(channels[-1]))

    def between(stage: Stage[Any, Any], before: Channel[Any], after: Channel[Any]) -> Job:
        async def job() -> None:
            async with before.receiver(), after.sender():
                await stage.run(before, after)

        return job

    jobs.append((flow.source.name, source))
    for stage, before, after in zip(flow.stages, channels, channels[1:], strict=False):
        jobs.append((stage.name, between(stage, before, after)))
    jobs.append((flow.sink.name, sink))
    return jobs


async def _guarded(name: str, job: Job, failures: list[StageError]) -> None:
    try:
        await job()
    except anyio.get_cancelled_exc_class():
        raise
    except BaseException as error:
        cause = first_of(error)
        failures.append(StageError(name, cause))
        raise failures[-1] from error


def _is_echo(error: BaseException) -> bool:
    """True for what a neighbour's failure causes: its channel broke or ended early."""
    return isinstance(
        error, (TornStreamError, anyio.BrokenResourceError, anyio.ClosedResourceError)
    )


def _first_cause(
    errors: BaseExceptionGroup[BaseException], failures: list[StageError]
) -> BaseException:
    """The one error to report: the first failure that is no echo of another."""
    for failure in failures:
        if not _is_echo(failure.cause):
            return failure
    return failures[0] if failures else _wrapped(first_of(errors))


def _wrapped(error: BaseException) -> BaseException:
    return error if isinstance(error, (DumpError, OSError)) else StageError("run", error)
