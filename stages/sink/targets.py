"""Which sink serves which kind of target; modules are imported when their scheme is used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.config.settings import Settings
    from pipeline.flow.protocols import Sink
    from stages.sink.journal import Journal
    from stages.sink.manifest import Form

# Each module offers make_sink(url, settings, form=...), those of _JOURNALLED with a journal too.
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


# What they have sent can be gone on with by another process.
_JOURNALLED: Final = frozenset({"az", "http", "https", "s3", "tcp", "tls"})


def scheme_of(url: str) -> str:
    """The part before ``://``, in lower case."""
    return url.split("://", 1)[0].lower()


def is_journalled(url: str) -> bool:
    """True where `dumpstream resume` can go on with an upload."""
    return "://" in url and scheme_of(url) in _JOURNALLED


def require_scheme(url: str) -> None:
    """See that some sink serves `url`.

    Raises:
        UsageError: none does.
    """
    scheme = scheme_of(url)
    if scheme not in _SCHEMES:
        known = ", ".join(f"{one}://" for one in _SCHEMES)
        raise UsageError(f"{scheme}:// is not a target; there are {known}")


def make_remote_sink(
    url: str, settings: Settings, journal: Journal | None = None, *, form: Form = "kdump"
) -> Sink[Any]:
    """The sink for a target that is a URL; `form` is what its manifest says the chunks make up.

    Raises:
        UsageError: no sink serves the scheme.
        ConfigError: the target's settings do not fit.
    """
    require_scheme(url)
    scheme = scheme_of(url)
    options: dict[str, Any] = {"journal": journal} if scheme in _JOURNALLED else {}
    sink: Sink[Any] = import_module(_SCHEMES[scheme]).make_sink(url, settings, form=form, **options)
    return sink
