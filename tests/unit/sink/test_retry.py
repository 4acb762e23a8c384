"""Retries and manners: when to try again, for how long, and how fast."""

from __future__ import annotations

import anyio
import pytest

from pipeline.errors import SinkError
from stages.sink.retry import Failure, RetryPolicy, TransientError, retry
from stages.sink.throttle import TokenBucket, start_jitter

POLICY = RetryPolicy(first_delay_s=0.001, max_delay_s=0.004, deadline_s=5)


class Flaky:
    """Fails with each of `errors` in turn, then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.n_attempts = 0

    async def __call__(self) -> str:
        self.n_attempts += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


async def test_transient_errors_are_borne() -> None:
    """Each failure is reported with its count, and the result of the good attempt comes back."""
    flaky = Flaky(TransientError("busy"), TransientError("busy"))
    seen: list[Failure] = []

    assert await retry(flaky, POLICY, on_failure=seen.append) == "done"
    assert [failure.n_failures for failure in seen] == [1, 2]


async def test_final_errors_are_not_tried_again() -> None:
    """A refusal ends it at once."""
    flaky = Flaky(SinkError("no such bucket"))

    with pytest.raises(SinkError, match="no such bucket"):
        await retry(flaky, POLICY)

    assert flaky.n_attempts == 1


async def test_deadline_ends_with_the_last_error() -> None:
    """When no time is left for another wait, the last error is what the caller sees."""
    flaky = Flaky(*(TransientError(f"busy {index}") for index in range(1000)))
    policy = RetryPolicy(first_delay_s=0.02, max_delay_s=0.02, deadline_s=0.1)

    with pytest.raises(TransientError, match="busy"):
        await retry(flaky, policy, draw=lambda _low, high: high)

    assert flaky.n_attempts in (4, 5)


async def test_server_sets_the_least_wait() -> None:
    """A server that says when to come back is not asked before."""
    seen: list[Failure] = []

    await retry(
        Flaky(TransientError("slow down", retry_after_s=0.05)), POLICY, on_failure=seen.append
    )

    assert seen[0].delay_s == 0.05


def test_bound_doubles_up_to_the_most() -> None:
    """Back-off is exponential and bounded, also after very many failures."""
    policy = RetryPolicy(first_delay_s=1, max_delay_s=20, deadline_s=1)

    assert [policy.bound_s(n) for n in (1, 2, 3, 5, 6, 10_000)] == [1, 2, 4, 16, 20, 20]


async def test_waits_are_drawn_from_zero() -> None:
    """Full jitter: the lower bound of a wait is 0, the upper one doubles."""
    drawn: list[tuple[float, float]] = []

    def draw(low: float, high: float) -> float:
        drawn.append((low, high))
        return low

    await retry(Flaky(*[TransientError("x")] * 3), POLICY, draw=draw)

    assert drawn == [(0, 0.001), (0, 0.002), (0, 0.004)]


async def test_senders_share_one_rate() -> None:
    """Four senders together move no more than the rate and the allowed burst."""
    bucket = TokenBucket(1_000_000)
    started = anyio.current_time()

    async def sender() -> None:
        for _ in range(10):
            await bucket.take(10_000)

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(sender)

    assert anyio.current_time() - started >= 0.4 - 0.1


async def test_no_rate_is_no_wait() -> None:
    """Without a limit nothing sleeps."""
    started = anyio.current_time()

    await TokenBucket(0).take(1 << 40)

    assert anyio.current_time() - started < 0.05


async def test_idle_time_is_not_saved_up() -> None:
    """After a pause the rate holds again; only a tenth of a second's worth may burst."""
    bucket = TokenBucket(1_000_000)
    await bucket.take(1)
    await anyio.sleep(0.3)
    started = anyio.current_time()

    for _ in range(10):
        await bucket.take(30_000)

    assert anyio.current_time() - started >= 0.3 - 0.11


async def test_start_jitter_draws_up_to_its_bound() -> None:
    """The start is scattered between nothing and the setting."""
    drawn: list[tuple[float, float]] = []

    def draw(low: float, high: float) -> float:
        drawn.append((low, high))
        return 0.0

    await start_jitter(30.0, draw)
    await start_jitter(0.0, draw)

    assert drawn == [(0.0, 30.0)]
