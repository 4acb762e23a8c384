"""Page tables described in text, and what each address must come to.

`dump.txt` is read by `PageTableBuilder.from_text`. `expect.txt` is a transcript: questions start a
line, answers are indented below them. `translate` asks for one address; `runs START +SIZE` for a
range.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.translator.space import KernelSpace
from tests.support.pagetable_builder import DictPages, PageTableBuilder
from tests.unit.translator.mappings import ALL_FORMS, addresses

CASES = {
    dump.parent.name: (dump.read_text(), dump.with_name("expect.txt").read_text())
    for dump in sorted(Path(__file__).parent.glob("*/dump.txt"))
}


async def answer(space: KernelSpace, question: str) -> list[str]:
    match question.split():
        case ["translate", vaddr]:
            return await answer_translate(space, int(vaddr, 0))
        case ["runs", vaddr, n_bytes]:
            return [
                f"{run.vaddr:#x} +{run.n_bytes:#x} "
                + ("hole" if run.paddr is None else f"-> {run.paddr:#x}")
                for run in await space.runs(int(vaddr, 0), int(n_bytes, 0))
            ]
    raise ValueError(f"{question!r} is no question")


async def answer_translate(space: KernelSpace, vaddr: int) -> list[str]:
    walk = await space.explain(vaddr)
    paddrs, good = await space.translate(addresses(vaddr))
    assert (int(paddrs[0]) if good[0] else None) == walk.paddr
    return [str(walk.problem) if walk.paddr is None else f"paddr {walk.paddr:#x}"]


@pytest.mark.parametrize("name", CASES)
async def test_transcript(name: str) -> None:
    """Every question of the case gets the answer that is written below it."""
    dump, transcript = CASES[name]
    builder = PageTableBuilder.from_text(dump, ALL_FORMS)
    pages = DictPages(builder.pages, page_size=1 << builder.form.page_bits)
    space = KernelSpace(builder.form, builder.root, pages)
    expected = transcript.splitlines()
    questions = [line for line in expected if not line.startswith(" ")]

    seen: list[str] = []
    for question in questions:
        seen += [question, *(f"  {line}" for line in await answer(space, question))]

    assert expected == seen
    assert questions
