"""An ordered list of targets: which is tried next when one fails, and who has the dump in the end.

`TargetPlan` decides and does nothing; `dump_to_first` does what it decides. A target that can start
over (`RestartableSinkError`) is tried again while its deadline allows; any other failure of a
target, and the end of its deadline, moves on to the next. Failures that are not the target's, such
as an unreadable image, end it at once: another target would not help.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import anyio

from pipeline.errors import (
    ConfigError,
    RestartableSinkError,
    SinkError,
    StageError,
    UnsupportedError,
    UsageError,
)
from pipeline.flow.items import Receipt
from pipeline.obs.log import log_event

if TYPE_CHECKING:
    from pipeline.config.targets import TargetEntry

_FIRST_WAIT_S: Final = 1.0
_MOST_WAIT_S: Final = 60.0


class TargetDeadlineError(SinkError):
    """A target did not have the dump when its time was up."""


@dataclass(frozen=True, slots=True)
class TargetFailure:
    """Why a target has no dump; `target` shows nothing secret."""

    target: str
    reason: str


@dataclass(frozen=True, slots=True)
class Step:
    """What to do next.

    Attributes:
        wait_s: before it is begun.
        most_s: what is left of its deadline, None for no limit.
    """

    entry: TargetEntry
    wait_s: float
    most_s: float | None


@dataclass(frozen=True, slots=True)
class FallbackReceipt:
    """Which target has what, and why those before it have nothing."""

    entry: TargetEntry
    receipt: Receipt
    failures: tuple[TargetFailure, ...]


class TargetPlan:
    """The list, the one that is being tried, and what has failed; pure.

    Times are seconds of any clock that does not go backwards.
    """

    def __init__(self, entries: Sequence[TargetEntry], *, restart_s: float) -> None:
        """`restart_s` bounds how long a target without a deadline may start over."""
        if not entries:
            raise ValueError("a plan needs a target")
        self._entries = tuple(entries)
        self._restart_s = restart_s
        self._index = 0
        self._n_restarts = 0
        self._started_at: float | None = None
        self.failures: list[TargetFailure] = []

    @property
    def entry(self) -> TargetEntry:
        """The target that is being tried."""
        return self._entries[self._index]

    def start(self, now_s: float) -> Step:
        """The first step; the first target's deadline runs from now on."""
        self._started_at = now_s
        return Step(self.entry, 0.0, self.entry.deadline_s)

    def next_after(self, error: BaseException, now_s: float) -> Step | None:
        """What to do after `error`; None when nothing is left, or nothing would help."""
        if not is_target_failure(error):
            return None
        self.failures.append(TargetFailure(show_target(self.entry.url), _reason(error)))
        again = self._again(error, now_s)
        if again is not None:
            return again
        if self._index + 1 == len(self._entries):
            return None
        self._index += 1
        self._n_restarts = 0
        return self.start(now_s)

    def _again(self, error: BaseException, now_s: float) -> Step | None:
        """The same target once more, if it can start over and there is time."""
        if self._started_at is None or not isinstance(_cause(error), RestartableSinkError):
            return None
        bound = self._restart_s if self.entry.deadline_s is None else self.entry.deadline_s
        left = self._started_at + bound - now_s
        wait = min(_FIRST_WAIT_S * 2**self._n_restarts, _MOST_WAIT_S)
        if wait >= left:
            return None
        self._n_restarts += 1
        return Step(self.entry, wait, None if self.entry.deadline_s is None else left - wait)

    def all_failed(self) -> SinkError:
        """The error when no target took the dump."""
        reasons = [f"{failure.target}: {failure.reason}" for failure in self.failures]
        return SinkError(f"no target took the dump: {'; '.join(dict.fromkeys(reasons))}")


async def dump_to_first(
    plan: TargetPlan,
    attempt: Callable[[TargetEntry], Awaitable[Receipt]],
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
) -> FallbackReceipt:
    """Try the plan's targets until one has the dump.

    Args:
        plan: fresh.
        attempt: makes the whole dump for an entry, commit included; undoes it when it fails or is
            cancelled.
        sleep: waits between two attempts.

    Raises:
        SinkError: every target failed, and why.
        BaseException: what `attempt` raised, when it was not the target's failure.
    """
    step = plan.start(anyio.current_time())
    while True:
        await sleep(step.wait_s)
        try:
            receipt = await _in_time(attempt, step)
        except Exception as error:
            following = plan.next_after(error, anyio.current_time())
            if following is None:
                if len(plan.failures) < 2 or not is_target_failure(error):
                    raise
                raise plan.all_failed() from error
            _say(plan, following)
            step = following
        else:
            return FallbackReceipt(step.entry, receipt, tuple(plan.failures))


async def _in_time(attempt: Callable[[TargetEntry], Awaitable[Receipt]], step: Step) -> Receipt:
    with anyio.move_on_after(step.most_s) as scope:
        return await attempt(step.entry)
    assert scope.cancelled_caught
    raise TargetDeadlineError(f"not done within its deadline of {step.entry.deadline_s:g} s")


def _say(plan: TargetPlan, following: Step) -> None:
    failed = plan.failures[-1]
    log_event(
        "target_failed",
        "error",
        target=failed.target,
        reason=failed.reason,
        next=show_target(following.entry.url),
        what=following.entry.what,
        wait_s=following.wait_s,
    )


def is_target_failure(error: BaseException) -> bool:
    """True when another target may do better."""
    if isinstance(error, StageError):
        return error.stage == "sink" and isinstance(_cause(error), (SinkError, OSError))
    return isinstance(error, (SinkError, UnsupportedError, UsageError, ConfigError))


def _cause(error: BaseException) -> BaseException:
    while isinstance(error, StageError):
        error = error.cause
    return error


def _reason(error: BaseException) -> str:
    return str(_cause(error)) or type(error).__name__


def show_target(url: str) -> str:
    """`url` without what may be secret: user, password, query."""
    if "://" not in url:
        return url
    try:
        parts = urlsplit(url)
    except ValueError:
        return f"{url.partition('://')[0]}://..."
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
