"""Who we are to a web server: a bearer token, or a user and password of a netrc file.

Secrets come from the environment or from files, go into one header, and are shown nowhere.
"""

from __future__ import annotations

import base64
import netrc
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pipeline.errors import SinkError
from stages.sink.http_url import HttpTarget

_TOKEN: Final = "DUMPSTREAM_HTTP_TOKEN"
_TOKEN_FILE: Final = "DUMPSTREAM_HTTP_TOKEN_FILE"
_MOST_TOKEN: Final = 64 << 10


def authorization(
    target: HttpTarget,
    environ: Mapping[str, str],
    *,
    token_file: str | None,
    netrc_file: str | None,
) -> dict[str, str]:
    """The header that says who we are, none when nothing does.

    A token goes before netrc; a user in the URL means netrc.

    Raises:
        SinkError: a file that was named cannot be read, or holds nothing of use.
    """
    token = None if target.user is not None else _token(environ, token_file)
    if token is not None:
        return {"authorization": f"Bearer {token}"}
    found = _from_netrc(target, environ, netrc_file)
    if found is None:
        return {}
    pair = ":".join(found).encode()
    return {"authorization": f"Basic {base64.b64encode(pair).decode('ascii')}"}


def _token(environ: Mapping[str, str], named: str | None) -> str | None:
    if environ.get(_TOKEN):
        return _checked(environ[_TOKEN], _TOKEN)
    path = named or environ.get(_TOKEN_FILE)
    if not path:
        return None
    try:
        with Path(path).open(encoding="utf-8") as file:
            return _checked(file.read(_MOST_TOKEN), path)
    except (OSError, UnicodeDecodeError) as error:
        raise SinkError(f"{path}: the token cannot be read: {_reason(error)}") from None


def _checked(text: str, origin: str) -> str:
    token = text.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise SinkError(f"{origin}: holds no token: wanted one word of visible characters")
    return token


def _from_netrc(
    target: HttpTarget, environ: Mapping[str, str], named: str | None
) -> tuple[str, str] | None:
    """User and password for the target's host."""
    wanted = named or environ.get("NETRC")
    path = Path(wanted) if wanted else Path(environ.get("HOME", "/")) / ".netrc"
    if not wanted and not path.exists():
        return None
    try:
        found = netrc.netrc(path).authenticators(target.host)
    except netrc.NetrcParseError as error:
        # Its message may quote the line, and the line the password.
        raise SinkError(f"{path}: line {error.lineno}: is not netrc") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SinkError(f"{path}: cannot be read: {_reason(error)}") from None
    if found is None or not found[2]:
        return None
    user, _, password = found
    if target.user is not None and user != target.user:
        return None
    return user, password


def _reason(error: OSError | UnicodeDecodeError) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return "is no text"
