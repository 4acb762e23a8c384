"""What a dump loads: each module and class is paid for at every start, with one core idle."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stages.demo.build import DemoFacts

RUN = """
import sys
from pipeline.cli import main

code = main(sys.argv[1:])
for name, module in sorted(sys.modules.items()):
    if name.startswith(("pipeline.", "stages.")):
        for item in vars(module).values():
            if getattr(item, "__module__", None) == name and hasattr(item, "__dataclass_fields__"):
                print(name, item.__qualname__)
sys.exit(code)
"""


@pytest.mark.parametrize("form", ["kdump", "elf"])
def test_no_dataclass(demo: DemoFacts, target: Path, form: str) -> None:
    """Local images and targets get by with Structs: a dataclass is 0.3 ms of generated code."""
    words = ["dump", "--format", form, "--compress", "none", str(demo.path), str(target)]

    done = subprocess.run(
        [sys.executable, "-c", RUN, *words], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == []
