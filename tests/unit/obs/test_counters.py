"""Counters of a run."""

from __future__ import annotations

import time

import pytest

from pipeline.flow.channel import ChannelStats
from pipeline.obs.counters import RunCounters


class TestPhases:
    def test_time_goes_to_the_phase_that_ran(self) -> None:
        """Phases share the time between them; a phase that comes twice adds up."""
        counters = RunCounters()
        counters.begin_phase("filter", 10)
        time.sleep(0.02)
        counters.begin_phase("copy", 20)
        counters.begin_phase("filter")
        time.sleep(0.02)
        counters.end_phase()

        assert counters.phase_seconds["filter"] >= 0.04
        assert counters.phase_seconds["copy"] < 0.02
        assert sum(counters.phase_seconds.values()) <= counters.elapsed_s

    def test_new_phase_starts_with_nothing_done(self) -> None:
        """What the last phase did is not progress of this one."""
        counters = RunCounters()
        counters.begin_phase("filter", 10)
        counters.pages_done = 10
        counters.begin_phase("copy", 20)

        now = counters.snapshot()
        assert (now.phase, now.pages_done, now.pages_total) == ("copy", 0, 20)

    def test_nothing_is_booked_after_the_end(self) -> None:
        """Time between phases belongs to none."""
        counters = RunCounters()
        counters.begin_phase("filter")
        counters.end_phase()
        counters.end_phase()

        assert list(counters.phase_seconds) == ["filter"]


class TestSums:
    def test_stage_time_counts_failures_too(self) -> None:
        """A block that raises has still taken its time."""
        counters = RunCounters()

        def work() -> None:
            with counters.stage_time("reader"):
                time.sleep(0.01)
                raise ValueError("x")

        with pytest.raises(ValueError, match="x"):
            work()

        assert counters.stage_seconds["reader"] >= 0.01

    def test_excluded_pages_add_up(self) -> None:
        """By class, and in all."""
        counters = RunCounters()
        counters.exclude("free", 3)
        counters.exclude("user", 4)
        counters.exclude("free", 5)

        assert counters.excluded == {"free": 8, "user": 4}
        assert counters.pages_excluded == 12

    def test_fullest_channel(self) -> None:
        """The highest fill, relative to each channel's own capacity."""
        counters = RunCounters()
        assert counters.peak_channel_fill == 0
        counters.channels = [
            ChannelStats("a", 100, peak_bytes=50),
            ChannelStats("b", 10, peak_bytes=8),
        ]

        assert counters.peak_channel_fill == 0.8
