"""The version, from the installed package, or from the tree it runs in."""

from __future__ import annotations

from pathlib import Path


def own_version() -> str:
    from importlib import metadata

    try:
        return metadata.version("dumpstream")
    except metadata.PackageNotFoundError:
        return f"{_checkout_version()} (not installed)"


def _checkout_version() -> str:
    import tomllib

    try:
        text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
        return str(tomllib.loads(text)["project"]["version"])
    except (OSError, KeyError, ValueError):
        return "unknown"
