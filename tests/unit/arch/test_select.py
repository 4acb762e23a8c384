"""The table of architectures."""

from __future__ import annotations

import pytest

from pipeline.errors import UnsupportedError
from stages.arch.select import ARCHES, arch_for


def test_each_is_found_by_its_name() -> None:
    """Every architecture of the table answers to its own name, and to no other's."""
    assert [arch_for(arch.name) for arch in ARCHES] == list(ARCHES)


def test_unknown_machine() -> None:
    """A machine without a table is named, and those with one are."""
    with pytest.raises(UnsupportedError, match=r"vax.*x86_64"):
        arch_for("vax")
