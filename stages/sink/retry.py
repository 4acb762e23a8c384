"""Tries again after failures that may pass: exponential back-off, full jitter, one deadline.

Full jitter (a delay drawn from zero to the bound, instead of near the bound) spreads a fleet that
lost the same server evenly over time, so that the server is not met by all of it at once again.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import anyio

from pipeline.errors import SinkError

if TYPE_CHECKING:
    from pipeline.config.targets import NetSettings

T = TypeVar("T")


class TransientError(SinkError):
    """The target could not be reached or was busy; another attempt may succeed.

    Args:
        problem: one line that names the target.
        retry_after_s: the least wait, when the server says one.
    """

    def __init__(self, problem: str, retry_after_s: float | None = None) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(problem)


def is_transient(error: Exception) -> bool:
    """The usual answer to "try again?"."""
    return isinstance(error, TransientError)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long failures are borne.

    Attributes:
        first_delay_s: bound of the first wait; doubles with every failure.
        max_delay_s: bound of the longest wait.
        deadline_s: seconds after the first attempt began beyond which no other one is begun.
    """

    first_delay_s: float
    max_delay_s: float
    deadline_s: float

    @classmethod
    def of(cls, net: NetSettings) -> RetryPolicy:
        return cls(net.retry_first_s, net.retry_most_s, net.retry_deadline_s)

    def bound_s(self, n_failures: int) -> float:
        """Longest wait after the `n_failures`-th failure, counted from 1."""
        # 2**60 times any delay is far past every bound, and floats stay finite.
        return float(min(self.max_delay_s, self.first_delay_s * 2 ** min(n_failures - 1, 60)))


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed attempt that is followed by another; for logs and counters."""

    error: Exception
    n_failures: int
    delay_s: float


async def retry(
    attempt: Callable[[], Awaitable[T]],
    policy: RetryPolicy,
    *,
    is_retryable: Callable[[Exception], bool] = is_transient,
    on_failure: Callable[[Failure], None] | None = None,
    draw: Callable[[float, float], float] = random.uniform,
) -> T:
    """The result of the first attempt that succeeds.

    An attempt is never cut short: it must have time limits of its own. A `TransientError` of a
    server that says when to come back sets the least wait.

    Args:
        attempt: called anew for each attempt.
        policy: the waits and the deadline.
        is_retryable: whether another attempt may succeed after this error.
        on_failure: told before each wait.
        draw: uniform random number between two bounds.

    Raises:
        Exception: what the last attempt raised: not retryable, or no time is left.
    """
    give_up_at = anyio.current_time() + policy.deadline_s
    n_failures = 0
    while True:
        try:
            return await attempt()
        except Exception as error:
            n_failures += 1
            least = (error.retry_after_s or 0.0) if isinstance(error, TransientError) else 0.0
            delay = max(least, draw(0.0, policy.bound_s(n_failures)))
            if not is_retryable(error) or anyio.current_time() + delay >= give_up_at:
                raise
            if on_failure is not None:
                on_failure(Failure(error, n_failures, delay))
        await anyio.sleep(delay)
