"""Which sink serves which kind of target; modules are imported when their scheme is used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.config.settings import Settings
    from pipeline.flow.protocols import Sink

# Each module offers make_sink(url: str, settings: Settings) -> Sink.
_SCHEMES: Final[dict[str, str]] = {
    "az": "stages.sink.azure",
    "http": "stages.sink.http",
    "https": "stages.sink.http",
    "s3": "stages.sink.s3",
    "sftp": "stages.sink.sftp",
    "ssh": "stages.sink.ssh",
    "tcp": "stages.sink.tcp",
    "tls": "stages.sink.tcp",
}


def make_remote_sink(url: str, settings: Settings) -> Sink[Any]:
    """The sink for a target that is a URL.

    Raises:
        UsageError: no sink serves the scheme.
        ConfigError: the target's settings do not fit.
    """
    scheme = url.split("://", 1)[0].lower()
    name = _SCHEMES.get(scheme)
    if name is None:
        known = ", ".join(f"{one}://" for one in _SCHEMES)
        raise UsageError(f"{scheme}:// is not a target; there are {known}")
    sink: Sink[Any] = import_module(name).make_sink(url, settings)
    return sink
