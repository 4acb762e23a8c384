"""Waking a task that waits for something to change, at no cost while nobody waits."""

from __future__ import annotations

import anyio


class Wakeup:
    """Like an event that is new after each `wake`; one event loop.

    Channels and slots change for every batch, and mostly nobody waits: an `anyio.Event` for each
    change was a tenth of what the event loop did.
    """

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: anyio.Event | None = None

    def wake(self) -> None:
        """Let everybody who waits now look again."""
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait(self) -> None:
        """Until the next `wake`; look before, and again afterwards."""
        if self._event is None:
            self._event = anyio.Event()
        await self._event.wait()
