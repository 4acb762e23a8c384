"""Progress: what is shown, how often, and that it never gets in the way."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TextIO

import anyio
import pytest

from pipeline.obs.counters import RunCounters, Snapshot
from pipeline.obs.log import configure_log, log_event
from pipeline.obs.progress import Mode, Progress, Rate, bar_line, shown_mode
from tests.unit.obs.terminal import open_terminal


def at(seconds: float, done: int, total: int = 1000, phase: str = "copy") -> Snapshot:
    return Snapshot(phase, 4096, done, total, done * 4096, done * 100, seconds, seconds)


async def run_for(seconds: float, counters: RunCounters, mode: Mode, stream: TextIO) -> None:
    with anyio.move_on_after(seconds):
        await Progress(counters, mode, stream).run()


class TestJson:
    async def test_every_line_is_an_object(self, tmp_path: Path) -> None:
        """One line at the start of each phase, one at the end; each parses by itself."""
        counters = RunCounters()
        counters.begin_phase("filter", 100)
        with (tmp_path / "err").open("w+") as stream:
            async with anyio.create_task_group() as group:
                group.start_soon(Progress(counters, "json", stream).run)
                await anyio.sleep(0.3)
                counters.begin_phase("copy", 50)
                counters.pages_done = 25
                await anyio.sleep(0.3)
                group.cancel_scope.cancel()
            stream.seek(0)
            lines = [json.loads(line) for line in stream]

        assert [line["phase"] for line in lines] == ["filter", "copy", "copy"]
        assert {line["event"] for line in lines} == {"progress"}
        assert lines[-1]["pages_done"] == 25
        assert lines[-1]["pages_total"] == 50
        assert lines[0]["eta_s"] is None

    async def test_at_most_one_line_a_second_within_a_phase(self, tmp_path: Path) -> None:
        """In 1.4 s of one phase: the first line, one after a second, and the last."""
        counters = RunCounters()
        counters.begin_phase("copy", 100)
        with (tmp_path / "err").open("w+") as stream:
            await run_for(1.4, counters, "json", stream)
            stream.seek(0)

            assert len(stream.readlines()) == 3

    async def test_closed_pipe_does_not_end_the_run(self) -> None:
        """Whoever read our progress went away: the task lives on and says nothing."""
        reading, writing = os.pipe()
        os.close(reading)
        counters = RunCounters()
        counters.begin_phase("copy", 100)

        with os.fdopen(writing, "wb", buffering=0) as raw:
            stream = os.fdopen(os.dup(raw.fileno()), "w")
            await run_for(0.1, counters, "json", stream)
            with pytest.raises(BrokenPipeError):
                stream.close()


class TestBar:
    async def test_redraws_in_place_and_clears_at_the_end(self) -> None:
        """Every redraw starts with a return to column 0; at the end the line is empty."""
        counters = RunCounters()
        counters.begin_phase("copy", 100)
        counters.pages_done = 50
        with open_terminal() as terminal:
            await run_for(0.6, counters, "auto", terminal.stream)
            shown = terminal.read()

        assert "50 %" in shown
        assert "\n" not in shown
        assert shown.endswith("\r\x1b[K")
        redraws = shown.count("copy")
        assert 2 <= redraws <= 3

    async def test_log_lines_clear_the_bar_first(self) -> None:
        """An event that is written while the bar is drawn does not end up behind it."""
        counters = RunCounters()
        counters.begin_phase("copy", 100)
        with open_terminal() as terminal:
            configure_log("json", stream=terminal.stream)
            async with anyio.create_task_group() as group:
                group.start_soon(Progress(counters, "bar", terminal.stream).run)
                await anyio.sleep(0.05)
                log_event("segment_opened", n=1)
                group.cancel_scope.cancel()
            shown = terminal.read()

        before, _, _ = shown.partition('{"timestamp"')
        assert before.endswith("\r\x1b[K")

    async def test_stopped_terminal_is_skipped(self) -> None:
        """A terminal that takes nothing more never makes the run wait."""
        counters = RunCounters()
        counters.begin_phase("copy", 100)
        with open_terminal() as terminal:
            terminal.stop()
            with anyio.fail_after(2):
                await run_for(0.6, counters, "bar", terminal.stream)
            terminal.go_on()
            shown = terminal.read()

        assert shown == ""

    @pytest.mark.parametrize("width", [10, 40, 79, 200])
    def test_never_wider_than_the_terminal(self, width: int) -> None:
        """A line that wraps could not be redrawn."""
        rate = Rate()
        for second in range(3):
            rate.update(at(second, second * 1000, 10**9, "a phase with a long name"))

        assert len(bar_line(at(3, 10**8, 10**9), rate, width)) <= width

    def test_unknown_total(self) -> None:
        """Without a total there is neither percent nor time left, only what is done."""
        assert "%" not in bar_line(at(1, 10, 0), Rate(), 80)


class TestRate:
    def test_steady_rate_gives_the_exact_eta(self) -> None:
        """100 pages a second, 1000 in all, 300 done: 7 seconds left."""
        rate = Rate()
        for second in range(4):
            rate.update(at(second, 100 * second))

        assert rate.pages_per_s == pytest.approx(100)
        assert rate.eta_s(at(3, 300)) == pytest.approx(7)

    def test_a_stall_lowers_the_rate(self) -> None:
        """Nothing done for ten seconds: the rate shown has all but forgotten the past."""
        rate = Rate()
        for second in range(11):
            rate.update(at(second, 100 * min(second, 5)))
        stalled = rate.pages_per_s
        rate.update(at(25, 500))

        assert stalled < 50
        assert rate.pages_per_s < 5

    def test_new_phase_starts_anew(self) -> None:
        """The rate of one phase says nothing about the next."""
        rate = Rate()
        rate.update(at(1, 1000))
        rate.update(Snapshot("write", 4096, 10, 100, 0, 0, 2.0, 1.0))

        assert rate.pages_per_s == pytest.approx(10)

    def test_more_done_than_announced(self) -> None:
        """A total that was too low never gives a negative time."""
        rate = Rate()
        rate.update(at(1, 2000))

        assert rate.eta_s(at(1, 2000)) == 0


class TestMode:
    def test_auto(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A bar at a terminal, nothing in a file; what was asked for is kept."""
        monkeypatch.setenv("TERM", "vt100")
        with open_terminal() as terminal, (tmp_path / "log").open("w") as file:
            assert shown_mode("auto", terminal.stream) == "bar"
            assert shown_mode("auto", file) == "none"
            assert shown_mode("json", terminal.stream) == "json"
            assert shown_mode("bar", file) == "bar"

    def test_dumb_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where a line cannot be drawn anew there is no bar, unless it is asked for."""
        monkeypatch.setenv("TERM", "dumb")
        with open_terminal() as terminal:
            assert shown_mode("auto", terminal.stream) == "none"
            assert shown_mode("bar", terminal.stream) == "bar"

    async def test_none_writes_nothing(self, tmp_path: Path) -> None:
        """The task ends at once and leaves the stream alone."""
        with (tmp_path / "err").open("w+") as stream:
            await Progress(RunCounters(), "none", stream).run()

            assert stream.tell() == 0
