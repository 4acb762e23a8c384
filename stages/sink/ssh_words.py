"""What ssh's last words mean: whether trying again may help, and one clear line for the user."""

from __future__ import annotations

import re
from typing import Final

from pipeline.errors import SinkError
from stages.sink.ssh_process import LostConnectionError

_MOST_SHOWN: Final = 200
_SSH_FAILED: Final = 255
"""ssh's own failures; everything else is the exit code of what ran at the other end."""

# Tried in this order: the first that is found explains the failure, and none of them passes.
_PERMANENT: Final = (
    ("IDENTIFICATION HAS CHANGED", "the host key has changed since it was recorded in {file}"),
    ("has changed and you have requested strict", "the host key has changed since it was recorded"),
    ("REVOKED HOST KEY", "the host key was revoked"),
    ("host key is known for", "the host key is not known; check it and add it to known_hosts"),
    ("Host key verification failed", "the host key is not trusted"),
    ("Permission denied (", "the server refused every key that was offered"),
    ("Too many authentication failures", "the server refused every key that was offered"),
    ("subsystem request failed", "the server offers no SFTP"),
    ("Bad configuration option", "the OpenSSH configuration is not understood"),
    ("Can't open user config file", "the OpenSSH configuration cannot be read"),
    ("no matching", "server and client have no algorithm in common"),
    ("Name or service not known", "the host's name is not known"),
    ("nodename nor servname", "the host's name is not known"),
)
_DROPPED: Final = (
    "Connection refused",
    "timed out",
    "Connection reset",
    "Connection closed",
    "onnection to",
    "closed by remote host",
    "closed by",
    "No route to host",
    "etwork is unreachable",
    "Network is down",
    "Host is down",
    "Temporary failure in name resolution",
    "Broken pipe",
    "not responding",
    "kex_exchange_identification",
    "banner exchange",
    "message authentication code incorrect",
    "Corrupted MAC",
    "Bad packet length",
    "ssh_dispatch_run_fatal",
)


def failure(target: str, code: int | None, words: str) -> SinkError:
    """The error that fits how ssh ended; `LostConnectionError` when another try may succeed."""
    for sign, meaning in _PERMANENT:
        if sign in words:
            said = _last_line(words, sign)
            return SinkError(f"{target}: {meaning.format(file=_file(words))} ({said})")
    said = _last_line(words)
    dropped = any(sign in words for sign in _DROPPED)
    if dropped or (code == _SSH_FAILED and not said):
        return LostConnectionError(f"{target}: {said or 'the connection was closed'}")
    if code is None or code == 0 or code < 0:
        return LostConnectionError(f"{target}: {said or 'the connection ended early'}")
    return SinkError(f"{target}: {said or f'ssh ended with exit code {code}'}")


def _last_line(words: str, sign: str = "") -> str:
    """The last line with `sign` in it, without what a terminal would obey; banners do not count."""
    lines = [line.strip() for line in re.sub(r"[^\x20-\x7e\n]", "", words).splitlines()]
    lines = [line for line in lines if line and not line.startswith("@")]
    line = next((line for line in reversed(lines) if sign in line), lines[-1] if lines else "")
    line = line.removeprefix("ssh: ")
    return line if len(line) <= _MOST_SHOWN else f"{line[:_MOST_SHOWN]}..."


def _file(words: str) -> str:
    """``known_hosts:LINE`` of the offending key, as ssh names it."""
    found = re.search(r"Offending .* key in (\S+?:\d+)", words)
    return found[1] if found else "known_hosts"
