"""A whole kernel in 64 MiB, built once, and copies of it to spoil."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stages.demo.build import DemoFacts, build_demo_image


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoFacts:
    """An image that nobody writes to."""
    return build_demo_image(tmp_path_factory.mktemp("demo") / "vmcore")


@pytest.fixture
def spoilt(demo: DemoFacts, tmp_path: Path) -> Path:
    """A copy of the image for the test to write to, in a folder without anything else."""
    folder = tmp_path / "source"
    folder.mkdir()
    return Path(shutil.copy(demo.path, folder / "vmcore"))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where a dump may go: a folder of its own tells what a run leaves behind."""
    folder = tmp_path / "target"
    folder.mkdir()
    return folder / "dump"
