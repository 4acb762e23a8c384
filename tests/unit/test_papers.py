"""Papers say what is: commands, settings, links and decisions that they name exist."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import Struct

from pipeline.config.arguments import make_parser
from pipeline.config.schema import describe, is_size, sections, value_of
from pipeline.config.settings import NETWORK_SECTIONS, Settings
from pipeline.memory.sizes import show_size

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
ADRS = sorted((ROOT / "docs/adr").glob("*.md"))
PAPERS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = [
    path for top in ("pipeline", "stages", "tests", "bench") for path in (ROOT / top).rglob("*.py")
]
SETTING = re.compile(r"(?:`|--set )([a-z_0-9]+)\.([a-z_0-9]+)(?=[`= ])")
MAIN = "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/dumpstream demo"
TEST = "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest"


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


def subcommands() -> list[str]:
    parser = make_parser()
    (commands,) = (
        action for action in parser._actions if isinstance(action, argparse._SubParsersAction)
    )
    return list(commands.choices)


def dotted_names(section: Struct, prefix: str = "") -> Iterator[str]:
    """Settings of the core, below `section`."""
    for key in section.__struct_fields__:
        value = getattr(section, key)
        if not isinstance(value, Struct):
            yield prefix + key
        elif type(value).__module__ == Settings.__module__:
            yield from dotted_names(value, f"{prefix}{key}.")


def fenced(text: str) -> list[str]:
    """The lines of blocks of shell commands."""
    blocks = re.findall(r"^ *```(?:sh|console)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]


def test_readme_is_short() -> None:
    """At most 120 lines: the rest has papers of its own."""
    assert len(text_of(README).splitlines()) <= 120


@pytest.mark.parametrize("command", subcommands())
def test_readme_and_help_name_every_command(command: str) -> None:
    """Nobody has to read the code to find a command."""
    assert re.search(rf"(`|dumpstream ){command}\b", text_of(README))
    assert re.search(rf"^    {command}\b", make_parser().format_help(), re.MULTILINE)


@pytest.mark.parametrize(("heading", "command"), [("Try it", MAIN), ("Test it", TEST)])
def test_ci_runs_what_the_readme_says(heading: str, command: str) -> None:
    """The first block below the heading is the command, and .ci/run takes it from there."""
    script = text_of(ROOT / ".ci/run")
    taken = re.search(r"^readme_command\(\) \{\n.*?^\}$", script, re.MULTILINE | re.DOTALL)
    assert taken is not None
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f'{taken[0]}\nreadme_command "$0"', heading],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.strip() == command
    assert f"readme_command '{heading}'" in script


@pytest.mark.parametrize("paper", PAPERS, ids=label)
def test_commands_in_papers_parse(paper: Path) -> None:
    """Every `dumpstream ...` line of a block is one that the command line accepts."""
    for line in fenced(text_of(paper)):
        found = re.match(r"(?:\.venv/bin/)?dumpstream (.*)", line)
        if found is not None:
            make_parser().parse_args(shlex.split(re.split(r"\s[|>&]", found[1])[0]))


@pytest.mark.parametrize("paper", PAPERS, ids=label)
def test_settings_in_papers_exist(paper: Path) -> None:
    """A dotted name whose first part is a section is a setting of that section."""
    settings = Settings()
    unknown = [
        f"{section}.{key}"
        for section, key in SETTING.findall(text_of(paper))
        if section in Settings.__struct_fields__ and not hasattr(getattr(settings, section), key)
    ]

    assert unknown == []


def test_settings_paper_has_every_setting() -> None:
    """docs/settings.md has the core's settings; those of targets are listed in their own module."""
    paper = text_of(ROOT / "docs/settings.md")
    names = [name for name in dotted_names(Settings()) if "." in name]

    assert len(names) > 20
    assert [name for name in names if f"`{name}`" not in paper] == []


def default_of(key: str) -> str:
    value = value_of(Settings(), key)
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    return show_size(value) if is_size(key) and isinstance(value, int) and value else str(value)


def test_targets_paper_has_every_setting_as_it_is() -> None:
    """docs/targets.md has those of targets, with the values they take and their defaults."""
    rows = re.findall(
        r"^\| `([a-z0-9]+\.[a-z0-9_]+)` \| (.+?) \| (.*?) \| ",
        text_of(ROOT / "docs/targets.md"),
        re.MULTILINE,
    )
    wanted = [
        (f"{section}.{name}", describe(kind), default_of(f"{section}.{name}"))
        for section in NETWORK_SECTIONS
        for name, kind in sections()[section].items()
    ]

    assert len(wanted) > 30
    assert sorted(rows) == sorted(wanted)


@pytest.mark.parametrize("paper", PAPERS, ids=label)
def test_links_lead_somewhere(paper: Path) -> None:
    """Every relative link names a file or a folder of the repository."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text_of(paper))
    broken = [link for link in links if not (paper.parent / link).exists()]

    assert broken == []


def test_papers_named_in_the_code_exist() -> None:
    """A comment that sends its reader to docs/ sends him to a file."""
    named = {
        (label(source), name)
        for source in SOURCES
        for name in re.findall(r"docs/(?:adr/\d{4}|[a-z-]+\.md)", text_of(source))
    }

    assert sorted(each for each in named if not list(ROOT.glob(f"{each[1]}*"))) == []


@pytest.mark.parametrize("adr", ADRS, ids=label)
def test_decisions_have_their_four_parts(adr: Path) -> None:
    """Context, Decision, Consequences, Evidence, in that order, under the file's own number."""
    parts = re.findall(r"^## (.+)$", text_of(adr), re.MULTILINE)

    assert parts == ["Context", "Decision", "Consequences", "Evidence"]
    assert text_of(adr).startswith(f"# {adr.name[:4]}. ")


def test_a_number_names_one_decision() -> None:
    """Papers and comments name decisions by their number alone."""
    numbers = [adr.name[:4] for adr in ADRS]

    assert numbers[0] == "0000"
    assert len(set(numbers)) == len(numbers)


def test_changelog_starts_with_what_is_unreleased() -> None:
    """Whoever changes something finds the place for it at the top."""
    assert (
        re.findall(r"^## (.+)$", text_of(ROOT / "CHANGELOG.md"), re.MULTILINE)[0] == "[Unreleased]"
    )
