"""Demo images, each built once a session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from stages.demo.build import DemoFacts, build_demo_image

DemoMaker = Callable[..., DemoFacts]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoMaker:
    """Builds the image with the arguments of `build_demo_image`, or hands out the one there is."""
    folder = tmp_path_factory.mktemp("demo")
    made: dict[str, DemoFacts] = {}

    def make(**options: Any) -> DemoFacts:
        key = repr(sorted(options.items()))
        if key not in made:
            made[key] = build_demo_image(folder / f"{len(made)}.elf", **options)
        return made[key]

    return make
