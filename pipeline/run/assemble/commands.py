"""What the commands beside `dump` run, each loaded when its command is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

    from pipeline.config.settings import Settings


def inspector(name: str) -> ModuleType:
    """The module of `stages.inspect` that answers the command `name`."""
    from importlib import import_module

    return import_module(f"stages.inspect.{name}")


def stored_dump(target: str, settings: Settings) -> Any:
    """The dump at `target`, to be verified where it is."""
    from stages.sink.stored import find_stored

    return find_stored(target, settings)


async def measure_target(target: str, settings: Settings) -> Any:
    """Speed of and room at `target`, as far as that can be told."""
    from stages.sink.measure import measure_target

    return await measure_target(target, settings)


def transport() -> ModuleType:
    """What `receive` runs."""
    from importlib import import_module

    return import_module("stages.transport.receive")


def crypt() -> ModuleType:
    """What `keygen` and `decrypt` run."""
    from importlib import import_module

    return import_module("stages.crypt.commands")
