"""Demo images, each built once a session."""

from __future__ import annotations

from typing import Protocol, TypedDict, Unpack

import pytest

from stages.demo.build import DemoFacts, KernelName, ModelName, build_demo_image


class DemoOptions(TypedDict, total=False):
    """Arguments of `build_demo_image`."""

    n_mib: int
    kernel: KernelName
    levels: int
    memory_model: ModelName
    mem_section_is_pointer: bool
    small_memmap_pages: bool
    preinit_section: bool
    kaslr: bool
    device_rom: bool
    seed: int


class DemoMaker(Protocol):
    def __call__(self, **options: Unpack[DemoOptions]) -> DemoFacts: ...


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoMaker:
    """Builds the image with these arguments, or hands out the one there is."""
    folder = tmp_path_factory.mktemp("demo")
    made: dict[str, DemoFacts] = {}

    def make(**options: Unpack[DemoOptions]) -> DemoFacts:
        key = repr(sorted(options.items()))
        if key not in made:
            made[key] = build_demo_image(folder / f"{len(made)}.elf", **options)
        return made[key]

    return make
