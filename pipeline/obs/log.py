"""Events on standard error: a name, and keys that carry values with their units.

structlog writes the lines for people, and comes with the first of them. One JSON object a line is
what services and capture kernels get, often just one at the end of a run, and importing structlog
for it would take 6 ms and 1 MiB. An event that cannot be written is lost: a closed terminal must
not cost a dump.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, Literal, Protocol, TextIO, TypeAlias

from pipeline.obs.plain import printable, takes_escapes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from structlog.typing import EventDict, Processor

Level: TypeAlias = Literal["debug", "info", "warning", "error"]
Format: TypeAlias = Literal["auto", "console", "json"]
_RANKS: Final[dict[Level, int]] = {"debug": 10, "info": 20, "warning": 30, "error": 40}

stage_name: ContextVar[str] = ContextVar("stage_name")
"""Set once in each stage's task; every event of that task carries it."""


class _Logger(Protocol):
    def msg(self, event: str, *, level: str, **keys: object) -> object: ...


class _Log:
    """How events are shown; one for the process."""

    def __init__(self) -> None:
        self.form: Format = "auto"
        self.rank = _RANKS["info"]
        self.stream: TextIO | None = None
        self.clear_line: Callable[[], None] | None = None
        self.logger: _Logger | None = None


_LOG: Final = _Log()


def configure_log(
    form: Format = "auto", level: Level = "info", stream: TextIO | None = None
) -> None:
    """Choose what is shown and how; holds from the next event on.

    Args:
        form: ``auto`` is lines for people at a terminal, one JSON object a line otherwise.
        level: the lowest that is shown.
        stream: standard error when None.
    """
    _LOG.form, _LOG.rank, _LOG.stream, _LOG.logger = form, _RANKS[level], stream, None


def asked_for_json() -> bool:
    """True when JSON was chosen, not only found fit for a stream that is no terminal."""
    return _LOG.form == "json"


def log_event(event: str, level: Level = "info", **keys: object) -> None:
    """Say that `event` (``noun_verb``) happened; values in `keys` are plain."""
    if _RANKS[level] < _LOG.rank:
        return
    stage = stage_name.get(None)
    if stage is not None:
        keys.setdefault("stage", stage)
    try:
        if _LOG.clear_line is not None:
            _LOG.clear_line()
        _logger().msg(event, level=level, **keys)
    except (OSError, ValueError):
        # Standard error is gone (EPIPE, EIO) or closed; there is nowhere left to say so.
        return


def set_line_clearer(clear: Callable[[], None] | None) -> None:
    """Have `clear` called before each event: a progress bar leaves its line first."""
    _LOG.clear_line = clear


def shown_format(form: Format, stream: TextIO) -> Literal["console", "json"]:
    """`form` with ``auto`` decided by whether `stream` is a terminal."""
    if form != "auto":
        return form
    return "console" if stream.isatty() else "json"


def _logger() -> _Logger:
    if _LOG.logger is None:
        _LOG.logger = _make_logger(_LOG.stream or sys.stderr)
    return _LOG.logger


def _make_logger(stream: TextIO) -> _Logger:
    if shown_format(_LOG.form, stream) == "json":
        return _JsonLines(stream)
    import structlog

    structlog.configure(
        processors=_for_people(colors=takes_escapes(stream) and not os.environ.get("NO_COLOR")),
        logger_factory=structlog.PrintLoggerFactory(file=stream),
        wrapper_class=structlog.BoundLogger,
        cache_logger_on_first_use=False,
    )
    logger: _Logger = structlog.get_logger()
    return logger


class _JsonLines:
    """Writes what structlog's own renderer of JSON would, to the byte."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, event: str, *, level: str, **keys: object) -> None:
        import json
        from datetime import UTC, datetime

        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        said = {"timestamp": now, "level": level, "event": event, **keys}
        self._stream.write(f"{json.dumps(said, default=str)}\n")
        self._stream.flush()


def _for_people(*, colors: bool) -> Sequence[Processor]:
    import structlog

    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    # Without this formatter structlog imports rich whenever it is installed: 8 MiB.
    plain = structlog.dev.plain_traceback
    console = structlog.dev.ConsoleRenderer(
        colors=colors, exception_formatter=plain, sort_keys=False
    )
    return [stamp, _tame, console]


def _tame(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Values may come from a hostile image; JSON escapes them by itself."""
    return {key: printable(v) if isinstance(v, str) else v for key, v in event.items()}
