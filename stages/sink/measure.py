"""What can be learnt of a target before a dump: how fast it takes bytes, how much room it has."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread

from pipeline.memory.sizes import show_size
from stages.sink.parts import Part
from stages.sink.retry import RetryPolicy, retry

if TYPE_CHECKING:
    from pipeline.config.settings import Settings
    from pipeline.config.targets import NetSettings
    from stages.sink.part_store import PartStore

# Each module offers make_probe(url: str, settings: Settings) -> PartStore.
_SCHEMES: Final = {"az": "stages.sink.azure", "s3": "stages.sink.s3"}
_ROUNDS: Final = 2
"""Parts of each connection: the first also pays for connecting."""


@dataclass(frozen=True, slots=True)
class TargetFacts:
    """None where it can't be told without writing a dump."""

    target: str
    bytes_per_s: float | None = None
    free_bytes: int | None = None

    def lines(self) -> Iterator[str]:
        """For people."""
        if self.free_bytes is not None:
            yield f"{self.target}: {show_size(self.free_bytes)} free"
        if self.bytes_per_s is not None:
            yield f"{self.target}: takes {show_size(self.bytes_per_s)} a second"
        if self.free_bytes is None and self.bytes_per_s is None:
            yield f"{self.target}: neither speed nor room can be told beforehand"


async def measure_target(target: str, settings: Settings) -> TargetFacts:
    """What there is to know of `target`, a path or a URL.

    Object stores are sent some MiB of random bytes, which never become visible.

    Raises:
        SinkError: the store cannot be reached, or does not let us write.
        UsageError: the URL names nothing.
    """
    scheme, found, _ = target.partition("://")
    if not found:
        return TargetFacts(target, free_bytes=await anyio.to_thread.run_sync(_free, Path(target)))
    name = _SCHEMES.get(scheme.lower())
    if name is None:
        return TargetFacts(target)
    store: PartStore = import_module(name).make_probe(target, settings)
    try:
        speed = await _measure(store, settings.net)
    finally:
        with anyio.move_on_after(5, shield=True):
            await store.close()
    return TargetFacts(store.target, bytes_per_s=speed)


def _free(path: Path) -> int | None:
    """Bytes that may still be written where `path` would be."""
    folder = path if path.is_dir() else path.absolute().parent
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


async def _measure(store: PartStore, net: NetSettings) -> float:
    """Bytes a second with as many connections as a dump would use."""
    policy = RetryPolicy.of(net)
    await retry(partial(store.open, overwrite=True), policy)
    await retry(store.begin, policy)
    try:
        return await _send_rounds(store, net, policy)
    finally:
        with anyio.move_on_after(10, shield=True):
            await store.abort()


async def _send_rounds(store: PartStore, net: NetSettings, policy: RetryPolicy) -> float:
    data = memoryview(secrets.token_bytes(store.limits.least_bytes))
    seal = await anyio.to_thread.run_sync(store.seal, data)

    async def connection(first: int) -> None:
        for number in range(first, first + _ROUNDS):
            part = Part(number, 0, len(data))
            await retry(partial(store.put_part, part, data, seal), policy)

    started = anyio.current_time()
    async with anyio.create_task_group() as group:
        for index in range(net.concurrency):
            group.start_soon(connection, index * _ROUNDS + 1)
    return len(data) * net.concurrency * _ROUNDS / (anyio.current_time() - started)
