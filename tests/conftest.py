"""Fixtures for every test: one async backend, and lab tests skipped where there is no lab."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# The machine is shared and slow at times: a property is about values, not about milliseconds.
settings.register_profile("dumpstream", deadline=None)
settings.load_profile("dumpstream")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """asyncio in debug mode: slow callbacks and forgotten awaits show up as warnings."""
    return "asyncio", {"debug": True}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Lab tests run where DUMPSTREAM_LAB is set (CI does) or where they are asked for with -m."""
    if os.environ.get("DUMPSTREAM_LAB") or "lab" in (config.option.markexpr or ""):
        return
    skip = pytest.mark.skip(reason="lab test: set DUMPSTREAM_LAB=1 to boot kernels and build it")
    for item in items:
        if item.get_closest_marker("lab"):
            item.add_marker(skip)
