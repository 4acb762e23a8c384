"""Puts the layers of settings on top of each other, and remembers where each value came from.

Lowest first: built-in defaults, profile, ``--config`` file, environment, ``--set``, command-line
options. A later layer replaces single values, never whole sections. Every value is checked in its
own layer, so an error names the file (or ``environment``, ``--set``, the option) it came from.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from pipeline.config.schema import (
    TARGETS,
    check_value,
    near,
    sections,
    setting_keys,
    unknown,
    value_of,
)
from pipeline.config.settings import Settings
from pipeline.errors import ConfigError

BUILT_IN: Final = "built-in default"
DEFAULT_PROFILE: Final = "default"
_ENV_PREFIX: Final = "DUMPSTREAM_"
_MAX_FILE_BYTES: Final = 1 << 20
_SPOKEN: Final = frozenset({"--compress", "--set"})

_PACKAGE = Path(__file__).parent
# Beside this module in an installed package, at the top of the tree in a checkout.
_PROFILE_FOLDERS: Final = (_PACKAGE / "profiles", _PACKAGE.parents[1] / "config")


class Layer(Struct, frozen=True):
    """Values of one origin.

    Attributes:
        origin: file, ``environment``, ``--set`` or the option, for people.
        values: by dotted key, as TOML typed them or as text.
        typed: True where TOML knows types; False where everything is text.
    """

    origin: str
    values: Mapping[str, object]
    typed: bool = True


class LoadedSettings(Struct, frozen=True):
    """Settings in force and where each value came from."""

    settings: Settings
    origins: dict[str, str]

    def origin(self, key: str) -> str:
        """File, ``environment``, ``--set``, option, or `BUILT_IN`; `key` as ``section.name``."""
        return self.origins.get(key, BUILT_IN)


def load_settings(
    *,
    profile: str | None = None,
    config_file: str | None = None,
    environ: Mapping[str, str] | None = None,
    sets: Iterable[str] = (),
    options: Iterable[Layer] = (),
) -> LoadedSettings:
    """All layers, checked.

    Args:
        profile: name of a shipped profile; `DEFAULT_PROFILE` when None.
        config_file: path of a TOML file.
        environ: the process environment; ``DUMPSTREAM_SECTION__KEY`` is a setting.
        sets: ``section.name=value`` each, later ones win.
        options: one layer for each command-line option that stands for a setting.

    Raises:
        ConfigError: a file is missing or no TOML, a key unknown, a value of the wrong type or out
            of bounds; or two values that the command line gives contradict each other.
    """
    layers = [profile_layer(DEFAULT_PROFILE if profile is None else profile)]
    if config_file is not None:
        layers.append(file_layer(Path(config_file), config_file))
    layers.extend(_environment_layers(environ or {}))
    layers.extend(_set_layer(text) for text in sets)
    loaded = stack([*layers, *options])
    _check_codec(loaded)
    return loaded


def _check_codec(loaded: LoadedSettings) -> None:
    """ELF has no compressed pages: a codec from a file or profile gives way, a spoken one not."""
    codec = loaded.settings.compressor.codec
    origin = loaded.origin("compressor.codec")
    if loaded.settings.dump.format == "elf" and codec != "none" and origin in _SPOKEN:
        problem = f"ELF dumps hold no compressed pages, so {codec} makes no sense with dump.format"
        raise ConfigError(origin, "compressor.codec", problem)


def stack(layers: Iterable[Layer]) -> LoadedSettings:
    """Built-in defaults with `layers` on top, the last one uppermost.

    Raises:
        ConfigError: see `load_settings`.
    """
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        for key, value in layer.values.items():
            values[key] = check_value(layer.origin, key, value, typed=layer.typed)
            origins[key] = layer.origin
    tables: dict[str, Any] = {}
    for key, value in values.items():
        *path, name = key.split(".")
        table = tables
        for each in path:
            table = table.setdefault(each, {})
        table[name] = value
    return LoadedSettings(msgspec.convert(tables, Settings), origins)


def settings_values(settings: Settings) -> dict[str, object]:
    """Every setting as a `Layer` has it: plain values by dotted key, absent where it is None."""
    found = {key: value_of(settings, key) for key in setting_keys()}
    return {key: value for key, value in found.items() if value is not None}


def profile_names() -> list[str]:
    """Names that ``--profile`` takes."""
    return sorted({file.stem for folder in _PROFILE_FOLDERS for file in folder.glob("*.toml")})


def profile_layer(name: str) -> Layer:
    """A shipped profile.

    Raises:
        ConfigError: there is none of that name.
    """
    if name in profile_names():
        folder = next(each for each in _PROFILE_FOLDERS if (each / f"{name}.toml").is_file())
        return file_layer(folder / f"{name}.toml", f"config/{name}.toml")
    if name == DEFAULT_PROFILE:
        return Layer(BUILT_IN, {})  # nothing shipped beside the code, as in a zip file
    known = profile_names()
    problem = f"no such profile{near(name, known)}; there are {', '.join(known) or 'none'}"
    raise ConfigError("--profile", name, problem)


def file_layer(path: Path, shown: str) -> Layer:
    """Values of a TOML file, called `shown` in errors and origins.

    Raises:
        ConfigError: not readable, too large for settings, or no TOML.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE_BYTES + 1)
        if len(text) > _MAX_FILE_BYTES:
            raise ConfigError(shown, "no settings", f"larger than {_MAX_FILE_BYTES} bytes")
        tables = tomllib.loads(text.decode("utf-8"))
    except OSError as error:
        raise ConfigError(shown, "cannot be read", error.strerror or str(error)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(shown, "not TOML", str(error)) from error
    return Layer(shown, dict(_flatten(shown, tables)))


def _flatten(shown: str, tables: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for section, table in tables.items():
        if section == TARGETS:
            yield section, table
            continue
        if not isinstance(table, dict):
            known = list(sections())
            problem = f"not in a section{near(section, known)}; sections are {', '.join(known)}"
            if section in known:
                problem = f"is a section: its settings stand below [{section}]"
            raise ConfigError(shown, section, problem)
        if section not in sections():
            raise ConfigError(shown, section, unknown("section", section, sections()))
        yield from _flatten_table(section, table)


def _flatten_table(path: str, table: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Dotted keys; a table stays a value where the setting of its name is no table."""
    section, _, inside = f"{path}.".partition(".")
    for name, value in table.items():
        if isinstance(value, dict) and any(
            known.startswith(f"{inside}{name}.") for known in sections()[section]
        ):
            yield from _flatten_table(f"{path}.{name}", value)
        else:
            yield f"{path}.{name}", value


def _environment_layers(environ: Mapping[str, str]) -> Iterator[Layer]:
    for variable in sorted(name for name in environ if name.startswith(_ENV_PREFIX)):
        section, found, name = variable.removeprefix(_ENV_PREFIX).lower().partition("__")
        if found:
            values = {f"{section}.{name.replace('__', '.')}": environ[variable]}
            yield Layer("environment", values, typed=False)
        elif section.partition("_")[0] in sections():
            # Meant for us, and ignoring it would be silent; DUMPSTREAM_HOME and such are not ours.
            known = [f"{_ENV_PREFIX}{key.upper().replace('.', '__')}" for key in setting_keys()]
            problem = f"not {_ENV_PREFIX}SECTION__KEY{near(variable, known)}"
            raise ConfigError("environment", variable, problem)


def _set_layer(text: str) -> Layer:
    key, found, value = text.partition("=")
    if not found or "." not in key:
        raise ConfigError("--set", text, "expected section.key=value")
    return Layer("--set", {key.strip(): value.strip()}, typed=False)
