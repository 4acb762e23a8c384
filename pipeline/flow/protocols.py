"""The stage contract: three small protocols, generic in what they take and give.

A stage is a frozen Struct of settings and collaborators; all state of a run lives inside `run`.
The runner opens the channels, owns their ends, and is the only one to unwrap exception groups.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from pipeline.flow.channel import Inbox, Outbox, Weighted
from pipeline.flow.items import HeadOrder, Receipt

T_contra = TypeVar("T_contra", bound=Weighted, contravariant=True)
T_co = TypeVar("T_co", bound=Weighted, covariant=True)


class Source(Protocol[T_co]):
    """Starts a flow."""

    @property
    def name(self) -> str: ...

    async def run(self, outbox: Outbox[T_co]) -> None:
        """Send everything, then `EndOfDump`, then return.

        Raises:
            DumpError: what went wrong, in the stage's own terms.
        """


class Stage(Protocol[T_contra, T_co]):
    """Turns one kind of item into another, and passes `EndOfDump` on."""

    @property
    def name(self) -> str: ...

    async def run(self, inbox: Inbox[T_contra], outbox: Outbox[T_co]) -> None:
        """Receive until `EndOfDump`, and pass it on last.

        Raises:
            TornStreamError: the inbox closed without `EndOfDump`.
        """


class Sink(Protocol[T_contra]):
    """Ends a flow. What it wrote gets its final name in `commit` only."""

    @property
    def name(self) -> str: ...

    @property
    def head_order(self) -> HeadOrder: ...

    async def open(self) -> None:
        """Claim the target. Refusals (exists, no directory, read-only) happen here.

        Raises:
            SinkError: with the target's name and the reason.
        """

    async def run(self, inbox: Inbox[T_contra]) -> Receipt:
        """Take an `Outline`, then chunks until `EndOfDump`; make it durable as the settings say.

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
