"""The byte-bounded channel: backpressure, ends, and statistics."""

from __future__ import annotations

from dataclasses import dataclass

import anyio
import pytest
from anyio import wait_all_tasks_blocked

from pipeline.flow.channel import Channel


@dataclass
class Parcel:
    n_bytes: int


class TestBackpressure:
    async def test_sender_stops_at_the_byte_budget(self) -> None:
        """With a budget of 10 and parcels of 4, exactly two are sent before the sender waits."""
        channel = Channel[Parcel]("test", 10)
        sent = 0

        async def send() -> None:
            nonlocal sent
            for _ in range(5):
                await channel.send(Parcel(4))
                sent += 1

        async with anyio.create_task_group() as group:
            group.start_soon(send)
            await wait_all_tasks_blocked()
            assert sent == 2
            await channel.receive()
            await wait_all_tasks_blocked()
            assert sent == 3
            group.cancel_scope.cancel()

        assert channel.stats.peak_bytes == 8
        assert channel.stats.send_blocked_s > 0

    async def test_item_larger_than_the_budget_passes_alone(self) -> None:
        """A parcel above the budget is accepted when the channel is empty, and only then."""
        channel = Channel[Parcel]("test", 10)
        await channel.send(Parcel(100))

        with anyio.move_on_after(0.01) as scope:
            await channel.send(Parcel(1))

        assert scope.cancelled_caught
        assert (await channel.receive()).n_bytes == 100

    async def test_cancelled_sender_leaves_nothing_behind(self) -> None:
        """A send that is cancelled while it waits adds neither item nor weight."""
        channel = Channel[Parcel]("test", 4)
        await channel.send(Parcel(4))
        with anyio.move_on_after(0.01):
            await channel.send(Parcel(3))

        assert channel.fill_bytes == 4
        assert channel.stats.n_items == 1


class TestEnds:
    async def test_receiver_drains_before_the_end(self) -> None:
        """What was sent before the close is received after it, then the stream ends."""
        channel = Channel[Parcel]("test", 100)
        async with channel.sender():
            await channel.send(Parcel(1))
            await channel.send(Parcel(2))

        assert [item.n_bytes async for item in channel] == [1, 2]
        with pytest.raises(anyio.EndOfStream):
            await channel.receive()

    async def test_blocked_sender_learns_that_the_receiver_left(self) -> None:
        """A full channel whose receiver goes away wakes its sender with an error."""
        channel = Channel[Parcel]("test", 1)
        await channel.send(Parcel(1))

        async def leave() -> None:
            await wait_all_tasks_blocked()
            async with channel.receiver():
                pass

        async with anyio.create_task_group() as group:
            group.start_soon(leave)
            with pytest.raises(anyio.BrokenResourceError):
                await channel.send(Parcel(1))

    async def test_closed_ends_refuse(self) -> None:
        """Using an end after closing it is the caller's mistake and says so."""
        channel = Channel[Parcel]("test", 1)
        channel.close_sender()
        with pytest.raises(anyio.ClosedResourceError):
            await channel.send(Parcel(1))
        channel.close_receiver()
        with pytest.raises(anyio.ClosedResourceError):
            await channel.receive()


def test_capacity_must_be_positive() -> None:
    """A channel without room is refused when it is made."""
    with pytest.raises(ValueError, match="not positive"):
        Channel[Parcel]("test", 0)
