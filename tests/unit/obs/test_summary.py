"""The summary at the end."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator

import pytest

from pipeline.obs.log import configure_log
from pipeline.obs.rss import PeakMemory
from pipeline.obs.summary import Outcome, report
from tests.unit.obs.terminal import open_terminal
from tests.unit.obs.test_stats import counters

MEMORY = PeakMemory(50 << 20, 0, 90 << 20)


@pytest.fixture(autouse=True)
def _defaults_afterwards() -> Iterator[None]:
    yield
    configure_log()


def test_lines_at_a_terminal() -> None:
    """Where the dump is, pages, classes, time and memory, for people."""
    with open_terminal() as terminal:
        report(counters(), Outcome("/var/crash/x", 2 << 20), MEMORY, "auto", terminal.stream)
        shown = terminal.read().replace("\r\n", "\n")

    assert shown.startswith("dump: /var/crash/x (2.0 MiB)\n")
    assert "40 of 100 kept, 10 of them zero, 1 NOT READABLE" in shown
    assert "excluded: 59 free" in shown
    assert "90.0 MiB at most, fullest channel 50 %" in shown


def test_one_event_elsewhere() -> None:
    """Outside a terminal: one event with the same facts."""
    stream = io.StringIO()
    configure_log(stream=stream)

    report(counters(), Outcome("/var/crash/x", 2 << 20), MEMORY, "auto", stream)

    (line,) = stream.getvalue().splitlines()
    event = json.loads(line)
    assert event["event"] == "dump_finished"
    assert event["pages_excluded"] == {"free": 59}
    assert event["peak_memory_bytes"] == 90 << 20


def test_short_run_speaks_of_the_process_it_knows() -> None:
    """Without a sample of all processes the figure is the main one's, and is called that."""
    with open_terminal() as terminal:
        memory = PeakMemory(50 << 20, 20 << 20, None)
        report(counters(), Outcome("x", 1), memory, "auto", terminal.stream)
        shown = terminal.read()

    assert "memory: 50.0 MiB in the main process at most, " in shown


def test_incomplete_dump_is_no_finished_one() -> None:
    """A dump that is not whole says so in its event, its level, and its line."""
    stream = io.StringIO()
    configure_log("json", stream=stream)
    outcome = Outcome("x.partial\x1b", 0, complete=False)

    report(counters(), outcome, MEMORY, "auto", stream)
    with open_terminal() as terminal:
        report(counters(), outcome, MEMORY, "auto", terminal.stream)
        shown = terminal.read()

    event = json.loads(stream.getvalue())
    assert (event["event"], event["level"]) == ("dump_incomplete", "warning")
    assert shown.startswith("INCOMPLETE dump: x.partial\\x1b (at most ")
    assert "pages: at most " in shown


def test_kernel_log_is_no_dump() -> None:
    """Where no dump could be made nobody reads of pages that are in it."""
    outcome = Outcome("dmesg.txt", 700, complete=False, only_log=True)

    with open_terminal() as terminal:
        report(counters(), outcome, MEMORY, "auto", terminal.stream)
        shown = terminal.read()

    assert shown.startswith("NO DUMP, only the kernel log: dmesg.txt (700 B)")
    assert "pages" not in shown


def test_stopped_terminal() -> None:
    """A terminal that takes nothing costs the summary only."""
    with open_terminal() as terminal:
        terminal.stop()
        os.set_blocking(terminal.stream.fileno(), False)
        report(counters(), Outcome("x", 0), MEMORY, "auto", terminal.stream)
        os.set_blocking(terminal.stream.fileno(), True)
        terminal.go_on()


def test_terminal_that_went_away() -> None:
    """A terminal that was hung up costs the summary only."""
    with open_terminal() as terminal:
        configure_log(stream=terminal.stream)
        terminal.hang_up()

        report(counters(), Outcome("x", 0), MEMORY, "auto", terminal.stream)
