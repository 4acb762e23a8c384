"""Which settings exist, and whether a value fits one: `pipeline.config.settings` read as data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from operator import attrgetter
from types import MappingProxyType
from typing import Final, get_args

import msgspec
from msgspec import Meta, Struct

from pipeline.config.settings import Settings
from pipeline.config.targets import TargetEntry
from pipeline.errors import ConfigError
from pipeline.memory.sizes import parse_size

TARGETS: Final = "targets"
"""The only table of settings that is a list: ``[[targets]]``."""
_MAX_SHOWN: Final = 60


@cache
def sections() -> Mapping[str, Mapping[str, object]]:
    """Type of each setting, by section and name, in the order they are declared.

    A setting of a table inside a section has a dotted name: ``latency.per_request_ms``.
    """
    return MappingProxyType(
        {
            section.name: MappingProxyType(dict(_named_types(section.type)))
            for section in msgspec.structs.fields(Settings)
            if section.name != TARGETS
        }
    )


def _named_types(table: type[Struct]) -> Iterator[tuple[str, object]]:
    for field in msgspec.structs.fields(table):
        if isinstance(field.type, type) and issubclass(field.type, Struct):
            inner = _named_types(field.type)
            yield from ((f"{field.name}.{name}", kind) for name, kind in inner)
        else:
            yield field.name, field.type


def value_of(settings: Struct, key: str) -> object:
    """The value at dotted `key` of `Settings`, `Resolved`, or anything shaped like them."""
    return attrgetter(key)(settings)


def setting_keys() -> list[str]:
    """Every dotted key, in the order of the sections."""
    return [f"{section}.{name}" for section, names in sections().items() for name in names]


def check_value(origin: str, key: str, value: object, *, typed: bool) -> object:
    """`value` as its setting's type; sizes as bytes.

    Args:
        origin: where the value comes from, for the error.
        key: dotted.
        value: as TOML typed it, or text.
        typed: False when everything comes as text, as in the environment.

    Raises:
        ConfigError: no such key, wrong type, or out of bounds.
    """
    if key == TARGETS:
        return _check_targets(origin, value)
    section, _, name = key.partition(".")
    names = sections().get(section)
    if names is None:
        raise ConfigError(origin, key, unknown("section", section, sections()))
    if name not in names:
        raise ConfigError(origin, key, unknown(f"setting in [{section}]", name, names))
    wanted = names[name]
    try:
        given = value
        if _takes_size(wanted) and isinstance(given, str) and given != "auto":
            given = parse_size(given)
        return msgspec.convert(given, wanted, strict=typed)
    except (msgspec.ValidationError, ValueError, OverflowError) as error:
        problem = f"expected {describe(wanted)}, got {_short(value)}"
        raise ConfigError(origin, key, problem) from error


def _check_targets(origin: str, value: object) -> object:
    try:
        msgspec.convert(value, tuple[TargetEntry, ...])
    except msgspec.ValidationError as error:
        wanted = "[[targets]] tables with url, and deadline_s and what if wanted"
        raise ConfigError(origin, TARGETS, f"{error}; expected {wanted}") from error
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The problem in words, with a near miss when there is one."""
    names = list(known)
    return f"no such {what}{near(name, names)}; there are {', '.join(names)}"


def near(name: str, known: Iterable[str]) -> str:
    """``, did you mean X?`` when something in `known` looks like `name`, else nothing."""
    import difflib

    close = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {close[0]}?" if close else ""


def describe(wanted: object) -> str:
    """A setting's type in words: ``a whole number from 1 to 256 or 'auto'``."""
    parts = [meta.description or "" for meta in _metas(wanted)]
    parts += [repr(choice) for choice in _choices(wanted)]
    parts += [words for kind, words in _PLAIN.items() if kind in (wanted, *get_args(wanted))]
    *most, last = dict.fromkeys(parts)
    return f"{', '.join(most)} or {last}" if most else last


_PLAIN: Final[dict[object, str]] = {bool: "true or false", str: "text"}


def _choices(wanted: object) -> Iterator[str]:
    for part in (wanted, *get_args(wanted)):
        yield from (each for each in (part, *get_args(part)) if isinstance(each, str))


def _metas(wanted: object) -> Iterator[Meta]:
    for part in (wanted, *get_args(wanted)):
        yield from (meta for meta in getattr(part, "__metadata__", ()) if isinstance(meta, Meta))


def is_size(key: str) -> bool:
    """True when the setting at dotted `key`, which exists, is a number of bytes."""
    section, _, name = key.partition(".")
    return _takes_size(sections()[section][name])


def _takes_size(wanted: object) -> bool:
    return any((meta.extra or {}).get("size") for meta in _metas(wanted))
