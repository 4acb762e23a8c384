"""A real terminal to write to, and what came out at its other end."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO


class Terminal:
    """`stream` is the terminal; `read` returns what was written to it so far."""

    def __init__(self, stream: TextIO, master: int) -> None:
        self.stream = stream
        self._master = master

    def read(self) -> str:
        self.stream.flush()
        return self.drain()

    def drain(self) -> str:
        """What is there, without asking the stream for what it still holds."""
        out = b""
        while True:
            try:
                got = os.read(self._master, 65536)
            except BlockingIOError:
                return out.decode()
            out += got

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def stop(self) -> None:
        """As ^S does: it takes nothing until `go_on`."""
        termios.tcflow(self.stream.fileno(), termios.TCOOFF)

    def go_on(self) -> None:
        termios.tcflow(self.stream.fileno(), termios.TCOON)

    def hang_up(self) -> None:
        os.close(self._master)
        # Something else in its place, for `close`.
        self._master = os.open(os.devnull, os.O_RDONLY)

    def close(self) -> None:
        with suppress(OSError):
            self.stream.close()  # flushes; a hung up terminal takes nothing
        os.close(self._master)


@contextmanager
def open_terminal() -> Iterator[Terminal]:
    master, slave = pty.openpty()
    os.set_blocking(master, False)
    terminal = Terminal(os.fdopen(slave, "w"), master)
    terminal.resize(80)
    try:
        yield terminal
    finally:
        terminal.close()
