"""Lab tests whose packages the mirror cannot give are skipped, and say so."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.lab.commands import MirrorError


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """A mirror that contradicts itself is nobody's defect here; all else fails as it should."""
    try:
        return (yield)
    except MirrorError as error:
        pytest.skip(str(error))
