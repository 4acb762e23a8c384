"""Waking those who wait, and nobody else."""

from __future__ import annotations

import anyio
import pytest
from anyio import wait_all_tasks_blocked

from pipeline.flow.wakeup import Wakeup


async def test_everybody_who_waits_is_woken() -> None:
    """One wake ends all waits."""
    wakeup, woken = Wakeup(), []

    async def wait(name: str) -> None:
        await wakeup.wait()
        woken.append(name)

    async with anyio.create_task_group() as group:
        group.start_soon(wait, "a")
        group.start_soon(wait, "b")
        await wait_all_tasks_blocked()
        wakeup.wake()
    assert sorted(woken) == ["a", "b"]


async def test_a_wake_before_the_wait_is_none() -> None:
    """Whoever waits has looked first; an old wake would make it spin."""
    wakeup = Wakeup()
    wakeup.wake()
    with pytest.raises(TimeoutError):
        with anyio.fail_after(0.01):
            await wakeup.wait()


async def test_a_cancelled_wait_leaves_the_others_waiting() -> None:
    """They are woken by the next wake, not by the end of a neighbour."""
    wakeup, woken = Wakeup(), []

    async def wait() -> None:
        await wakeup.wait()
        woken.append(1)

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        with anyio.move_on_after(0.01):
            await wakeup.wait()
        assert woken == []
        wakeup.wake()
    assert woken == [1]
