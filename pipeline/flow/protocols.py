"""The stage contract: three small protocols, generic in what they take and give.

A stage is a frozen dataclass of settings and collaborators; all state of a run lives inside `run`.
The runner opens the channels, owns their ends, and is the only one to unwrap exception groups.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from pipeline.flow.channel import Inbox, Outbox
from pipeline.flow.items import HeadOrder, Receipt

T_in = TypeVar("T_in")
T_out = TypeVar("T_out")


class Source(Protocol[T_out]):
    """Starts a flow."""

    name: str

    async def run(self, outbox: Outbox[T_out]) -> None:
        """Send everything, then `EndOfDump`, then return.

        Raises:
            DumpError: what went wrong, in the stage's own terms.
        """


class Stage(Protocol[T_in, T_out]):
    """Turns one kind of item into another, and passes `EndOfDump` on."""

    name: str

    async def run(self, inbox: Inbox[T_in], outbox: Outbox[T_out]) -> None:
        """Receive until `EndOfDump`, and pass it on last.

        Raises:
            TornStreamError: the inbox closed without `EndOfDump`.
        """


class Sink(Protocol[T_in]):
    """Ends a flow. What it wrote gets its final name in `commit` only."""

    name: str
    head_order: HeadOrder

    async def open(self) -> None:
        """Claim the target. Refusals (exists, no directory, read-only) happen here.

        Raises:
            SinkError: with the target's name and the reason.
        """

    async def run(self, inbox: Inbox[T_in]) -> Receipt:
        """Take an `Outline`, then write chunks until `EndOfDump`; make it durable as the settings say.

        Raises:
            SinkError: the target failed.
            TornStreamError: the inbox closed without `EndOfDump`.
        """

    async def commit(self) -> None:
        """Give the output its final name. The runner calls it after every task ended well."""

    async def abort(self) -> str | None:
        """Undo, or leave what is usable. Never raises; must not need a running group.

        Returns:
            Where a usable incomplete dump is, None when nothing was left.
        """
