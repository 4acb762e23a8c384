"""What runs at the other end of ``ssh://``: POSIX shell on one line, and what it says.

Answers are lines that start with `MARK`, so that whatever else a login shell prints is skipped.
"""

from __future__ import annotations

import shlex
from typing import Final

MARK: Final = "dumpstream:"
REFUSED: Final = 3
"""Exit code after an answer that says why not."""


_SAY: Final = f"echo {MARK}"
_REFUSE: Final = f"exit {REFUSED}"


def _command(path: str, script: str) -> str:
    """`script` for whatever login shell there is; it finds `path` in ``$p``."""
    # A relative path must not look like an option.
    place = path if path.startswith("/") else f"./{path}"
    return f"exec sh -c {shlex.quote(f'p={shlex.quote(place)}; t=$p.partial; {script}')}"


def receive(path: str, program: str, *, overwrite: bool) -> str:
    """Look at the target, say which way it is received, then read standard input to its end.

    Says ``ready receive`` (a readable dump is assembled), or ``ready cat``, and in that case at
    the end ``bytes N`` and, where the system can, ``sha256 DIGEST``; or why not.
    """
    steps = [
        "umask 077",
        f'if [ -d "$p" ]; then {_SAY} is a directory; {_REFUSE}; fi',
        "d=${p%/*}",
        f'if [ ! -d "${{d:-/}}" ]; then {_SAY} there is no such directory; {_REFUSE}; fi',
    ]
    if overwrite:
        steps.append('rm -f "$t"')
    else:
        there = '[ -e "$f" ] || [ -L "$f" ]'
        taken = f'if {there}; then {_SAY} "$f" exists, -f overwrites it; {_REFUSE}; fi'
        steps.append(f'for f in "$p" "$t"; do {taken}; done')
    if program:
        name = shlex.quote(program)
        flag = "-f " if overwrite else ""
        run = f'{_SAY} ready receive; exec {name} receive {flag}- "$p"'
        steps.append(f"if {name} receive --help </dev/null >/dev/null 2>&1; then {run}; fi")
    steps += [
        'set -C; : >"$t" || exit 4; set +C',
        f'{_SAY} ready cat; cat >"$t" || exit 4',
        '{ sync "$t" || sync; } 2>/dev/null',
        f'{_SAY} bytes $(wc -c <"$t")',
        f'if command -v sha256sum >/dev/null 2>&1; then {_SAY} sha256 $(sha256sum <"$t"); fi',
    ]
    return _command(path, "; ".join(steps))


def commit(path: str, size: int, *, overwrite: bool) -> str:
    """Give the `size` bytes that ``cat`` wrote their name.

    Without `overwrite` only if nothing has it. Done twice it succeeds twice: the answer to the
    first time may be lost.
    """
    is_done = f'[ ! -e "$t" ] && [ "$(wc -c <"$p")" -eq {size} ]'
    is_whole = f'[ "$(wc -c <"$t")" -eq {size} ]'
    # A hard link is the one way to rename without replacing; some file systems have none.
    taken = f"{_SAY} appeared meanwhile, -f overwrites it; {_REFUSE}"
    gently = (
        'if ln "$t" "$p" 2>/dev/null; then rm -f "$t"; elif [ -e "$p" ] || [ -L "$p" ]; '
        f'then {taken}; else mv "$t" "$p" || exit 4; fi'
    )
    steps = [
        f"if {is_done}; then exit 0; fi 2>/dev/null",
        f"if ! {is_whole}; then {_SAY} the partial file has changed; {_REFUSE}; fi",
        'mv -f "$t" "$p" || exit 4' if overwrite else gently,
    ]
    return _command(path, "; ".join(steps))


def is_there(path: str, size: int) -> str:
    """Succeed if the file has its final name and `size` bytes."""
    return _command(path, f'[ ! -e "$t" ] && [ "$(wc -c <"$p")" -eq {size} ]')


def has_partial(path: str) -> str:
    """Succeed if there is a partial file."""
    return _command(path, '[ -e "$t" ]')


def put_manifest(path: str, suffix: str) -> str:
    """Write standard input next to the dump."""
    name = f'"$p"{shlex.quote(suffix)}'
    return _command(path, f"umask 077; cat >{name}.partial && mv -f {name}.partial {name}")


def remove(path: str) -> str:
    """Remove the partial file."""
    return _command(path, 'rm -f "$t"')
