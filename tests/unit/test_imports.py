"""Imports point one way: stages know the frame, and one package of the frame knows stages."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted([*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "stages").rglob("*.py")])
BELOW_STAGES = ("pipeline.memory", "pipeline.flow", "pipeline.errors", "pipeline.obs")
ASSEMBLY = "pipeline.run.assemble"
# Annotations may name what run time must not import: a sink's settings, the parts of a run.
TYPES_ONLY = (
    ("stages.", "pipeline.config"),
    ("pipeline.run.", "stages"),
    ("pipeline.api", "stages"),
)


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(node: ast.AST, *, typing: bool = False) -> Iterator[tuple[str, bool]]:
    """Every absolute module name that `node` imports, and whether for annotations only."""
    match node:
        case ast.Import(names=names):
            yield from ((alias.name, typing) for alias in names)
        case ast.ImportFrom(module=str(module), names=names, level=0):
            yield from ((f"{module}.{alias.name}", typing) for alias in names)
        case ast.ImportFrom():
            yield "a relative import", typing
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            typing = True
    for child in ast.iter_child_nodes(node):
        yield from imports(child, typing=typing)


def allowed(module: str, imported: str, *, typing: bool) -> bool:
    """Whether the layers let `module` import `imported`."""
    if imported == "a relative import":
        return False
    if typing and any(
        module.startswith(ours) and imported.startswith(theirs) for ours, theirs in TYPES_ONLY
    ):
        return True
    if imported.startswith("stages"):
        return module.startswith("stages") or f"{module}.".startswith(f"{ASSEMBLY}.")
    if imported.startswith("pipeline") and module.startswith("stages"):
        return imported.startswith(BELOW_STAGES)
    return not imported.startswith(("tests", "bench"))


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_imports_point_one_way(path: Path) -> None:
    """No module imports from a layer above its own."""
    found = imports(ast.parse(path.read_text(encoding="utf-8")))
    wrong = [name for name, typing in found if not allowed(dotted(path), name, typing=typing)]

    assert wrong == []


def test_formats_and_architectures_need_no_event_loop() -> None:
    """Byte layouts and tables load without anyio, also by way of what they import."""
    pure = [dotted(path) for path in MODULES if path.parent.name in {"formats", "arch"}]
    code = f"import sys, {', '.join(pure)}\nsys.exit('anyio' in sys.modules)"

    assert len(pure) > 5
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_frames_package_is_empty() -> None:
    """A re-export in pipeline/__init__.py would close the circle stages, pipeline, stages."""
    assert (ROOT / "pipeline/__init__.py").read_bytes() == b""


def test_the_walk_sees_what_it_forbids() -> None:
    """The rule is not vacuous: each forbidden direction is refused, also inside a function."""
    source = "def f():\n    from stages.reader import stage\n    import pipeline.run.runner\n"
    names = [name for name, _ in imports(ast.parse(source))]

    assert names == ["stages.reader.stage", "pipeline.run.runner"]
    assert not allowed("pipeline.flow.channel", names[0], typing=False)
    assert not allowed("stages.filter.scan", names[1], typing=False)
    assert not allowed("pipeline.flow.channel", names[0], typing=True)
