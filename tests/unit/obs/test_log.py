"""Events: form, level, stage, and what happens when nobody can read them."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import PurePath
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import structlog

from pipeline.obs.log import configure_log, log_event, stage_name
from tests.unit.obs.terminal import open_terminal


@pytest.fixture(autouse=True)
def _defaults_afterwards() -> Iterator[None]:
    yield
    configure_log()


class TestForm:
    def test_json_outside_a_terminal(self) -> None:
        """One object a line: time, level and name first, then the keys."""
        stream = io.StringIO()
        configure_log(stream=stream)

        log_event("segment_opened", "warning", n_pages=3, path="a\nb")

        (line,) = stream.getvalue().splitlines()
        event = json.loads(line)
        assert list(event) == ["timestamp", "level", "event", "n_pages", "path"]
        assert event["level"] == "warning"
        assert event["path"] == "a\nb"

    def test_json_is_structlogs(self) -> None:
        """The bytes of structlog's renderer: order, escapes, values that JSON has no form for."""
        keys: dict[str, Any] = {
            "path": "\u00fc\udc80\n",
            "left": {"b": 1, "a": [None, 1.5]},
            "odd": PurePath("x"),
        }
        stream = io.StringIO()
        configure_log("json", stream=stream)

        log_event("segment_opened", **keys)

        stamp = json.loads(stream.getvalue())["timestamp"]
        event = {"timestamp": stamp, "level": "info", "event": "segment_opened", **keys}
        rendered = structlog.processors.JSONRenderer(default=str)(None, "info", event)
        assert stream.getvalue().splitlines() == [rendered]
        assert abs(datetime.now(UTC) - datetime.fromisoformat(stamp)) < timedelta(minutes=5)

    def test_lines_at_a_terminal(self) -> None:
        """For people, with control characters of hostile text made harmless."""
        with open_terminal() as terminal:
            configure_log(stream=terminal.stream)
            log_event("segment_opened", release="5.10\x1b[2Jx")
            shown = terminal.read()

        assert "segment_opened" in shown
        assert "{" not in shown
        assert "\x1b[2J" not in shown
        assert "\\x1b[2J" in shown

    @pytest.mark.parametrize(
        ("environ", "coloured"),
        [
            ({"TERM": "xterm"}, True),
            ({"TERM": "dumb"}, False),
            ({"TERM": "xterm", "NO_COLOR": "1"}, False),
            ({"TERM": "xterm", "NO_COLOR": ""}, True),
        ],
    )
    def test_colours(
        self, environ: dict[str, str], coloured: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Only for a terminal that knows them, and a person who wants them (no-color.org)."""
        monkeypatch.delenv("NO_COLOR", raising=False)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        with open_terminal() as terminal:
            configure_log(stream=terminal.stream)
            log_event("segment_opened")

            assert ("\x1b[" in terminal.read()) == coloured

    def test_asked_for_json_at_a_terminal(self) -> None:
        """What was asked for beats what the stream is."""
        with open_terminal() as terminal:
            configure_log("json", stream=terminal.stream)
            log_event("segment_opened")

            assert json.loads(terminal.read())["event"] == "segment_opened"


class TestLevel:
    def test_below_the_level_is_dropped(self) -> None:
        """Only events at or above the level are written."""
        stream = io.StringIO()
        configure_log("json", "warning", stream)

        log_event("a", "debug")
        log_event("b", "info")
        log_event("c", "warning")
        log_event("d", "error")

        assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["c", "d"]

    def test_only_lines_for_people_import_structlog(self) -> None:
        """A service, or a capture kernel, never pays for the library."""
        code = (
            "import sys\n"
            "from pipeline.obs.log import configure_log, log_event\n"
            "log_event('y')\n"
            "assert 'structlog' not in sys.modules\n"
            "configure_log('console')\n"
            "log_event('z', 'debug')\n"
            "assert 'structlog' not in sys.modules\n"
            "log_event('z')\n"
            "assert 'structlog' in sys.modules\n"
        )

        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )

        assert done.stdout == ""
        first, second = done.stderr.splitlines()
        assert json.loads(first)["event"] == "y"
        assert "z" in second


class TestStage:
    async def test_each_task_has_its_own_stage(self) -> None:
        """The stage set in one task is on that task's events only."""
        stream = io.StringIO()
        configure_log("json", stream=stream)

        async def work(name: str) -> None:
            stage_name.set(name)
            await anyio.lowlevel.checkpoint()
            log_event(f"{name}_done")

        async with anyio.create_task_group() as group:
            group.start_soon(work, "reader")
            group.start_soon(work, "writer")
        log_event("all_done")

        events = [json.loads(line) for line in stream.getvalue().splitlines()]
        stages = {event["event"]: event.get("stage") for event in events}
        assert stages == {"reader_done": "reader", "writer_done": "writer", "all_done": None}


class TestLostStream:
    def test_closed_stream(self) -> None:
        """An event for a closed stream is lost, and nothing else is."""
        stream = io.StringIO()
        configure_log("json", stream=stream)
        stream.close()

        log_event("segment_opened")

    def test_full_device(self) -> None:
        """An event that the device does not take is lost, and nothing else is."""
        stream = open("/dev/full", "w", buffering=1)  # noqa: PTH123, SIM115  # closed below
        configure_log("json", stream=stream)

        log_event("segment_opened")

        with pytest.raises(OSError, match="No space"):
            stream.close()
