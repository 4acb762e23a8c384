"""Where the run is and when it will be done: a bar for people, JSON lines for programs.

`Progress.run` is a task beside the flow that ends by being cancelled. Both forms go to standard
error; a terminal that takes nothing (stopped by ^S, a slow serial line) makes it skip, never wait.
"""

from __future__ import annotations

import math
import os
import select
from typing import Final, Literal, TextIO, TypeAlias

import anyio
from msgspec.structs import replace

from pipeline.memory.sizes import show_count, show_size
from pipeline.obs.counters import RunCounters, Snapshot
from pipeline.obs.log import set_line_clearer
from pipeline.obs.plain import takes_escapes

Mode: TypeAlias = Literal["auto", "bar", "json", "none"]

BAR_INTERVAL_S: Final = 0.25
JSON_INTERVAL_S: Final = 1.0
_RATE_MEMORY_S: Final = 5.0
"""The shown rate forgets what was longer ago: short enough to follow a stall, and steady."""
_BAR_CELLS: Final = 24
_CLEAR: Final = "\r\x1b[K"


def shown_mode(mode: Mode, stream: TextIO) -> Literal["bar", "json", "none"]:
    """`mode` with ``auto`` decided: a bar at a terminal that can redraw it, nothing otherwise."""
    if mode != "auto":
        return mode
    return "bar" if takes_escapes(stream) else "none"


class Rate:
    """Pages a second, over pages and seconds that count less the longer ago they were."""

    def __init__(self) -> None:
        self._last: Snapshot | None = None
        self._pages = 0.0
        self._seconds = 0.0

    @property
    def pages_per_s(self) -> float:
        return self._pages / self._seconds if self._seconds > 0 else 0.0

    def update(self, now: Snapshot) -> None:
        last, self._last = self._last, now
        if last is None or last.phase != now.phase or now.pages_done < last.pages_done:
            self._pages, self._seconds = now.pages_done, now.phase_s
            return
        spent = now.elapsed_s - last.elapsed_s
        kept = math.exp(-spent / _RATE_MEMORY_S)
        self._pages = self._pages * kept + now.pages_done - last.pages_done
        self._seconds = self._seconds * kept + spent

    def eta_s(self, now: Snapshot) -> float | None:
        """Seconds left of the phase, None when nothing tells."""
        if not now.pages_total or self.pages_per_s <= 0:
            return None
        return max(now.pages_total - now.pages_done, 0) / self.pages_per_s


def bar_line(now: Snapshot, rate: Rate, width: int) -> str:
    """One line of at most `width` columns: phase, percent, rate, time left."""
    speed = f"{show_size(rate.pages_per_s * now.page_size)}/s"
    if not now.pages_total:
        return f"{now.phase:<8} {show_count(now.pages_done, 'page')}  {speed}"[:width]
    part = min(now.pages_done / now.pages_total, 1.0)
    done = int(part * _BAR_CELLS)
    bar = "#" * done + "-" * (_BAR_CELLS - done)
    eta = rate.eta_s(now)
    left = "" if eta is None else f"  {_clock(eta)} left"
    return f"{now.phase:<8} [{bar}] {int(part * 100):3d} %  {speed}{left}"[:width]


def json_line(now: Snapshot, rate: Rate) -> str:
    """One JSON object: the counters, and `eta_s` (null when not known)."""
    import msgspec

    eta = rate.eta_s(now)
    keys = {
        "event": "progress",
        "phase": now.phase,
        "pages_done": now.pages_done,
        "pages_total": now.pages_total,
        "bytes_in": now.bytes_in,
        "bytes_out": now.bytes_out,
        "pages_per_s": round(rate.pages_per_s, 1),
        "eta_s": None if eta is None else round(eta, 1),
        "elapsed_s": round(now.elapsed_s, 3),
    }
    return msgspec.json.encode(keys).decode()


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds + 0.5), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


class Progress:
    """Shows `counters` on `stream`, a real file, until cancelled."""

    def __init__(self, counters: RunCounters, mode: Mode, stream: TextIO) -> None:
        self._counters = counters
        self._mode = shown_mode(mode, stream)
        self._stream = stream
        self._rate = Rate()
        self._drawn = False

    async def run(self) -> None:
        """Redraw at most four times a second, or write a line a second and at each new phase."""
        if self._mode == "bar":
            await self._run_bar()
        elif self._mode == "json":
            await self._run_json()

    async def _run_bar(self) -> None:
        set_line_clearer(self.clear)
        try:
            while True:
                self._draw()
                await anyio.sleep(BAR_INTERVAL_S)
        finally:
            set_line_clearer(None)
            self.clear()

    async def _run_json(self) -> None:
        said_phase, said_at = "", -math.inf
        try:
            while True:
                now = self._counters.snapshot()
                # A hair early is on time: sleeps end a little after, and a tick must not be lost.
                due = now.elapsed_s - said_at >= JSON_INTERVAL_S * 0.98
                if now.phase and (now.phase != said_phase or due):
                    self._say(now)
                    said_phase, said_at = now.phase, now.elapsed_s
                await anyio.sleep(BAR_INTERVAL_S)
        finally:
            last = self._counters.snapshot()
            self._say(replace(last, phase=last.phase or said_phase))

    def _draw(self) -> None:
        now = self._counters.snapshot()
        if not now.phase:
            return
        self._rate.update(now)
        line = bar_line(now, self._rate, _columns(self._stream) - 1)
        self._drawn = self._write(f"{_CLEAR}{line}") or self._drawn

    def _say(self, now: Snapshot) -> None:
        self._rate.update(now)
        self._write(f"{json_line(now, self._rate)}\n")

    def clear(self) -> None:
        """Take the bar off the terminal, for a log line or at the end."""
        if self._drawn:
            self._drawn = not self._write(_CLEAR)

    def _write(self, text: str) -> bool:
        """False when the stream would block or is gone; the run goes on without."""
        try:
            _, writable, _ = select.select([], [self._stream], [], 0)
            if not writable:
                return False
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            return False
        return True


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
