"""What runs at the other end of ``ssh://``: POSIX shell on one line, and what it says.

Answers are lines that start with `MARK`, so that whatever else a login shell prints is skipped.
"""

from __future__ import annotations

import shlex
from typing import Final

MARK: Final = "dumpstream:"
REFUSED: Final = 3
"""Exit code after an answer that says why not."""


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
    say = f"echo {MARK}"
    steps = [
        "umask 077",
        f'if [ -d "$p" ]; then {say} is a directory; exit {REFUSED}; fi',
        f'd=${{p%/*}}; if [ ! -d "${{d:-/}}" ]; then {say} there is no such directory; exit {REFUSED}; fi',
    ]
    if overwrite:
        steps.append('rm -f "$t"')
    else:
        taken = f'if [ -e "$f" ] || [ -L "$f" ]; then {say} "$f" exists, -f overwrites it; exit {REFUSED}; fi'
        steps.append(f'for f in "$p" "$t"; do {taken}; done')
    if program:
        name = shlex.quote(program)
        flag = "-f " if overwrite else ""
        run = f'{say} ready receive; exec {name} receive {flag}- "$p"'
        steps.append(f"if {name} receive --help </dev/null >/dev/null 2>&1; then {run}; fi")
    steps += [
        'set -C; : >"$t" || exit 4; set +C',
        f'{say} ready cat; cat >"$t" || exit 4',
        '{ sync "$t" || sync; } 2>/dev/null',
        f'{say} bytes $(wc -c <"$t")',
        f'if command -v sha256sum >/dev/null 2>&1; then {say} sha256 $(sha256sum <"$t"); fi',
    ]
    return _command(path, "; ".join(steps))


def commit(path: str, size: int, *, overwrite: bool) -> str:
    """Give the `size` bytes that ``cat`` wrote their name.

    Without `overwrite` only if nothing has it. Done twice it succeeds twice: the answer to the
    first time may be lost.
    """
    say = f"echo {MARK}"
    is_done = f'[ ! -e "$t" ] && [ "$(wc -c <"$p")" -eq {size} ]'
    is_whole = f'[ "$(wc -c <"$t")" -eq {size} ]'
    # A hard link is the one way to rename without replacing; some file systems have none.
    gently = (
        'if ln "$t" "$p" 2>/dev/null; then rm -f "$t"; elif [ -e "$p" ] || [ -L "$p" ]; '
        f'then {say} appeared meanwhile, -f overwrites it; exit {REFUSED}; else mv "$t" "$p" || exit 4; fi'
    )
    steps = [
        f"if {is_done}; then exit 0; fi 2>/dev/null",
        f"if ! {is_whole}; then {say} the partial file has changed; exit {REFUSED}; fi",
        'mv -f "$t" "$p" || exit 4' if overwrite else gently,
    ]
    return _command(path, "; ".join(steps))


def is_there(path: str, size: int) -> str:
    """Succeed if the file has its final name and `size` bytes."""
    return _command(path, f'[ ! -e "$t" ] && [ "$(wc -c <"$p")" -eq {size} ]')


def put_manifest(path: str, suffix: str) -> str:
    """Write standard input next to the dump."""
    name = f'"$p"{shlex.quote(suffix)}'
    return _command(path, f"umask 077; cat >{name}.partial && mv -f {name}.partial {name}")


def remove(path: str) -> str:
    """Remove the partial file."""
    return _command(path, 'rm -f "$t"')
