"""Verify a dump where it is kept, against its manifest, without downloading what is not needed.

A store that keeps checksums proves every byte by itself: they are compared with those that the
sender recorded. Otherwise pieces are read and hashed: the head, the end and a few between them, or
all of them when that is asked for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import anyio

from pipeline.errors import FormatError, first_of
from pipeline.memory.sizes import show_count, show_size
from stages.sink.digest import Piece
from stages.sink.manifest import Manifest, parse_manifest, wrong_pieces
from stages.sink.read_back import choose_samples
from stages.sink.retry import RetryPolicy, retry
from stages.sink.stored import Looks, StoredDump

if TYPE_CHECKING:
    from pipeline.config.targets import NetSettings

T = TypeVar("T")

_MAX_LISTED: Final = 20


@dataclass(slots=True)
class StoredFindings:
    """What was seen. It failed when there is any problem.

    Attributes:
        proof: what shows that the bytes are those that were sent, in words.
        n_read: bytes that were downloaded for it.
    """

    target: str
    n_bytes: int = 0
    n_read: int = 0
    proof: str = ""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    def lines(self) -> Iterator[str]:
        """For people."""
        yield from self.problems[:_MAX_LISTED]
        if len(self.problems) > _MAX_LISTED:
            yield f"... and {show_count(len(self.problems) - _MAX_LISTED, 'more problem')}"
        yield from self.notes
        verdict = f"ok, {self.proof}" if self.ok else "NOT OK"
        yield (
            f"{self.target}: {verdict}; {show_size(self.n_bytes)}, "
            f"{show_size(self.n_read)} of it read"
        )


async def verify_stored(dump: StoredDump, net: NetSettings, *, full: bool) -> StoredFindings:
    """Check `dump` against its manifest; closes it.

    Args:
        dump: where it is kept.
        net: retries and how much is read at once.
        full: read every byte, whatever the store's checksums say.

    Raises:
        SinkError: the store cannot be reached or does not let us look.
    """
    found = StoredFindings(dump.target)
    check = _Check(dump, net, found)
    try:
        await check.run(full=full)
    except BaseExceptionGroup as errors:
        raise first_of(errors) from None
    finally:
        with anyio.move_on_after(5, shield=True):
            await dump.close()
    return found


class _Check:
    """One verification."""

    def __init__(self, dump: StoredDump, net: NetSettings, found: StoredFindings) -> None:
        self._dump = dump
        self._policy = RetryPolicy.of(net)
        self._at_once = net.concurrency
        self._found = found

    async def run(self, *, full: bool) -> None:
        found = self._found
        looks = await self._try(self._dump.look)
        if looks is None:
            found.problems.append(f"{self._dump.target}: there is no such dump")
            return
        found.n_bytes = looks.size
        manifest = await self._manifest()
        if manifest is None:
            return
        if looks.size != manifest.size:
            found.problems.append(f"{looks.size} bytes are stored, {manifest.size} were sent")
            return
        proof = self._compare_marks(looks, manifest)
        if full:
            proof = "all of it read and hashed"
            await self._read(manifest.pieces())
        elif not proof:
            samples = choose_samples(manifest.pieces(), "samples")
            await self._read(samples)
            pieces = show_count(len(manifest.pieces()), "piece")
            proof = f"{len(samples)} of {pieces} read and hashed"
            found.notes.append("the store keeps no checksums; --full reads every byte")
        found.proof = proof

    async def _manifest(self) -> Manifest | None:
        data = await self._try(self._dump.read_manifest)
        if data is None:
            self._found.problems.append("there is no manifest next to it to compare with")
            return None
        try:
            return parse_manifest(data)
        except FormatError as error:
            self._found.problems.append(str(error))
            return None

    def _compare_marks(self, looks: Looks, manifest: Manifest) -> str:
        """What the store's checksums prove, empty when nothing; a wrong one is a problem."""
        proof = ""
        for name, wanted in manifest.stored.items():
            seen = looks.marks.get(name)
            if seen is None or (name == "etag" and "-" not in seen):
                continue  # a store may call the object's ETag what it likes
            # Some servers leave out the number of parts.
            if seen.partition("-")[0] != wanted.partition("-")[0]:
                self._found.problems.append(f"the store's {name} is {seen}, {wanted} was sent")
            elif not proof:
                proof = f"the store's own {name} of every part"
        return proof

    async def _read(self, pieces: list[Piece]) -> None:
        limiter = anyio.CapacityLimiter(self._at_once)
        async with anyio.create_task_group() as group:
            for piece in pieces:
                await limiter.acquire_on_behalf_of(piece)
                group.start_soon(self._check_piece, piece, limiter)

    async def _check_piece(self, piece: Piece, limiter: anyio.CapacityLimiter) -> None:
        async for _ in wrong_pieces([piece], self._read_range):
            self._found.problems.append(
                f"{piece.length} bytes at offset {piece.offset:#x} are not what was sent"
            )
        limiter.release_on_behalf_of(piece)

    async def _read_range(self, offset: int, length: int) -> bytes:
        data = await self._try(partial(self._dump.read, offset, length))
        self._found.n_read += len(data)
        return data

    async def _try(self, attempt: Callable[[], Awaitable[T]]) -> T:
        return await retry(attempt, self._policy)
